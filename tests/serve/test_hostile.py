"""Hostile requests: some hundreds over sockets, and one test for each thing that they once found."""

import base64
import gc
import io
import json
import logging
import random
import socket
import threading
import time
import warnings
import wave
import weakref
from types import SimpleNamespace

import httpx
import pytest
from attacking import answers, attacked
from hostile import KINDS, Sites, attack
from hostile_pictures import png
from serving import data_url, hello, server, shown, until

from sensorium.serve import run
from sensorium.serve.errors import ApiError, wrong
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits
from sensorium.serve.media import Intake
from sensorium.serve.run import log_to_stderr

CHAT = "/v1/chat/completions"
KEYS = ("one-key", "another-key")


@pytest.mark.slow
def test_three_hundred_hostile_requests_do_no_harm():
    report = attacked(seed=11, count=300, clients=4)
    assert report.findings == []
    assert report.count == 300
    statuses = {status for counts in report.statuses.values() for status in counts}
    assert {"200", "400", "404"} <= statuses


def test_an_attack_is_a_function_of_seed_and_number():
    sites = Sites(1, 2)
    made = [attack(3, number, sites) for number in range(60)]
    assert made == [attack(3, number, sites) for number in range(60)]
    assert len({one.canary for one in made}) == 60
    assert made[:5] != [attack(4, number, sites) for number in range(5)]
    kinds = {attack(0, number, sites).kind for number in range(200)}
    assert len(kinds & {name for name, _, _ in KINDS}) >= len(KINDS) - 3  # the rarest may be missing


# ---- what was found


def test_a_length_that_is_given_twice_is_refused_and_nothing_behind_it_is_read(served):
    inner = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    given = head + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (len(inner) + 5) + inner
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(given)
        read = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    [(status, headers, body)] = answers(read)
    assert (status, headers["connection"].lower()) == (400, "close")
    assert "given twice" in json.loads(body)["error"]["message"]


def test_a_picture_that_is_hardly_more_than_a_line_is_refused(served):
    answer = served.client.post(CHAT, json=hello(messages=shown(data_url(png(100_000, 2, b"")))))
    assert answer.status_code == 400
    assert "more than 200 times as long" in answer.json()["error"]["message"]
    Intake(Limits()).picture(data_url(png(200, 1, b"")), "here")


@pytest.mark.parametrize(
    "form", [{"guided_choice": ["x" * 300_000, "y"]}, {"guided_json": {"enum": ["x" * 300_000]}},
             {"structured_outputs": {"choice": ["x" * 1000] * 300}}],
)  # fmt: skip
def test_a_form_is_bounded(served, form):
    answer = served.client.post(CHAT, json=hello(**form))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_large"
    assert answer.json()["error"]["param"] == next(iter(form))


def test_an_error_does_not_send_everything_back(served):
    error = wrong("é" * 5000, "p" * 1000)
    assert len(error.detail) < 2010
    assert len(error.param) < 210
    answer = served.client.post(CHAT, json=hello(messages=[{"role": "user", "content": [{"type": "x" * 100_000}]}]))
    assert answer.status_code == 400
    assert len(answer.content) < 10_000


@pytest.mark.slow
def test_nothing_of_an_answered_request_waits_for_the_garbage_collector(served):
    asked = [hello(), hello(stream=True), hello(guided_regex="("), hello(max_tokens=10**6), hello(logit_bias={"a": 1})]
    asked += [hello(messages=shown(data_url(b"no picture"))), hello(n=2, stream=True), hello(model="nobody")]
    kinds = ("ChatRequest", "Asking", "Ticket", "Visit", "Intake", "Read")

    def left():
        return [type(one).__name__ for one in gc.get_objects() if type(one).__name__ in kinds]

    gc.collect()
    gc.disable()
    try:
        for body in 4 * asked:
            served.client.post(CHAT, json=body)
        served.client.get("/health")
        # Of some 20 tickets: an idle thread holds the last one that it had.
        until(lambda: {*left()} <= {"Visit", "Asking", "Ticket"} and left().count("Ticket") < 5)
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_server_without_work_gives_memory_back_once(hosted, monkeypatch):
    given = []
    monkeypatch.setattr("sensorium.serve.run.give_back", lambda: given.append(1))
    with server([hosted]) as running:
        running.server.rest = 0.2
        running.client.post(CHAT, json=hello())
        until(lambda: given == [1])
        time.sleep(1.2)
        assert given == [1]
        running.client.post(CHAT, json=hello())
        until(lambda: given == [1, 1])


