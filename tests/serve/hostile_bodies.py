"""Bodies that no honest client sends, made of valid ones: another type, too large a number, a strange text or form."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from hostile_pictures import address, hostile

HUGE: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**31 - 1, 2**53 + 1, 2**63, 2**63 - 1, -(2**63), 2**64, 10**30, 10**400, -(10**400), 0.5, 1e-320,
    1e-45, 5e-324, 1e300, 1.7e308, -1e308, -0.0, 1.0, 2.0, 1e16, 0.1 + 0.2, 4096, 4097, 128, 129, 20, 21,
)  # fmt: skip
WORDS: tuple[str, ...] = (
    "", "\0", " ", "\n" * 50, "\u202e", "\ufeff", "\ufffd", "\U0001f468\u200d\U0001f469", "a\u0301" * 200, "ß" * 30_000,
    "<|im_start|>system", "<|im_end|>", "<image>", "<s>", "</s>", "<|endoftext|>", "{{ 7 * 7 }}", "{% raw %}", "%s%n%x",
    "${jndi:x}", "'; DROP TABLE x; --", "../../etc/passwd", "/etc/passwd", "\\\\host\\share", "file:///etc/passwd",
    "data:image/png;base64,", "data:", "true", "null", "0", "[]", "1e999", "\x1b[2J", "\u2028\u2029", "a" * 100_000,
    "\u0e33" * 1000, "\U0010ffff", "x" * 257, "\r\nX-Injected: yes",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [{}], {"": ""}, [None], {"type": "text"}, [0] * 5, [""], ["a", 1, None, {}],
    {"type": "image_url"}, {"type": 3}, [[[[]]]], {"url": None}, "x", 3, -2.5, ["x"] * 3000, {"$ref": "#"},
)  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    {"type": "object"}, {}, {"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"$ref": "http://127.0.0.1:1/x.json"}, {"$ref": "file:///etc/passwd"}, {"type": "wrong"}, {"type": []},
    {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"not": {}}, {"enum": []}, {"const": None}, {"enum": [{}]},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "["}, {"type": "string", "minLength": 10**9},
    {"type": "array", "minItems": 10**6, "items": {}}, {"type": "integer", "minimum": 10**300, "maximum": 10**301},
    {"type": "number", "multipleOf": 1e-300}, {"type": "integer", "multipleOf": 0}, {"minimum": "a"},
    {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(800)}},
    {"type": "object", "required": [f"r{n}" for n in range(500)]}, {"format": "date-time", "type": "string"},
    {"anyOf": [{"const": str(n)} for n in range(2000)]}, {"x-guidance": {"whitespace_pattern": "(", "x": 3}},
    {"type": "object", "patternProperties": {"(": {}}}, {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "array", "prefixItems": [{"type": "null"}] * 300}, {"type": "object", "properties": {"a": False}},
)  # fmt: skip
RULES: tuple[str, ...] = (
    "(", "(a+)+$", "(a|aa)+", "a{1000000}", "((a{100}){100}){100}", "[", "\\", "(?=a)", "(?<!a)", "\\1", "(?i)x*", ".*",
    "(.*)*", "[^\\x00-\\xff]", "\\p{Greek}+", "(?:a?){50}a{50}", "[a-z]{0,60000}", "()", "^$", "\\b\\B", "x" * 60_000,
    "(" * 200 + ")" * 200, "(?P<a>b)", "\\u{110000}", "(a|b|c|d){0,400}z", "[\\w-\\d]", "a**", "\0", "/", "%json {}",
    "[01]*1[01]{16}", ".*a.{200}b", "\n", '"', "/ | start",
)  # fmt: skip


def base(rng: random.Random, canary: str) -> tuple[str, dict[str, Any]]:
    """Route and body of an honest request with a canary in it."""
    seed = {"seed": rng.randrange(100)} if rng.random() < 0.3 else {}
    most = rng.choice([1, 2, 4, 8])
    words = f"{canary} {rng.choice(['what is it?', 'hello', 'go on', 'say it again and again ' * 4])}"
    match rng.choices(["chat", "shown", "text", "vectors", "pair"], [4, 2, 3, 2, 1])[0]:
        case "chat":
            body = {"messages": [{"role": "user", "content": words}], "logprobs": True, "top_logprobs": 2}
            return "/v1/chat/completions", {"model": "tiny", "max_tokens": most, **body, **seed}
        case "shown":
            part = {
                "type": "image_url",
                "image_url": {"url": address(hostile(random.Random(1), canary), random.Random(0))},
            }
            content = [part, {"type": "text", "text": words}]
            body = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]}
            return "/v1/chat/completions", {"model": "tiny", "max_tokens": most, **body, **seed}
        case "text":
            more = {"echo": True, "n": rng.choice([1, 2]), "temperature": rng.choice([0, 0.7]), "stop": ["\n\n"]}
            return "/v1/completions", {"model": "tiny", "prompt": words, "max_tokens": most, **more, **seed}
        case "vectors":
            return "/v1/embeddings", {"model": "tiny", "input": [words, "and another"]}
        case _:
            return "/v1/embeddings", {"model": "pair", "input": canary, "encoding_format": "base64"}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value inside one, the way to it."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at the end of the way."""
    if not path:
        return new
    step, *rest = path
    if isinstance(value, dict):
        return {**value, step: put(value.get(step), tuple(rest), new)}
    return [put(one, tuple(rest), new) if place == step else one for place, one in enumerate(value)]


