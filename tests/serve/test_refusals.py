"""Broken and hostile requests: each gets one clear error of status 4xx, and the server goes on."""

import base64
import io
import json
import struct
import tracemalloc
import wave
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import data_url, encoded, hello, server, shown

from sensorium.serve.errors import ApiError
from sensorium.serve.limits import Limits, parsed
from sensorium.serve.media import Intake, size_of, webp_size

CHAT = "/v1/chat/completions"


def refused(answer, status=400):
    """The error of an answer, after its form was checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 600
    return error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "no valid JSON"),
        (b"nothing", "no valid JSON"),
        (b'{"model": "tiny", "model": NaN}', "no valid JSON"),
        (b'{"a": "\xff\xfe"}', "no valid JSON"),
        (b'{"a": "\\ud800"}', "no valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[" * 100 + b"]" * 100, "levels"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "levels"),
        (b"[" + b"[]," * 600_000 + b"[]]", "values"),
        (b"[]", ""),
        (b"null", ""),
        (b'"text"', ""),
    ],
)
def test_what_is_no_json_object(served, content, message):
    error = refused(served.client.post(CHAT, content=content, headers={"content-type": "application/json"}))
    assert message in error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_another_type_than_json(served, kind):
    answer = served.client.post(CHAT, content=json.dumps(hello()), headers={"content-type": kind})
    assert refused(answer, 415)["code"] == "unsupported_type"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell", "smell": ""}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty"),  # a logit divided by it is infinite
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**80}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"model": None}, "model"),
    ],
)
def test_a_field_of_a_wrong_type_or_size_is_named(served, fields, param):
    error = refused(served.client.post(CHAT, json=hello(**fields)))
    assert error["param"] == param


def test_an_unknown_field_means_nothing(served):
    assert served.client.post(CHAT, json=hello(future_field={"x": 1}, user="me", metadata={})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [[]]}, "prompt[0]"),
        ("completions", {"prompt": [10**9]}, "prompt"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("completions", {"prompt": "x", "best_of": 3}, "best_of"),
        ("completions", {"prompt": ["x"] * 40}, "n"),
        ("embeddings", {"input": ""}, None),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": ["x"] * 600}, "input"),
        ("embeddings", {"input": "x", "dimensions": 7}, "dimensions"),
        ("embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"input": {"a": 1}}, "input"),
        ("embeddings", {"input": "x " * 20_000}, "input"),
    ],
)
def test_the_other_routes(served, path, body, param):
    error = refused(served.client.post(f"/v1/{path}", json={"model": "tiny", **body}))
    assert param is None or error["param"] == param


def test_routes_and_methods_that_are_not(served):
    assert refused(served.client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(served.client.get(CHAT), 405)["code"] == "method_not_allowed"
    assert refused(served.client.get("/v1/models/../../etc/passwd"), 404)
    assert refused(served.client.get("/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), 404)["code"] == "model_not_found"


# ---- pictures


def bomb(side=60_000):
    """A PNG of a few kilobytes that says it has so many pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
TIFF = encoded("TIFF")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/etc/passwd", "paths and other addresses"),
        ("../secret.png", "paths and other addresses"),
        ("file:///etc/passwd", "paths and other addresses"),
        ("C:\\pictures\\cat.png", "paths and other addresses"),
        ("ftp://example.org/a.png", "paths and other addresses"),
        ("https://example.org/a.png", "fetches no pictures"),
        ("http://127.0.0.1/a.png", "fetches no pictures"),
        ("data:text/plain;base64,aGVsbG8=", "must be data:image/"),
        ("data:image/png,raw", "must be data:image/"),
        ("data:image/png;base64", "must be data:image/"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,@@@@", "damaged"),
        ("data:image/png;base64,AAA", "damaged"),
        (data_url(b"hello"), "no whole picture"),
        (data_url(SVG, "svg+xml"), "no whole picture"),
        (data_url(b"GIF89a" + SVG), "no whole picture"),
        (data_url(b"%PDF-1.7\n" + encoded()), "no whole picture"),
        (data_url(TIFF, "tiff"), "no whole picture"),
        (data_url(encoded()[:20]), "no whole picture"),
        (data_url(encoded()[:300]), "cannot be decoded"),
        (data_url(encoded("JPEG", (300, 200))[:2000], "jpeg"), "cannot be decoded"),
        (data_url(bomb()), "shrink it"),
    ],
)
def test_pictures_that_are_not_taken(served, url, message):
    error = refused(served.client.post(CHAT, json=hello(messages=shown(url))))
    assert message in error["message"]
    assert "messages[0].content[0]" in error["message"]


