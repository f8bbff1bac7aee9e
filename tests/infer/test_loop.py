"""Requests from several threads: each gets the answer it would get alone, whatever comes, goes and fails beside it."""

import queue
import random
import threading

import pytest
import torch
from tiny_fused import plain_greedy

from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.loop import Busy, Closed, Loop
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment


@pytest.fixture
def loop(tiny):
    loop = Loop(Engine(tiny.model, tiny.renderer, slots=4, tokens=64)).start()
    yield loop
    loop.close()


class Ear:
    """Collects what one request says."""

    def __init__(self):
        self.pieces, self.ended = [], queue.Queue()

    def __call__(self, piece):
        self.pieces.append(piece)
        if isinstance(piece, Exception) or piece.finish is not None:
            self.ended.put(piece)

    def wait(self):
        return self.ended.get(timeout=60)

    def text(self, answer=0):
        return "".join(piece.text for piece in self.pieces if piece.answer == answer)


def prompts(tiny, count, seed=0):
    draw = random.Random(seed)
    words = ["what is this?", "tell me all about what you can see here, " * 3, "hi", "两只猫", "count " * 30]
    return [
        Sample(tiny.ask(draw.choice(words) + str(draw.randrange(4)), *draw.sample(range(3), draw.randrange(3))))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
def test_arrivals_and_cancellations_change_nothing(tiny, loop, seed):
    samples, draw = prompts(tiny, 16, seed), random.Random(seed)
    lengths = [draw.randrange(1, 16) for _ in samples]
    expected = [plain_greedy(tiny, sample, length) for sample, length in zip(samples, lengths)]
    ears = [Ear() for _ in samples]
    cancelled = {index for index in range(16) if draw.random() < 0.3}

    def ask(indices):
        for index in indices:
            ticket = loop.submit(samples[index], Sampling(max_tokens=lengths[index]), ears[index])
            if index in cancelled:
                threading.Timer(draw.random() * 0.05, ticket.cancel).start()

    threads = [threading.Thread(target=ask, args=(range(first, 16, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, ear in enumerate(ears):
        last = ear.wait()
        if last.finish == "cancelled":
            assert index in cancelled
            assert expected[index].startswith(ear.text().rstrip("\ufffd"))
        else:
            assert ear.text() == expected[index]
    assert loop.call(lambda: loop.engine.scheduler.idle).result(10)


def test_several_answers_share_their_prompt(tiny, loop):
    [sample] = prompts(tiny, 1, 5)
    sample = Sample(tiny.ask("tell me all about it, and then some more of it please", 1))
    sampling = Sampling(max_tokens=8, temperature=1.0, n=3, seed=4, logprobs=2)
    ear = Ear()
    ticket = loop.submit(sample, sampling, ear)
    for _ in range(3):
        ear.wait()
    alone = [loop.engine.generate([sample], sampling.answer(answer))[0] for answer in range(3)]
    assert [ear.text(answer) for answer in range(3)] == alone
    assert len(set(alone)) == 3
    assert ticket.done
    assert ticket.requests[1].cached == ticket.prompt_tokens - 1
    tokens = [token for piece in ear.pieces for token in piece.tokens]
    assert len(tokens) == ticket.completion_tokens
    for token in tokens:
        assert token.logprob <= token.top[0][2] <= 0
        assert len(token.top) == 2


def test_one_that_fails_takes_nobody_along(tiny, monkeypatch):
    loop = Loop(Engine(tiny.model, tiny.renderer, slots=4))
    encode = type(loop.engine)._encode

    def broken(self, kind, items):
        if any(item.key == tiny.Picture(2).key() for item in items):
            raise RuntimeError("no such picture")
        return encode(self, kind, items)

    monkeypatch.setattr(type(loop.engine), "_encode", broken)
    samples = [Sample(tiny.ask("what?", seed)) for seed in (1, 2, 0)]
    ears, blocked = [Ear() for _ in samples], threading.Event()
    loop.start()
    loop.call(blocked.wait)
    for sample, ear in zip(samples, ears):
        loop.submit(sample, Sampling(max_tokens=6), ear)
    blocked.set()
    assert isinstance(ears[1].wait(), RuntimeError)
    for index in (0, 2):
        assert ears[index].wait().finish is not None
        monkeypatch.undo()
        assert ears[index].text() == plain_greedy(tiny, samples[index], 6)
    loop.close()
    assert loop.stats.failed == 1
    assert loop.stats.requests == 3


def test_an_answer_that_cannot_be_is_nobody_elses(tiny, monkeypatch):
    def refuses(logits):
        raise UserError("no token may follow")

    loop, blocked, ears = Loop(Engine(tiny.model, tiny.renderer)).start(), threading.Event(), [Ear(), Ear()]
    loop.call(blocked.wait)
    samples = prompts(tiny, 2, 3)
    tickets = [loop.submit(sample, Sampling(max_tokens=8), ear) for sample, ear in zip(samples, ears)]
    request = tickets[0].requests[0]
    monkeypatch.setattr(request.chooser, "greedy", False)
    monkeypatch.setattr(request.chooser, "choose", refuses)
    blocked.set()
    assert "no token" in str(ears[0].wait())
    ears[1].wait()
    assert ears[1].text() == plain_greedy(tiny, samples[1], 8)
    loop.close()
    alone = loop.engine.open(samples[0], Sampling(max_tokens=8))
    monkeypatch.setattr(alone.chooser, "greedy", False)
    monkeypatch.setattr(alone.chooser, "choose", refuses)
    with pytest.raises(UserError, match="no token"):
        list(loop.engine.run(alone))


def test_a_full_queue_turns_away_and_a_closed_loop_too(tiny):
    loop = Loop(Engine(tiny.model, tiny.renderer, slots=1), waiting=2).start()
    blocked = threading.Event()
    loop.call(blocked.wait)
    ears = [Ear(), Ear()]
    for ear in ears:
        loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=3), ear)
    with pytest.raises(Busy):
        loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=3), Ear())
    blocked.set()
    loop.close(drain=30)
    assert [ear.wait().finish in ("stop", "length") for ear in ears] == [True, True]
    with pytest.raises(Closed):
        loop.submit(prompts(tiny, 1)[0], Sampling(), Ear())


def test_what_is_not_done_in_time_is_cancelled(tiny):
    engine = Engine(tiny.model, tiny.renderer)
    engine.stops = frozenset()
    loop, ear = Loop(engine).start(), Ear()
    loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=100_000), ear)
    loop.close(drain=0.2)
    assert ear.wait().finish == "cancelled"
    assert engine.scheduler.idle


