"""Endpoints of every temper: what they answer becomes an answer or an error that says what it was, never a crash."""

import base64
import io
import json
import time

import pytest
from asking import Likeliest, Noise, hold, items, shows, task
from loose_endpoint import completion, endpoint
from PIL import Image

from sensorium.data.media import PictureFile
from sensorium.errors import UserError
from sensorium.evaluate.endpoint import Endpoint, address_of, data_url, messages_of
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.runner import run_asked
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment


def asked(url, samples=None, sampling=Sampling(max_tokens=8), **options):  # noqa: B008 (a frozen value)
    """What each sample is answered, in their order."""
    samples = samples or [Sample((Segment("text", "hello", "user"),))]
    found = {}
    options = {"retries": 2, "pause": 0.01, "timeout": 5.0, **options}
    Endpoint(url, "some-model", **options).generate(samples, sampling, found.__setitem__)
    return [found[number] for number in range(len(samples))]


def test_what_is_sent_is_a_chat_with_its_pictures():
    with endpoint(lambda body, number: (200, completion("two"), {})) as (url, seen):
        turns = [("system", "Be short."), ("user", Noise(1)), ("user", "what?"), ("assistant", "one"),
                 ("user", "and "), ("user", "now?")]  # fmt: skip
        sample = Sample(tuple(Segment("text" if isinstance(one, str) else "image", one, role) for role, one in turns))
        assert asked(url, [sample], Sampling(max_tokens=8, stop=("x",))) == [("two", "")]
    [(path, headers, body)] = seen
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert {name: value for name, value in body.items() if name != "messages"} == {
        "model": "some-model", "max_tokens": 8, "temperature": 0.0, "stop": ["x"],
    }  # fmt: skip
    system, first, said, last = body["messages"]
    assert (system, said) == ({"role": "system", "content": "Be short."}, {"role": "assistant", "content": "one"})
    assert last == {"role": "user", "content": "and now?"}
    picture, words = first["content"]
    assert words == {"type": "text", "text": "what?"}
    content = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(content)).tobytes() == Noise(1).load().tobytes()


def saved(kind, mode="RGB", **options):
    stream = io.BytesIO()
    Noise(1).load().convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def test_a_picture_goes_as_its_file_where_everybody_reads_that_alike():
    jpeg = saved("JPEG")
    assert data_url(PictureFile(jpeg)) == "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for content in (saved("JPEG", exif=rotated), saved("PNG", "RGBA"), saved("BMP"), saved("GIF")):
        url = data_url(PictureFile(content))
        sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert sent.mode == "RGB"
        assert sent.tobytes() == PictureFile(content).load().tobytes()


@pytest.mark.parametrize(("given", "expected"), [
    ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
    ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
    ("https://x.org/a/v1beta/openai/chat/completions", "https://x.org/a/v1beta/openai/chat/completions"),
    ("https://x.org/deployments/d?api-version=1", "https://x.org/deployments/d/chat/completions?api-version=1"),
])  # fmt: skip
def test_addresses(given, expected):
    assert address_of(given) == expected


@pytest.mark.parametrize("given", ["api.openai.com/v1", "ftp://x.org", "runs/quickstart", ""])
def test_what_is_no_address(given):
    with pytest.raises(UserError, match="is an address such as"):
        address_of(given)


NONSENSE = [
    (200, b"<html><body>Bad gateway</body></html>", "is no JSON: '<html>"),
    (200, b'{"choices": [{"message": {"content": "ha', "is no JSON"),
    (200, b"", "is no JSON"),
    (200, b"\xff\xfe\x00", "is no JSON"),
    (200, {"choices": []}, "the list of choices is empty"),
    (200, {"choices": None}, "has no choices"),
    (200, [1, 2], "has no choices"),
    (200, {"error": {"message": "out of memory"}}, "out of memory"),
    (200, {"choices": ["x"]}, "has no text"),
    (200, completion(None), "has no text"),
    (200, completion({"a": 1}), "has no text"),
    (200, completion("", finish_reason="length"), "has no text (finish_reason 'length')"),
    (500, b"<h1>Internal</h1>", "HTTP 500: Internal"),
    (503, {"error": "overloaded"}, "HTTP 503: overloaded"),
    (400, {"error": {"message": "the picture is too large"}}, "HTTP 400: the picture is too large"),
    (302, b"", "HTTP 302"),
]


@pytest.mark.parametrize(("status", "body", "expected"), NONSENSE)
def test_nonsense_for_ever_is_an_error_and_never_an_answer(status, body, expected):
    headers = {"Location": "http://127.0.0.1:9/elsewhere"} if status == 302 else {}
    with endpoint(lambda *_: (status, body, headers)) as (url, seen):
        [said] = asked(url, retries=1)
    assert said.text == ""
    assert said.error.startswith("endpoint: ")
    assert expected in said.error
    assert len(seen) <= 2
    assert (len(seen) == 2) == ("2 tries" in said.error)


def test_what_may_pass_is_tried_again():
    turns = iter([(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}), (502, b"", {}), (200, b"{", {}),
                  (200, completion("at last"), {})])  # fmt: skip
    with endpoint(lambda *_: next(turns)) as (url, seen):
        assert asked(url, retries=3) == [("at last", "")]
    assert len(seen) == 4


def test_retry_after_is_waited_for():
    turns = iter([(429, b"", {"Retry-After": "0.4"}), (200, completion("ok"), {})])
    with endpoint(lambda *_: next(turns)) as (url, _):
        began = time.monotonic()
        assert asked(url)[0].text == "ok"
        assert time.monotonic() - began >= 0.4