def test_pixels_and_pictures_of_a_request_are_counted_together(hosted):
    with server([hosted], Limits(pictures=3, pixels=3000)) as running:
        two = [data_url(encoded(size=(40, 30), seed=seed)) for seed in range(2)]
        assert running.client.post(CHAT, json=hello(messages=shown(*two))).status_code == 200
        error = refused(running.client.post(CHAT, json=hello(messages=shown(*two, two[0]))))
        assert "40 x 30 pixels are more than the 3,000" in error["message"]
        small = data_url(encoded(size=(4, 4)))
        error = refused(running.client.post(CHAT, json=hello(messages=shown(*[small] * 4))))
        assert error["message"] == "the request has more than 3 pictures"
        error = refused(running.client.post("/v1/embeddings", json={"model": "tiny", "input": [*two, two[0]]}))
        assert error["code"] == "too_large"


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}])
def test_the_size_of_webp_is_read_without_its_decoder(options):
    content = encoded("WEBP", (333, 222), **options)
    assert webp_size(content) == size_of(content, "x") == Image.open(io.BytesIO(content)).size == (333, 222)


def test_a_huge_webp_takes_no_memory():
    head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    content = b"RIFF" + struct.pack("<I", 4 + len(head)) + b"WEBP" + head
    tracemalloc.start()
    with pytest.raises(ApiError, match="16383 x 16383 pixels"):
        Intake(Limits()).picture(data_url(content, "webp"), "here")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_depth_is_counted_to_the_level():
    assert parsed(b"[" * 64 + b"]" * 64)
    with pytest.raises(ApiError, match="more than 64 levels"):
        parsed(b"[" * 66 + b"]" * 66)


# ---- sounds


def sound(rate=16_000, seconds=0.5, width=2, channels=1, tone=440.0):
    times = np.arange(int(rate * seconds)) / rate
    samples = np.repeat(np.sin(2 * np.pi * tone * times) * 0.5, channels)
    if width == 1:
        raw = (samples * 127 + 128).astype(np.uint8).tobytes()
    elif width == 3:
        raw = (samples * (2**31 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    else:
        raw = (samples * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}").tobytes()
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return base64.b64encode(stream.getvalue()).decode()


def heard(data, **limits):
    return Intake(Limits(**limits)).sound(data, "here")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_of_every_width(width, channels):
    found = heard(sound(width=width, channels=channels))
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000) * 0.5
    assert found.rate == 16_000
    np.testing.assert_allclose(found.samples, expected, atol=0.02 if width == 1 else 1e-4)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_sounds_are_brought_to_one_rate(rate):
    found = heard(sound(rate=rate, seconds=1.0))
    assert abs(len(found.samples) - 16_000) < 200
    spectrum = np.abs(np.fft.rfft(found.samples[:16_000], 16_000))
    assert abs(int(spectrum.argmax()) - 440) <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "damaged|empty"),
        (base64.b64encode(b"RIFF" + bytes(50)).decode(), "no WAV"),
        (base64.b64encode(b"ID3 an mp3").decode(), "no WAV"),
        (sound(seconds=0), "no samples"),
        (sound(rate=100), "samples a second"),
        (sound(seconds=2), "longer than 1 s"),
    ],
)
def test_sounds_that_are_not_taken(data, message):
    with pytest.raises(ApiError, match=message):
        heard(data, sound_seconds=1.0)


def test_a_model_that_hears_nothing_says_so(served):
    part = {"type": "input_audio", "input_audio": {"data": sound(), "format": "wav"}}
    error = refused(served.client.post(CHAT, json=hello(messages=[{"role": "user", "content": [part]}])))
    assert "tiny reads no sounds" in error["message"]
    part["input_audio"]["format"] = "mp3"
    error = refused(served.client.post(CHAT, json=hello(messages=[{"role": "user", "content": [part]}])))
    assert error["param"] == "messages[0].content[0].input_audio.format"
