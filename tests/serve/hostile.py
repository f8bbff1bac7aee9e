"""A grammar of hostile requests: what is sent over a socket, byte by byte, and how the socket is left.

Attack `number` of a seed is always the same, whatever is asked for besides it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hostile_bodies import base, huge_number, malformed, strange_form, strange_talk, strange_text, with_picture, written
from hostile_bodies import wrong_type as other_type
from hostile_pictures import address, hostile

KEYS = ("key-cnry00000000000a", "key-cnry00000000000b")
"""Canaries themselves: nobody is ever told one."""
WITNESS = {"model": "tiny", "messages": [{"role": "user", "content": "the witness says what it always says"}],
           "max_tokens": 8, "logprobs": True}  # fmt: skip


@dataclass(frozen=True)
class Sites:
    """Ports of this machine: of a web server that public names lead to, and of one that nobody may reach."""

    public: int
    private: int


@dataclass(frozen=True)
class Attack:
    """steps   what is sent: bytes, or seconds in which nothing is
    end     read: the answer is awaited; half: nothing more is sent, and the answer awaited; part: some of the answer is
            read; drop: the socket is closed; reset: and the server told so rudely
    honest  a valid request, which must be answered with 200
    """

    kind: str
    number: int
    canary: str
    steps: tuple[bytes | float, ...]
    end: Literal["read", "half", "part", "drop", "reset"] = "read"
    honest: bool = False


def attack(seed: int, number: int, sites: Sites) -> Attack:
    rng = random.Random(f"{seed}:{number}")
    canary = f"cnry{rng.getrandbits(64):016x}"
    [(kind, maker, _)] = rng.choices(KINDS, [weight for _, _, weight in KINDS])
    return maker(rng, kind, number, canary, sites)


def request(
    rng: random.Random, route: str, body: bytes, *, method: str = "POST", more: tuple[bytes, ...] = (), key: str = "",
    last: bool = True,
) -> bytes:  # fmt: skip
    """A whole request. more: header lines; last: the connection is closed after it."""
    lines = [f"{method} {route} HTTP/1.1".encode(), b"host: 127.0.0.1", b"content-type: application/json",
             b"content-length: %d" % len(body), f"authorization: Bearer {key or rng.choice(KEYS)}".encode(),
             *([b"connection: close"] if last else []), *more]  # fmt: skip
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# ---- one maker a kind


def _body(change: Callable[[random.Random, dict[str, Any]], dict[str, Any] | bytes]) -> Any:
    def made(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
        route, body = base(rng, canary)
        changed = change(rng, body)
        content = changed if isinstance(changed, bytes) else written(changed)
        return Attack(kind, number, canary, (request(rng, route, content),))

    return made


def _honest(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    route, body = base(rng, canary)
    if "embeddings" not in route and rng.random() < 0.4:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Attack(kind, number, canary, (request(rng, route, written(body)),), honest=True)


def _witness(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    content = written(WITNESS)
    return Attack(kind, number, canary, (request(rng, "/v1/chat/completions", content),), honest=True)


def _picture(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    route, body = with_picture(rng, canary, address(hostile(rng, canary), rng))
    return Attack(kind, number, canary, (request(rng, route, written(body)),))


def _url(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Addresses that lead, or are redirected, to where the server stands."""
    inside = [f"127.0.0.1:{sites.private}", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::]",
              "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost", "LOCALHOST.", "169.254.169.254", "10.0.0.1",
              "192.168.0.1", "[fe80::1]", "[fd00:ec2::254]", "100.64.0.1", "inside.example", "both.example",
              "nobody.example", "a" * 70 + ".example", "\u24db\u24de\u24d2\u24d0\u24db", "127.0.0.1.", "user@127.0.0.1",
              "public.example@127.0.0.1", "127.0.0.1#@public.example", "public.example:22", "[::1", "", " ",
              "255.255.255.255", "[64:ff9b::7f00:1]", "0.0.0.0", "%31%32%37.0.0.1",
              "public.example\\@127.0.0.1"]  # fmt: skip
    target = (
        f"{rng.choice(['https', 'https', 'http', 'HTTPS', 'ftp', 'file', 'gopher'])}://{rng.choice(inside)}/{canary}"
    )
    url = rng.choice(
        [
            target, target, f"https://public.example/to/{target}", f"https://public.example/to/{target}",
            "https://public.example/to/" + "/to/" * rng.choice([1, 2, 5]) + f"https://{rng.choice(inside)}/",
            f"https://public.example/picture?{canary}", f"https://public.example/large?{canary}",
            f"https://public.example/text?{canary}", f"https://public.example/cut?{canary}",
            f"https://public.example/missing?{canary}", "https://public.example/\r\nHost: x", "https:/etc/passwd",
            f"/etc/passwd?{canary}", "file:///etc/passwd", "//127.0.0.1/x", "https://", "https:", "\\\\127.0.0.1\\x",
            "../../../etc/passwd", "/proc/self/environ", "https://public.example/" + "a" * 20_000,
        ]
    )  # fmt: skip
    if rng.random() < 0.01:
        url = f"https://public.example/slow?{canary}"
    route, body = with_picture(rng, canary, url)
    return Attack(kind, number, canary, (request(rng, route, written(body)),))