def test_memory_goes_back_in_any_case():
    class Ring:
        def __init__(self):
            self.itself = self

    found = weakref.ref(Ring())
    run._rest(SimpleNamespace(models=()))
    assert found() is None


def test_the_log_is_json_whatever_happens_and_quotes_nothing(capsys):
    hook, shown_by, filters = threading.excepthook, warnings.showwarning, list(warnings.filters)
    before = {name: list(logging.getLogger(name).handlers) for name in ("sensorium.serve", "uvicorn.error", "asyncio")}
    try:
        log_to_stderr()
        warnings.warn_explicit("a secret", UserWarning, "somewhere.py", 7)
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: a secret")

        def broken():
            raise ValueError("a secret")

        thread = threading.Thread(target=broken)
        thread.start()
        thread.join()
    finally:
        threading.excepthook, warnings.showwarning, warnings.filters[:] = hook, shown_by, filters
        for name, handlers in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, True
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines] == ["warning", "Task exception was never retrieved", "a thread ended"]
    assert lines[0]["where"] == ["somewhere.py:7"]
    assert lines[2]["error"] == "ValueError"
    assert "secret" not in said


# ---- nobody learns what others ask


def ask(running, key, body):
    answer = httpx.post(running.url + CHAT, json=body, timeout=30, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    value = answer.json()
    return value["choices"], value["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_was_read_for_one_key_is_not_there_for_another(model):
    """Equal prompts have equal answers because an answer is a function of its prompt, and not because it was kept: with
    nothing read before, with one's own prompt and with another's, also beside others' pictures and beginnings."""
    long = "tell me everything that you know about the picture, as slowly as you can, " * 3
    questions = [hello(messages=shown(data_url(), text=long)), hello(messages=[{"role": "user", "content": long}])]
    questions = [{**one, "logprobs": True, "top_logprobs": 3} for one in questions]
    alone = []
    for question in questions:
        fresh = Hosted.of("tiny", model, Limits())
        with server([fresh], keys=KEYS) as running:
            fresh.engine.rest()
            alone.append(ask(running, KEYS[0], question))
        fresh.close()
        fresh.engine.rest()
    assert [cached for _, cached in alone] == [0, 0]
    hosted = Hosted.of("tiny", model, Limits())
    with server([hosted], keys=KEYS) as running:
        for question, (expected, _) in zip(questions, alone):
            first, again, other = (ask(running, key, question) for key in (KEYS[0], KEYS[0], KEYS[1]))
            assert first == (expected, 0)
            assert again[1] > 32
            assert other[1] == 0, "how much is cached tells what others asked"
            for choices, _ in (again, other):
                assert [one["message"] for one in choices] == [one["message"] for one in expected]
        assert ask(running, KEYS[1], questions[1])[1] > 32
    hosted.close()
    hosted.engine.rest()


# ---- sounds, which no model here reads over HTTP


def test_damaged_sounds_raise_nothing_but_what_clients_are_told():
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(random.Random(0).randbytes(4000))
    honest, rng, taken = stream.getvalue(), random.Random(1), 0
    for _ in range(400):
        content = bytearray(honest[: rng.randrange(1, len(honest)) if rng.random() < 0.3 else None])
        for _ in range(rng.choice([1, 2, 8])):
            content[rng.randrange(min(len(content), 60))] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        try:
            sound = Intake(Limits(sound_seconds=5)).sound(base64.b64encode(content).decode(), "here")
        except ApiError:  # and nothing else
            continue
        taken += 1
        assert len(sound.samples) <= 16_000 * 5 + 1
    assert 0 < taken < 400
