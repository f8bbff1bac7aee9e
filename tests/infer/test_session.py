"""A session answers as a fresh request over the whole conversation would, and reads only what is new."""

import io

import pytest
import torch
from PIL import Image
from rich.console import Console

from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.infer.session import Session
from sensorium.infer.terminal import chat_terminal
from sensorium.sequence import MediaError, Sample, Segment

SHORT = Sampling(max_tokens=8)


class Broken:
    def key(self):
        return "broken"

    def shape(self):
        return (8, 8)

    def load(self):
        raise MediaError("cat.jpg: is damaged")


@pytest.fixture
def read(tiny, monkeypatch):
    """Token counts of the prompts that the model read."""
    counts = []
    stream = type(tiny.model).stream

    def counted(self, sequence):
        counts.append(len(sequence))
        return stream(self, sequence)

    monkeypatch.setattr(type(tiny.model), "stream", counted)
    return counts


@pytest.mark.parametrize("sampling", [SHORT, Sampling(max_tokens=8, temperature=1.0, repetition_penalty=1.2, seed=3)])
def test_every_turn_equals_a_fresh_request(tiny, sampling):
    session = Session(tiny.engine, [Segment("text", "be brief", role="system")], sampling)
    for text, seeds in (("what?", [1]), ("and?", []), ("compare them", [2, 3]), ("why", [1])):
        segments = (*session.segments, *tiny.ask(text, *seeds))
        [expected] = tiny.engine.generate([Sample(segments)], sampling)
        pieces = list(session.send(text, [tiny.Picture(seed) for seed in seeds]))
        assert "".join(pieces) == expected
        assert session.segments[-1] == Segment("text", expected, role="assistant")
    assert len(session.segments) == 1 + 4 + 4 + 4


def test_a_turn_costs_its_own_tokens(tiny, read):
    session = Session(tiny.engine, sampling=SHORT)
    "".join(session.send("first question", [tiny.Picture(1)]))
    before = len(tiny.renderer.render(Sample(session.segments)).ids)
    "".join(session.send("second"))
    after = len(tiny.renderer.render(Sample(session.segments[:-1]), generate=True).ids)
    # the answer's last token and its stop were chosen, not read, so they come with the new turn
    assert read[1] <= after - before + 2 + len(session.segments[2].data.encode())
    assert read[1] < read[0]


def test_a_stopped_answer_stays_and_the_conversation_goes_on(tiny):
    engine = Engine(tiny.model, tiny.renderer)
    engine.stops = frozenset()
    session = Session(engine, sampling=Sampling(max_tokens=50))
    answer = session.send("tell me")
    said = next(answer)
    answer.close()
    assert session.segments[-1].role == "assistant"
    assert session.segments[-1].data.startswith(said)
    [expected] = engine.generate([Sample((*session.segments, *tiny.ask("go on")))], SHORT)
    assert "".join(session.send("go on", sampling=SHORT)) == expected


def test_a_broken_picture_leaves_the_conversation_as_it_was(tiny):
    session = Session(tiny.engine, sampling=SHORT)
    "".join(session.send("one", [tiny.Picture(1)]))
    before = session.segments
    with pytest.raises(MediaError, match=r"cat\.jpg"):
        session.send("two", [Broken()])
    assert session.segments == before
    [expected] = tiny.engine.generate([Sample((*before, *tiny.ask("two")))], SHORT)
    assert "".join(session.send("two")) == expected


def test_an_interrupted_prompt_is_not_part_of_the_conversation(tiny, monkeypatch):
    session = Session(tiny.engine, sampling=SHORT)
    "".join(session.send("one"))
    before = session.segments
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.model), "stream", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(session.send("two"))
    assert session.segments == before
    [expected] = tiny.engine.generate([Sample((*before, *tiny.ask("two")))], SHORT)
    assert "".join(session.send("two")) == expected


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_reset_forgets(tiny):
    session = Session(tiny.engine, [Segment("text", "system words", role="system")], SHORT)
    first = "".join(session.send("hello", [tiny.Picture(1)]))
    "".join(session.send("more"))
    session.reset()
    assert len(session.segments) == 1
    assert "".join(session.send("hello", [tiny.Picture(1)])) == first


def test_old_turns_leave_a_full_context_and_answers_stay_right(tiny):
    engine = Engine(tiny.model, tiny.renderer, context=110)
    session = Session(engine, sampling=SHORT)
    for number in range(6):
        segments = (*session.segments, *tiny.ask(f"question {number}", number))
        [expected] = engine.generate([Sample(segments)], SHORT)
        assert "".join(session.send(f"question {number}", [tiny.Picture(number)])) == expected
    whole = tiny.renderer.render(Sample(session.segments), items=False)
    assert len(whole) > 110


# ---- terminal


def chat(tiny, text, images=()):
    out = io.StringIO()
    session = Session(tiny.engine, sampling=SHORT)
    chat_terminal(session, images, Console(file=out, width=200, highlight=False), io.StringIO(text))
    return out.getvalue(), session


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "a b.png"
    tiny_pixels = torch.arange(192, dtype=torch.uint8).view(8, 8, 3)
    Image.fromarray(tiny_pixels.numpy()).save(path)
    return path


def test_each_line_of_a_pipe_is_a_turn(tiny, png):
    out, session = chat(tiny, f"first\n\n/image {png}\nsecond\n/quit\nnever asked\n")
    kinds = [(segment.kind, segment.role) for segment in session.segments]
    user, reply = ("text", "user"), ("text", "assistant")
    assert kinds == [user, reply, ("image", "user"), user, reply]
    assert "(8 x 8) goes with the next question" in out
    assert "/quit" not in out  # help and prompts are for a person


def test_pictures_given_at_the_start_come_back_after_reset(tiny, png):
    _, session = chat(tiny, "first\n/reset\nagain\n", [str(png)])
    assert next(segment.data for segment in session.segments if segment.kind == "text") == "again"
    assert session.segments[0].kind == "image"


def test_a_broken_picture_is_named_and_the_chat_goes_on(tiny, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    out, session = chat(tiny, f"/image {broken}\n/image {tmp_path / 'gone.png'}\n/imagine x\nhello\n")
    assert "broken.png: is not a picture" in out
    assert "gone.png: no such file" in out
    assert "there is no /imagine" in out
    assert [segment.kind for segment in session.segments] == ["text", "text"]
    with pytest.raises(UserError, match=r"broken\.png"):
        chat(tiny, "hello\n", [str(broken)])


def test_answers_cannot_command_the_terminal(tiny, monkeypatch):
    session = Session(tiny.engine)
    monkeypatch.setattr(session, "send", lambda text, images: iter(["a\x1b[2J", "\r\x07b [red]c\n两"]))
    out = io.StringIO()
    chat_terminal(session, (), Console(file=out, width=80), io.StringIO("hi\n"))
    assert out.getvalue() == "a[2Jb [red]c\n两\n"
