"""A model behind an address with OpenAI's interface: GPT, Gemini, Claude, vLLM, SGLang, Ollama, `sensorium serve`.

Whatever it does (times out, answers nonsense, fails for ever), a question of it ends with an answer or with an error
that says so. The key comes from an environment variable; it is in no record, no message and no fingerprint.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from sensorium.data.media import DECODER_ERRORS, ORIENTATION, PictureFile
from sensorium.errors import UserError
from sensorium.evaluate.answerer import ENDPOINT, Said, seeded
from sensorium.infer.likelihoods import Likelihoods, Question
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Media, Sample, Segment

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
REFUSED = (401, 403, 404, 405)
"""Not of one question: the key, the address or the name of the model is wrong."""
LONGEST = 16 << 20  # bytes of an answer that are read
PATIENCE = 60.0  # longest wait before a question is asked again, seconds
GIVEN_UP = 16
"""After so many questions in a row that failed with all their tries, each further one is tried once, until one is
answered: an endpoint that is down for ever does not cost hours."""


class Failed(Exception):
    """One try brought no answer. again: another may; after: seconds to wait, where the endpoint said so."""

    def __init__(self, reason: str, again: bool, after: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.again, self.after, self.refused = again, after, refused


class Endpoint:
    """Asks chat completions.

    url          of the interface, for example https://api.openai.com/v1; or whole, ending in /chat/completions
    model        what it is called there
    key_env      the environment variable with the key; None: no key is sent
    concurrency  questions under way together
    timeout      seconds for one try
    retries      further tries of a question, where the fault may pass (429, 5xx, time-outs, answers cut short)
    pause        seconds before the first of them; each doubles it, and waits at random between a half and all of it
    extra        further fields of the request's body, as an endpoint may want
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 1.0,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.url, self.model = address_of(url), model
        self.concurrency, self.timeout, self.retries, self.pause = max(1, concurrency), timeout, retries, pause
        self.extra = dict(extra or {})
        self.title = f"{model} at {urlsplit(self.url).netloc.rpartition('@')[2]}"
        self._key = _key_of(key_env)
        self._tokens = "max_tokens"
        self._failing = 0
        self._answered = False
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)

    @property
    def fingerprint(self) -> str:
        about = json.dumps([self.url, self.model, self.extra], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def likelihoods(self, questions: Sequence[Question], heard: Callable[[int, Likelihoods | Said], None]) -> None:
        raise UserError(f"{self.title}: an endpoint does not tell how likely given answers are: take a metric that "
                        "reads words (--metric choice)")  # fmt: skip

    def generate(self, samples: Sequence[Sample], sampling: Sampling, heard: Callable[[int, Said], None]) -> None:
        """Raises UserError where the key, the address or the model's name is refused before anything was answered."""
        if sampling.constraint is not None:
            raise UserError("the form of an answer (constraint) cannot be asked of an endpoint: leave it out")
        waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Said | Exception]] = queue.SimpleQueue()
        for number in range(len(samples)):
            waiting.put(number)
        count = min(self.concurrency, len(samples))
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set() and (number := waiting.get()) is not None:
                try:
                    result: Said | Exception = self._said(samples[number], sampling, stop)
                except Exception as error:  # it ends the call: nobody takes another question
                    stop.set()
                    result = error
                done.put((number, result))

        for _ in range(count):
            waiting.put(None)
            # daemons: who is asked to stop does not wait for an endpoint that says nothing
            threading.Thread(target=work, name="endpoint", daemon=True).start()
        try:
            for _ in range(len(samples)):
                number, result = done.get()
                if isinstance(result, Exception):
                    raise result
                heard(number, result)
        finally:
            stop.set()

    # ---- one question

    def _said(self, sample: Sample, sampling: Sampling, stop: threading.Event) -> Said:
        try:
            body = self._body(sample, seeded(sampling, sample))
        except UserError as error:  # a picture that cannot be read, content that an endpoint does not take
            return Said("", str(error))
        tries = 1 + (self.retries if self._failing < GIVEN_UP else 0)
        for turn in range(1, tries + 1):
            try:
                text = self._try(body)
            except Failed as error:
                reason = self._without_key(str(error))
                if error.refused and not self._answered:
                    raise UserError(f"{self.title}: {reason}") from None
                if "max_completion_tokens" in reason and self._tokens == "max_tokens":
                    self._tokens = "max_completion_tokens"  # as newer models call it, who refuse the older name
                if "max_tokens" in body and self._tokens != "max_tokens":
                    body[self._tokens] = body.pop("max_tokens")
                    again = True
                else:
                    again = error.again
                if again and turn < tries and not stop.is_set():
                    stop.wait(self._wait(turn, error.after))
                    continue
                self._failing += 1
                tried = f" ({turn} tries)" if turn > 1 else ""
                return Said("", f"{ENDPOINT}{reason}{tried}")
            self._failing, self._answered = 0, True
            return Said(text)
        raise AssertionError("a question is tried once at least")

    def _wait(self, turn: int, after: float | None) -> float:
        backoff = self.pause * 2 ** (turn - 1) * random.uniform(0.5, 1.0)
        return min(PATIENCE, backoff if after is None else max(after, backoff))

    def _body(self, sample: Sample, sampling: Sampling) -> dict[str, Any]:
        body = {"model": self.model, "messages": messages_of(sample), self._tokens: sampling.max_tokens,
                "temperature": sampling.temperature}  # fmt: skip
        if sampling.temperature > 0:
            body["seed"] = sampling.seed
        for name, value, usual in (
            ("top_p", sampling.top_p, 1.0), ("stop", list(sampling.stop), []),
            ("presence_penalty", sampling.presence_penalty, 0.0),
            ("frequency_penalty", sampling.frequency_penalty, 0.0),
        ):  # fmt: skip
            if value != usual:
                body[name] = value
        return {**body, **self.extra}

    def _try(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "sensorium"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        end = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return answer_in(_read(response, end))
        except urllib.error.HTTPError as error:
            with error:
                raise self._http(error, end) from None
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from None
        except TimeoutError:
            raise Failed(f"no answer within {self.timeout:g} s", again=True) from None
        except (http.client.HTTPException, OSError) as error:
            raise Failed(f"the connection broke: {type(error).__name__} {error}".strip(), again=True) from None

    def _http(self, error: urllib.error.HTTPError, end: float) -> Failed:
        try:
            said = _message(_read(error, end))
        except (Failed, OSError, http.client.HTTPException):
            said = ""
        reason = f"HTTP {error.code}" + (f": {said}" if said else f" {error.reason}")
        return Failed(reason, error.code in RETRIED, _seconds(error.headers.get("Retry-After")), error.code in REFUSED)

    def _unreachable(self, reason: Any) -> Failed:
        if isinstance(reason, TimeoutError):
            return Failed(f"no answer within {self.timeout:g} s", again=True)
        down = isinstance(reason, ConnectionRefusedError)
        return Failed(f"nothing answers at {self.url}: {reason}", again=not down, refused=down)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is for the address it was given for, and for no other that this one may name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def address_of(url: str) -> str:
    """The address of chat completions. Raises UserError for what is none."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"an endpoint is an address such as https://api.openai.com/v1, given {url!r}")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return parts._replace(path=path, fragment="").geturl()


def _key_of(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable} is to hold the endpoint's key, and it is not set")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"the environment variable {variable} holds no key: there are spaces or letters beyond ASCII")
    return key


# ---- what is sent


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """A sample as chat messages, pictures as data: URLs. Raises UserError for content that has no place in them, and
    MediaError for a picture that cannot be read."""
    messages: list[dict[str, Any]] = []
    for one in sample.segments:
        role = one.role or "user"
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": []})
        messages[-1]["content"].append(_part(one))
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):
            message["content"] = "".join(part["text"] for part in parts)
    return messages


def _part(segment: Segment) -> dict[str, Any]:
    if segment.kind == "text":
        return {"type": "text", "text": str(segment.data)}
    if segment.kind != "image" or not isinstance(segment.data, Media):
        raise UserError(f"an endpoint is shown pictures and words, this question has {segment.kind}")
    return {"type": "image_url", "image_url": {"url": data_url(segment.data)}}


def data_url(media: Media) -> str:
    """A picture as it lies in its file, where everybody reads that alike; else as PNG of its upright RGB pixels."""
    kind, content = "png", b""
    if isinstance(media, PictureFile):
        content = media.read()
        kind = _plain_kind(content)
    if not content or not kind:
        stream = io.BytesIO()
        media.load().save(stream, "PNG")
        kind, content = "png", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _plain_kind(content: bytes) -> str:
    """jpeg, png or webp of one frame, without rotation or alpha; "" for what some would show otherwise."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            plain = image.mode in ("RGB", "L") and not image.has_transparency_data
            upright = Image.Image.getexif(image).get(ORIENTATION, 1) == 1
            still = not getattr(image, "is_animated", False)
            return (image.format or "").lower() if plain and upright and still else ""
    except DECODER_ERRORS:
        return ""


# ---- what comes back


def _read(response: Any, end: float) -> bytes:
    """The body, within its time and size. Raises Failed."""
    found = bytearray()
    while piece := response.read1(1 << 16):
        found += piece
        if len(found) > LONGEST:
            raise Failed(f"the answer is longer than {LONGEST >> 20} MiB", again=False)
        if time.monotonic() > end:
            raise Failed("the answer did not end in time", again=True)
    return bytes(found)


def answer_in(body: bytes) -> str:
    """The text of a chat completion. Raises Failed for everything else."""
    try:
        value = json.loads(body)
    except ValueError:
        shown = body[:80].decode("utf-8", "replace")
        raise Failed(f"the answer is no JSON: {shown!r}", again=True) from None
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        raise Failed(f"the answer has no choices: {_message(body) or str(value)[:80]}", again=True)
    if not value["choices"]:
        raise Failed("the list of choices is empty", again=True)
    first = value["choices"][0]
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # parts, as some give them
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str)) if texts else None
    why = first.get("finish_reason") if isinstance(first, dict) else None
    if isinstance(content, str) and (content or why != "length"):
        return content
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if isinstance(refusal, str) and refusal:
        return refusal
    raise Failed(f"the answer has no text (finish_reason {why!r})", again=False)


def _message(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if isinstance(value, dict):
        error = value.get("error", value.get("detail", value.get("message")))
        text = error.get("message") if isinstance(error, dict) else error
        return " ".join(str(text).split())[:300] if text else ""
    return " ".join(re.sub(r"<[^>]*>", " ", body[:2000].decode("utf-8", "replace")).split())[:120]


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After in seconds; a date is left to the usual pause."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