def test_an_endpoint_that_says_nothing_ends_as_a_time_out():
    with endpoint(lambda *_: (time.sleep(0.6), (200, completion("late"), {}))[1]) as (url, _):
        [said] = asked(url, timeout=0.15, retries=1)
    assert said == ("", "endpoint: no answer within 0.15 s (2 tries)")


def test_an_answer_cut_short_is_tried_again():
    whole = json.dumps(completion("whole")).encode()
    turns = iter([(200, whole[:20], {"Content-Length": str(len(whole))}), (200, whole, {})])
    with endpoint(lambda *_: next(turns)) as (url, _):
        assert asked(url, timeout=0.5)[0].text == "whole"


def test_newer_models_call_the_limit_otherwise():
    def answer(body, number):
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": text, "param": "max_tokens"}}, {}
        return 200, completion(f"{body['max_completion_tokens']}"), {}

    with endpoint(answer) as (url, seen):
        two = [Sample((Segment("text", str(n), "user"),)) for n in range(2)]
        assert asked(url, two, retries=1, concurrency=1) == [("8", ""), ("8", "")]
    assert len(seen) == 3


def test_parts_of_text_and_refusals_are_answers():
    parts = completion([{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}])
    with endpoint(lambda *_: (200, parts, {})) as (url, _):
        assert asked(url)[0].text == "a cat"
    refusal = {"choices": [{"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]}
    with endpoint(lambda *_: (200, refusal, {})) as (url, _):
        assert asked(url)[0].text == "I cannot."


def test_many_questions_go_together_and_each_gets_its_own_answer():
    def answer(body, number):
        time.sleep(0.05)
        return 200, completion(body["messages"][0]["content"][::-1]), {}

    samples = [Sample((Segment("text", f"{n:03}", "user"),)) for n in range(16)]
    with endpoint(answer) as (url, _):
        began = time.monotonic()
        said = asked(url, samples, concurrency=8)
        assert time.monotonic() - began < 0.6  # one after another: 0.8
    assert [one.text for one in said] == [f"{n:03}"[::-1] for n in range(16)]


def test_one_that_is_down_for_ever_is_not_tried_for_ever():
    samples = [Sample((Segment("text", str(n), "user"),)) for n in range(40)]
    with endpoint(lambda *_: (500, b"", {})) as (url, seen):
        said = asked(url, samples, retries=4, pause=0.001, concurrency=1)
    assert all(one.error for one in said)
    assert len(seen) == 16 * 5 + 24


# ---- keys


def test_a_key_is_sent_and_never_told(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", "sk-verysecret")
    echo = {"error": {"message": "Incorrect API key provided: sk-verysecret"}}
    with endpoint(lambda *_: (400, echo, {})) as (url, seen):
        one = Endpoint(url, "m", "SOME_KEY")
        result = run_asked(task(hold("keys", items(2))), one, tmp_path)
    assert seen[0][1]["Authorization"] == "Bearer sk-verysecret"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    told = f"{result} {one.fingerprint} {one.title} {one!r}".encode() + kept
    assert b"(the key)" in told
    assert b"verysecret" not in told


def test_a_key_that_is_not_there_and_one_that_is_none(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UserError, match=r"SOME_KEY .* not set"):
        Endpoint("http://127.0.0.1:1", "m", "SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-a\r\nX-Other: 1")
    with pytest.raises(UserError, match="holds no key") as error:
        Endpoint("http://127.0.0.1:1", "m", "SOME_KEY")
    assert "sk-a" not in str(error.value)


@pytest.mark.parametrize(("status", "said"), [(401, "wrong key"), (404, "no such model")])
def test_what_would_fail_for_every_question_is_said_at_once(status, said):
    with (
        endpoint(lambda *_: (status, {"error": {"message": said}}, {})) as (url, seen),
        pytest.raises(UserError, match=said),
    ):
        asked(url, [Sample((Segment("text", str(n), "user"),)) for n in range(20)], concurrency=1)
    assert len(seen) == 1


def test_nobody_there():
    with pytest.raises(UserError, match="nothing answers at http://127"):
        asked("http://127.0.0.1:9")


# ---- as a task


def test_a_task_counts_what_an_endpoint_fails_at(tmp_path):
    def answer(body, number):
        text = body["messages"][0]["content"][-1]["text"]
        n = int(text.split("picture ")[1][0])
        if n == 1:
            return 500, b"", {}
        if n == 2:
            return 200, b"<html>", {}
        return 200, completion(f"thing {n}" if n else "ничего"), {}  # an answer in another language is an answer

    broken = TaskItem(id="broken", question="What is picture 5?", media=shows(Noise(7, "pixels")), answers=("thing 5",))
    source = hold("endpoint", [*items(4), broken])
    with endpoint(answer) as (url, _):
        result = run_asked(task(source, blind=False), Endpoint(url, "m", retries=1, pause=0.01), tmp_path)
    assert [one.score for one in result.records] == [0.0, 0.0, 0.0, 1.0, 0.0]
    counts = {row[0].partition(" (")[0]: row[1] for row in result.tables[-1].rows}
    assert counts["errors of the endpoint"] == "2"
    assert counts["items that could not be asked"] == "1"
    assert "cannot be decoded" in result.records[-1].error
    assert result.evaluations[0].n == 5


def test_likelihoods_are_not_asked_of_an_endpoint():
    with pytest.raises(UserError, match="does not tell how likely"):
        run_asked(task(hold("likely", items(2)), metric=Likeliest()), Endpoint("http://127.0.0.1:9", "m"))


def test_content_that_no_chat_has():
    with pytest.raises(UserError, match="this question has box"):
        messages_of(Sample((Segment("box", (0.0, 0.0, 1.0, 1.0), "user"),)))
