"""Too much, too slow, gone: queues, time-outs, clients that hang up, draining, failures. With a loop that is told what
to say and when."""

import contextlib
import json
import logging
import socket
import threading
import time

import httpx
import openai
import pytest
from serving import data_url, hello, scripted, server, shown, until

from sensorium.serve.limits import Limits
from sensorium.serve.run import JsonLines

CHAT = "/v1/chat/completions"
FAST = Limits(request_seconds=0.5, body_seconds=0.4, head_seconds=0.4)


def in_background(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def test_a_full_queue_answers_429_and_when_to_come_again(model):
    limits = Limits(waiting=2)
    hosted = scripted(model, limits)
    with server([hosted], limits) as running:
        pending = [in_background(lambda: httpx.post(running.url + CHAT, json=hello())) for _ in range(2)]
        until(lambda: hosted.loop.waiting == 2)
        answer = running.client.post(CHAT, json=hello())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        hosted.loop.go.set()
        for thread, found in pending:
            thread.join()
            assert found[0].status_code == 200
        assert running.client.post(CHAT, json=hello()).status_code == 200
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="x")
        hosted.loop.go.clear()
        hosted.loop.limit = 0  # the loop itself turns away
        with pytest.raises(openai.RateLimitError):
            client.with_options(max_retries=0).chat.completions.create(**hello())


def test_requests_over_all_are_limited(model):
    limits = Limits(requests=1)
    hosted = scripted(model, limits)
    with server([hosted], limits) as running:
        thread, found = in_background(lambda: httpx.post(running.url + CHAT, json=hello()))
        until(lambda: hosted.loop.waiting == 1)
        assert running.client.post(CHAT, json=hello()).status_code == 429
        assert running.client.get("/v1/models").status_code == 200
        hosted.loop.go.set()
        thread.join()
        assert found[0].status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(model, stream):
    hosted = scripted(model)
    with server([hosted]) as running:
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(running.url + CHAT, json=hello(stream=stream), timeout=0.3)
        until(lambda: hosted.loop.tickets and hosted.loop.tickets[0].cancelled, 3)
        until(lambda: running.state.active == 0, 3)
        metrics = running.client.get("/metrics").text
        assert f'sensorium_requests_total{{model="tiny",route="{CHAT}",status="499"}} 1.0' in metrics
        assert "sensorium_requests_open 0.0" in metrics


def test_a_client_that_leaves_in_the_middle_of_a_stream(model):
    hosted = scripted(model, words=("one", *(0.02, "more") * 400))
    hosted.loop.go.set()
    with server([hosted]) as running:
        with running.client.stream("POST", CHAT, json=hello(stream=True)) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        until(lambda: hosted.loop.tickets[0].cancelled, 3)
        until(lambda: hosted.loop.tickets[0].done, 3)
        assert hosted.loop.tickets[0].completion_tokens < 300


def test_what_takes_too_long_ends(model):
    hosted = scripted(model, words=("one ", 5.0, "two"))
    with server([hosted], FAST) as running:
        answer = running.client.post(CHAT, json=hello())
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert hosted.loop.tickets[0].cancelled
        hosted.loop.go.set()
        lines = running.client.post(CHAT, json=hello(stream=True)).text.strip().split("\n\n")
        values = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert values[1]["choices"][0]["delta"] == {"content": "one "}
        assert values[-1]["error"]["code"] == "timeout"
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError, match="not finished within"):
            list(client.chat.completions.create(**hello(stream=True)))


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_counted_as_they_come_in(model, chunked):
    limits = Limits(body_bytes=100_000)
    with server([scripted(model, limits)], limits) as running:

        def content():
            for _ in range(100):
                yield b" " * 10_000

        body = content() if chunked else b" " * 1_000_000
        headers = {"content-type": "application/json"}
        with contextlib.suppress(httpx.WriteError):  # the rest is not read
            answer = running.client.post(CHAT, content=body, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "too_large"
        until(lambda: running.state.budget.held == 0)
        assert running.client.get("/ready").status_code == 200


def test_bodies_of_all_requests_together_are_bounded(model):
    limits = Limits(total_bytes=10_000)
    hosted = scripted(model, limits)
    with server([hosted], limits) as running:
        first = hello(padding="x" * 8000)
        thread, found = in_background(lambda: httpx.post(running.url + CHAT, json=first))
        until(lambda: hosted.loop.waiting == 1)
        assert running.client.post(CHAT, json=first).status_code == 429
        hosted.loop.go.set()
        thread.join()
        assert found[0].status_code == 200
        assert running.client.post(CHAT, json=first).status_code == 200
        assert running.state.budget.held == 0


def raw(running, content):
    connection = socket.create_connection(running.url.removeprefix("http://").split(":"), timeout=5)
    connection.sendall(content)
    return connection


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_slow_heads_and_bodies_end(model):
    with server([scripted(model)], FAST) as running:
        silent, half = raw(running, b""), raw(running, HEAD[:40])
        slow = raw(running, HEAD + b"Content-Length: 1000\r\n\r\n{")
        began = time.monotonic()
        assert silent.recv(100) == b""
        assert half.recv(100) == b""
        answer = slow.recv(4000)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 2
        for connection in (silent, half, slow):
            connection.close()


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\x16\x03\x01 nothing of HTTP\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ],
)
def test_broken_http_is_refused(model, content):
    with server([scripted(model)], FAST) as running:
        with contextlib.suppress(OSError):
            connection = raw(running, content)
            found = connection.recv(4000)
            assert not found or found.split()[1].startswith(b"4")
            connection.close()
        assert running.client.get("/health").status_code == 200
        until(lambda: running.state.active == 0)