FIELDS: tuple[str, ...] = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_tokens", "max_completion_tokens", "n", "seed", "logprobs", "top_logprobs", "best_of", "dimensions", "stop",
    "stream",
    "stream_options", "logit_bias", "tools", "tool_choice", "response_format", "user", "echo", "suffix",
    "encoding_format", "guided_choice", "structured_outputs",
)  # fmt: skip


def wrong_type(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Another value where one stands, or in a field that stood empty."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        path = (rng.choice(FIELDS),) if rng.random() < 0.4 else rng.choice(list(places(body))[1:])
        body = put(body, path, rng.choice(VALUES))
    return body


def huge_number(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    for _ in range(rng.choice([1, 2, 3])):
        match rng.randrange(4):
            case 0:
                keys = [rng.choice([*map(str, range(60, 70)), "-1", "1e3", str(10**30), "x", "0x1"]) for _ in range(3)]
                body = {**body, "logit_bias": {key: rng.choice([-100, 100, *HUGE]) for key in keys}}
            case 1 if "prompt" in body or "input" in body:
                name = "prompt" if "prompt" in body else "input"
                body = {
                    **body,
                    name: rng.choice([[rng.choice(HUGE)], [[rng.choice(HUGE)], [1]], [1, 2, 3], [5] * 4000]),
                }
            case _:
                body = {**body, rng.choice(FIELDS[:15]): rng.choice(HUGE)}
    return body


def strange_text(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    texts = [path for path in places(body) if path and isinstance(_at(body, path), str)]
    path = rng.choice(texts)
    word = rng.choice(WORDS)
    return put(body, path, rng.choice([word, _at(body, path) + word, word + _at(body, path), word * 3]))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def strange_form(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Forms of an answer that cannot be, are endless, or take long to understand."""
    schema, rule = rng.choice(SCHEMAS), rng.choice(RULES)
    for _ in range(rng.choice([0, 0, 1, 20, 70])):
        schema = rng.choice([{"type": "array", "items": schema}, {"anyOf": [schema, {"type": "null"}]}])
    return {
        **body,
        **rng.choice(
            [
                {"guided_json": schema}, {"guided_regex": rule}, {"structured_outputs": {"regex": rule}},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                {"structured_outputs": {"json": schema}}, {"guided_choice": [rng.choice(WORDS) or "x"] * 9},
                {"guided_choice": [f"{n}" * 40 for n in range(1000)]}, {"guided_json": schema, "guided_regex": rule},
                {"response_format": {"type": rng.choice(["json_object", "text", "xml", "json_schema"])}},
            ]
        ),
    }  # fmt: skip


def strange_talk(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Conversations in an order, of a length or with roles that are not usual."""
    if "messages" not in body:
        return strange_text(rng, body)
    first = body["messages"]
    empty, told = {"role": "user", "content": rng.choice(["", [], None])}, {"role": "assistant", "content": "so"}
    return {
        **body,
        "messages": rng.choice(
            [
                [], first * 40, first * 5000, [*first, told], [told, *first], [*first, empty], [empty],
                [{**first[0], "x": first}], [{"role": "tool", "content": "x", "tool_call_id": "7"}, *first],
                [{"role": "robot", "content": "x"}],
                [{**told, "tool_calls": [{"id": 1}]}, *first], [{"role": "system", "content": "s"}] * 3,
                [{"role": "user", "content": [{"type": "text", "text": "x"}] * 3000}],
                [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklG",
                "format": "wav"}}]}],
            ]
        ),
    }  # fmt: skip


def with_picture(rng: random.Random, canary: str, url: str) -> tuple[str, dict[str, Any]]:
    """Route and body of a request with a picture at an address."""
    words = f"{canary} what is it?"
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url} if rng.random() < 0.9 else url}
    parts = [part] * rng.choice([1, 1, 1, 2, 17])
    if rng.random() < 0.25:
        given = rng.choice([[url], [part], [parts], url, [[*parts, {"type": "text", "text": words}]]])
        return "/v1/embeddings", {"model": rng.choice(["tiny", "pair"]), "input": given}
    message = {"role": "user", "content": [*parts, {"type": "text", "text": words}]}
    return "/v1/chat/completions", {"model": "tiny", "messages": [message], "max_tokens": 2}


# ---- as bytes


def written(body: Any) -> bytes:
    return json.dumps(body).encode()


def malformed(rng: random.Random, body: dict[str, Any]) -> bytes:
    """No JSON, or hardly."""
    content = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    place = rng.randrange(len(content))
    other = rng.choice([b"", b"{", b"}", b'"', b"\\", b",", b"\0", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"NaN",
    b"1e999",
                        b"-Infinity", b"//", b"\\ud800", b"\\u0000", b"\xef\xbb\xbf", b"[" * 100, b"'"])  # fmt: skip
    return rng.choice(
        [
            lambda: content[:place],
            lambda: content[:place] + other + content[place:],
            lambda: content[:place] + other + content[place + 1 :],
            lambda: content[: place // 2] + content[place:],
            lambda: content + content,
            lambda: content.decode().encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.replace(b'"max_tokens"', b'"max_tokens": 3, "max_tokens"'),
            lambda: b"[" * rng.choice([65, 5000, 100_000]) + other,
            lambda: b'{"a":' * 3000 + b"1" + b"}" * 3000,
            lambda: b"[" + b"0," * 400_000 + b"0]",
            lambda: other * rng.choice([0, 1, 1000]),
            lambda: b'{"model": ' + b"9" * 100_000 + b"}",
            lambda: rng.randbytes(300),
            lambda: content.replace(b":", b"=", 1),
        ]
    )()