def test_a_bad_prompt_is_told_to_who_asks(tiny, loop):
    with pytest.raises(UserError, match="reads"):
        loop.submit(Sample((Segment("audio", tiny.Picture(1), role="user"),)), Sampling(), Ear())


def test_idle_memory_is_given_back(tiny):
    loop, ear = Loop(Engine(tiny.model, tiny.renderer), rest=0.05).start(), Ear()
    loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=3), ear)
    ear.wait()
    first = loop.engine._scheduler
    for _ in range(200):
        if loop.engine._scheduler is None:
            break
        threading.Event().wait(0.02)
    assert first is not None
    assert loop.engine._scheduler is None
    again = Ear()
    loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=3), again)
    again.wait()
    assert again.text() == ear.text()
    loop.close()


def test_threads_are_those_of_the_maker(tiny, loop):
    assert loop.call(torch.get_num_threads).result(10) == torch.get_num_threads()


def test_what_comes_while_the_end_is_near_is_told(tiny):
    """Nobody waits for ever: neither for an answer nor for something else that was asked."""
    loop = Loop(Engine(tiny.model, tiny.renderer, slots=2)).start()
    held, free, ear = threading.Event(), threading.Event(), Ear()
    first = loop.call(lambda: (held.set(), free.wait(30)))
    held.wait(30)
    loop.submit(prompts(tiny, 1)[0], Sampling(max_tokens=4), ear)
    second = loop.call(lambda: 1)
    closing = threading.Thread(target=loop.close)
    closing.start()
    while loop._closing is None:
        closing.join(0.01)
    free.set()
    assert ear.wait().finish == "cancelled"
    with pytest.raises(Closed):
        second.result(timeout=30)
    assert first.done()
    closing.join(30)
    assert not closing.is_alive()


def test_one_that_cannot_be_admitted_takes_nobody_along(tiny, monkeypatch):
    """Neither those that waited with it, nor those that come later."""
    samples, expected = prompts(tiny, 4, 3), []
    expected = [plain_greedy(tiny, sample, 4) for sample in samples]
    loop = Loop(Engine(tiny.model, tiny.renderer, slots=2, tokens=64))
    decoder, failing = loop.engine.scheduler.decoder, []
    enter = decoder.enter

    def entered(requests):
        if any(request in failing for request in requests):
            raise RuntimeError("no room")
        enter(requests)

    monkeypatch.setattr(decoder, "enter", entered)
    ears = [Ear() for _ in range(5)]
    loop._thread.is_alive = lambda: True  # what is asked before it begins waits
    tickets = [loop.submit(sample, Sampling(max_tokens=4), ear) for sample, ear in zip(samples, ears)]
    failing += tickets[1].requests
    del loop._thread.is_alive
    loop.start()
    assert isinstance(ears[1].wait(), RuntimeError)
    for number in (0, 2, 3):
        assert ears[number].wait().finish == "length"
        assert ears[number].text() == expected[number]
    loop.submit(samples[0], Sampling(max_tokens=4), ears[4])
    ears[4].wait()
    assert ears[4].text() == expected[0]
    assert loop.stats.failed == 1
    loop.close()


def test_what_was_read_for_one_owner_is_read_again_for_another(tiny, loop):
    sample, cached = Sample(tiny.ask("tell me all about what you can see here, " * 4)), []
    expected = plain_greedy(tiny, sample, 4)
    for owner in ("one", "one", "another", "", "", "one"):
        ear = Ear()
        ticket = loop.submit(sample, Sampling(max_tokens=4), ear, owner)
        ear.wait()
        assert ear.text() == expected
        cached.append(ticket.cached_tokens > 0)
    assert cached == [False, True, False, False, True, True]