def test_half_closed_sockets_are_clients_that_left(model):
    hosted = scripted(model)
    with server([hosted]) as running:
        body = json.dumps(hello()).encode()
        connection = raw(running, HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: hosted.loop.tickets)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: hosted.loop.tickets[0].cancelled, 3)
        connection.close()
        connection = raw(running, HEAD + b"Content-Length: 1000\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        until(lambda: running.state.active == 0, 3)
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_says_nothing_of_the_program(model, stream):
    hosted = scripted(model, words=("one", RuntimeError("secret of the program")))
    hosted.loop.go.set()
    with server([hosted]) as running:
        answer = running.client.post(CHAT, json=hello(stream=stream))
        assert answer.status_code == (200 if stream else 500)
        assert "internal_error" in answer.text
        assert "secret" not in answer.text
        assert running.client.get("/health").status_code == 200


def test_a_failure_in_a_route_is_a_500_in_the_same_shape(model, monkeypatch):
    monkeypatch.setattr("sensorium.serve.hosted.Hosted.card", lambda self: 1 / 0)
    with server([scripted(model)]) as running:
        answer = running.client.get("/v1/models")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"


@pytest.mark.parametrize("stream", [False, True])
def test_draining_finishes_what_was_accepted(model, stream):
    hosted = scripted(model)
    with server([hosted], drain=10) as running:
        thread, found = in_background(lambda: httpx.post(running.url + CHAT, json=hello(stream=stream)))
        until(lambda: hosted.loop.waiting == 1)
        running.leave()
        until(lambda: running.state.draining)
        refused = httpx.post(running.url + CHAT, json=hello())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["retry-after"]
        ready = httpx.get(running.url + "/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        assert httpx.get(running.url + "/health").status_code == 200
        hosted.loop.go.set()
        thread.join()
        assert found[0].status_code == 200
        assert "two" in found[0].text
        assert "[DONE]" in found[0].text or not stream
        running.thread.join(5)
        assert not running.thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_draining_ends_what_is_not_finished_in_time(model, stream):
    hosted = scripted(model, words=("one ", 20.0))
    hosted.loop.go.set()
    with server([hosted], drain=0.3) as running:
        thread, found = in_background(lambda: httpx.post(running.url + CHAT, json=hello(stream=stream)))
        until(lambda: hosted.loop.tickets)
        running.leave()
        thread.join(5)
        assert found[0].status_code == (200 if stream else 503)
        last = found[0].text.strip().split("\n\n")[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "shutting_down"
        until(lambda: hosted.loop.tickets[0].cancelled)


def test_what_users_write_is_in_no_log(model):
    hosted = scripted(model, words=("private answer", ValueError("private failure")))
    hosted.loop.go.set()
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(JsonLines().format(record))

    logger = logging.getLogger("sensorium.serve")
    handler = Lines()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with server([hosted]) as running:
            messages = shown(data_url(b"private picture"), text="private question")
            running.client.post(CHAT + "?private=query", json=hello(messages=messages))
            running.client.post(CHAT, json=hello(messages=shown(text="private question"), user="private"))
            running.client.get("/private/path", headers={"authorization": "Bearer private"})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    values = [json.loads(line) for line in lines]
    assert [value.get("status") for value in values if value["event"] == "request"] == [400, 500, 404]
    [failure] = [value for value in values if value["event"] == "generation failed"]
    assert failure["error"] == "ValueError"
    assert "private" not in "".join(lines)


def test_pages_of_other_origins_ask_only_where_they_may(model):
    with server([scripted(model)], origins=["https://mine.org"]) as running:
        asked = {"origin": "https://mine.org", "access-control-request-method": "POST"}
        answer = running.client.options(CHAT, headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://mine.org"
        asked["origin"] = "https://other.org"
        assert "access-control-allow-origin" not in running.client.options(CHAT, headers=asked).headers