def _path(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Ways out of what is served, and methods that are not."""
    up = rng.choice(["../", "..%2f", "%2e%2e/", "..\\", "..%5c", "....//", "%252e%252e%252f", "..;/", "..%c0%af", "/"])
    ends = [
        "etc/passwd",
        "proc/self/environ",
        "%00",
        "\0",
        canary,
        "?" + "&".join(["a=b"] * 500),
        "#x",
        "%zz",
        "%",
        "\xff",
    ]
    root = rng.choice(["/", "/v1/", "/v1/models/", "/v1/models/tiny/", "/ui/", "/ui/file=", "/static/", "/metrics/",
                       "/openapi.json/", "//", "", "http://127.0.0.1:1/", "*", "/v1/chat/completions/"])  # fmt: skip
    route = root + up * rng.choice([0, 1, 3, 12]) + rng.choice(ends)
    route = rng.choice([route, route, route, rng.choice(["/health", "/ready", "/metrics", "/openapi.json"]),
                        "/v1/models", "/v1/models/" + canary, "/v1/models/" + "a" * rng.choice([300, 40_000,
                        90_000])])  # fmt: skip
    method = rng.choice(["GET"] * 8 + ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "get", "POST",
                                       canary, "X" * 300, "PROPFIND", "G\xcbT"])  # fmt: skip
    lines = (
        f"{method} {route} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: Bearer {KEYS[0]}\r\n\r\n"
    )
    return Attack(kind, number, canary, (lines.encode("latin-1", "replace"),))


def _head(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Heads that mean two things, or nothing."""
    route, body = base(rng, canary)
    content = written(body)
    size = b"content-length: %d\r\n" % len(content)
    start = f"POST {route} HTTP/1.1\r\nhost: x\r\n".encode()
    key = f"authorization: Bearer {rng.choice(KEYS)}\r\n".encode()
    json_type = b"content-type: application/json\r\n"
    inner = request(
        rng, "/v1/chat/completions", written({**WITNESS, "messages": [{"role": "user", "content": canary}]})
    )
    chunked = b"transfer-encoding: chunked\r\n"
    pieces = b"%x\r\n%s\r\n" % (len(content), content)
    odd = rng.choice([b"-1", b"+5", b"0x10", b"1e3", b"9" * 30, b"", b"5, 6", b"\xb2", b" 7 ", b"18446744073709551616"])
    whole, last = start + json_type + key, b"connection: close\r\n"
    given = rng.choice(
        [
            whole + b"content-length: " + odd + b"\r\n\r\n" + content,
            whole + size + b"content-length: 3\r\n\r\n" + content,
            whole + size + chunked + b"\r\n0\r\n\r\n" + inner,
            whole + b"content-length: 5\r\n" + chunked + b"\r\n" + pieces + b"0\r\n\r\n",
            whole + b"transfer-encoding: gzip, chunked\r\n\r\n" + pieces + b"0\r\n\r\n",
            whole + b"transfer-encoding: \x0bchunked\r\n\r\n" + pieces + b"0\r\n\r\n",
            whole + chunked + b"\r\n" + pieces + b"0\r\nx: " + canary.encode() + b"\r\n\r\n",
            whole + chunked + b"\r\n" + rng.choice([b"-5", b"zz", b"f" * 16, b"5;" + b"a" * 9000, b""]) + b"\r\nhello",
            whole + size + last + b"x-many: y\r\n" * rng.choice([10, 200, 9000]) + b"\r\n" + content,
            whole + size + last + b"x-long: " + b"a" * rng.choice([1000, 100_000]) + b"\r\n\r\n" + content,
            whole + size + last + b"expect: 100-continue\r\n\r\n" + content,
            whole + size + last + b"content-encoding: gzip\r\n\r\n" + content,
            start + json_type + size + b"authorization: " + rng.choice(
                [b"Bearer ", b"Bearer \xff\xfe", b"Basic eDp5", b"bearer x", b"x" * 5000, b"Bearer " + canary.encode()]
            ) + b"\r\nconnection: close\r\n\r\n" + content,
            start + key + size + b"content-type: " + rng.choice(
                [b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data; boundary=x", b"\xff", b"",
                 b"application/x-www-form-urlencoded", b"application/JSON;x=" + b"y" * 3000]
            ) + b"\r\nconnection: close\r\n\r\n" + content,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(40), b"GET /health\r\n", b"\r\n\r\n\r\n",
            b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n", b"GET /v1/models HTTP/1.1\r\n\r\n", rng.randbytes(400),
            b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            b"GET /health HTTP/1.1\r\n folded: x\r\nhost : x\r\n\r\n", b"GET /health HTTP/1.1\nhost: x\n\n",
            b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
        ]
    )  # fmt: skip
    return Attack(kind, number, canary, (given,))


def _slow(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Clients that take their time, and more than there is."""
    route, body = base(rng, canary)
    given = request(rng, route, written(body))
    place = rng.choice([rng.randrange(1, 60), given.index(b"\r\n\r\n") + 4, rng.randrange(1, len(given))])
    pause = rng.choice([0.05, 0.3, 2.5])
    drip = tuple(part for byte in given[place : place + 20] for part in (bytes([byte]), 0.02))
    steps = rng.choice([(given[:place], pause, given[place:]), (given[:place], *drip, given[place + 20 :]), (pause,)])
    return Attack(kind, number, canary, steps, rng.choice(["read", "read", "drop"]))


def _half(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Sockets that are closed on one side, or both, before, within and behind a request and its answer."""
    route, body = base(rng, canary)
    if "embeddings" not in route:
        body |= {"stream": rng.random() < 0.5, "max_tokens": rng.choice([4, 60, 200])}
    given = request(rng, route, written(body))
    cut = rng.choice([0, rng.randrange(1, len(given)), len(given), len(given)])
    steps = (given[:cut], rng.choice([0.0, 0.0, 0.02, 0.1]))
    return Attack(kind, number, canary, steps, rng.choice(["half", "part", "drop", "reset"]))


def _several(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """One connection, several requests, not one waiting for the answer before it."""
    parts = []
    for _ in range(rng.choice([2, 3, 6])):
        route, body = base(rng, canary)
        changed = rng.choice([body, body, other_type(rng, body), strange_text(rng, body)])
        parts.append(request(rng, route, written(changed), last=False))
    parts.append(request(rng, "/v1/models", b"", method="GET"))
    return Attack(kind, number, canary, tuple(parts) if rng.random() < 0.5 else (b"".join(parts),))


def _large(rng: random.Random, kind: str, number: int, canary: str, sites: Sites) -> Attack:
    """Bodies about as large as may be, and larger."""
    route, body = base(rng, canary)
    text = canary + rng.choice([" ", "a", "é", "ab ", "\U0001f600"]) * rng.choice([60_000, 1_000_001, 5_000_000])
    content = rng.choice(
        [
            lambda: written({**body, rng.choice(["user", "x", "suffix"]): text}),
            lambda: written({**body, "messages": [{"role": "user", "content": text}], "prompt": text, "input": text}),
            lambda: written({**body, "guided_choice": [text, "x"]}),
            lambda: written(body) + b" " * rng.choice([1 << 20, 33 << 20]),
            lambda: json.dumps({**body, "input": [canary] * 600, "prompt": ["x"] * 600}).encode(),
        ]
    )()
    return Attack(kind, number, canary, (request(rng, route, content),))


KINDS: tuple[tuple[str, Any, float], ...] = (
    ("honest", _honest, 14), ("witness", _witness, 3), ("malformed JSON", _body(malformed), 14),
    ("wrong types", _body(other_type), 14), ("huge numbers", _body(huge_number), 9),
    ("strange text", _body(strange_text), 6), ("strange forms", _body(strange_form), 5), ("strange talk",
    _body(strange_talk), 3), ("pictures", _picture, 12),
    ("addresses", _url, 7), ("paths", _path, 6), ("heads", _head, 5), ("slow clients", _slow, 0.7),
    ("half-closed", _half, 5), ("several at once", _several, 1.5), ("large", _large, 0.5),
)  # fmt: skip


def attacks(seed: int, count: int, sites: Sites) -> Iterator[Attack]:
    return (attack(seed, number, sites) for number in range(count))
