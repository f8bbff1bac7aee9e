"""Attacks over real sockets, and what must not come of them: failures, crashes, content of others."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from hostile import KEYS, WITNESS, Attack, Sites, attacks
from hostile_pictures import honest
from victim import Victim, victim

CANARY = re.compile(rb"cnry[0-9a-f]{16}|key-cnry\w+")
KEY_BYTES = tuple(key.encode() for key in KEYS)
OVERLOAD = {"shutting_down", "timeout"}
"""Codes of the documented answers of 500 and above."""
PATIENCE = 90.0


@dataclass
class Outcome:
    """What came back: statuses of the answers, everything that was read, and what is wrong with it."""

    attack: Attack
    statuses: list[int] = field(default_factory=list)
    read: bytes = b""
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The first answer's status; without one, whether the server hung up or was left."""
        if self.statuses:
            return str(self.statuses[0])
        return "none" if self.attack.end in ("read", "half") else "left"


@dataclass
class Report:
    """Statuses by kind, findings, and what the server says of itself in the end."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        kind = outcome.attack.kind
        self.count += 1
        self.statuses.setdefault(kind, Counter())[outcome.status] += 1
        self.findings += [f"attack {outcome.attack.number} ({kind}): {one}" for one in outcome.findings]
        self.slowest = sorted([*self.slowest, (outcome.seconds, f"{outcome.attack.number} ({kind})")])[-5:]

    def table(self) -> str:
        """A row for each kind, a column for each status."""
        names = sorted({status for counts in self.statuses.values() for status in counts})
        rows = [["kind", "requests", *names]]
        for kind, counts in sorted(self.statuses.items()):
            rows.append([kind, str(counts.total()), *(str(counts[name] or "") for name in names)])
        sums = [str(sum(counts[name] for counts in self.statuses.values())) for name in names]
        rows.append(["all", str(self.count), *sums])
        return "\n".join(["| " + " | ".join(rows[0]) + " |", "|" + "-|" * len(rows[0]),
                          *("| " + " | ".join(row) + " |" for row in rows[1:])])  # fmt: skip


# ---- one attack


def launched(one: Attack, port: int) -> Outcome:
    """The attack carried out, and its answers judged."""
    outcome, began = Outcome(one), time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            _send(connection, one)
            outcome.read = _read(connection, one)
    except TimeoutError:
        outcome.findings.append(f"no answer within {PATIENCE:g} s")
    except OSError as error:  # hung up while something was still sent
        outcome.read = getattr(error, "read", b"")
    outcome.seconds = time.monotonic() - began
    _judge(outcome)
    return outcome


def _send(connection: socket.socket, one: Attack) -> None:
    with contextlib.suppress(ConnectionError):  # a server that has heard enough: its answer may be there already
        for step in one.steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            else:
                time.sleep(step)
        if one.end == "half":
            connection.shutdown(socket.SHUT_WR)


def _bytes(one: Attack) -> Iterator[bytes]:
    return (step for step in one.steps if isinstance(step, bytes))


def _read(connection: socket.socket, one: Attack) -> bytes:
    read = b""
    if one.end == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if one.end in ("drop", "reset"):
        return read
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            read += part
            if one.end == "part":
                break
    return read


HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


def answers(read: bytes) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """(status, headers, body) of the answers that were read on one connection."""
    while read:
        found = HEAD.match(read)
        if found is None:
            raise ValueError(f"no answer begins with {read[:60]!r}")
        lines = [line.partition(":") for line in found[2].decode("latin-1").split("\r\n") if line]
        headers = {name.strip().lower(): value.strip() for name, _, value in lines}
        read, status = read[found.end() :], int(found[1])
        if status < 200:
            continue
        if headers.get("transfer-encoding") == "chunked":
            body, read = _unchunked(read)
        else:
            size = int(headers.get("content-length", 0 if status in (204, 304) else len(read)))
            body, read = read[:size], read[size:]
        yield status, headers, body


def _unchunked(read: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, read = read.partition(b"\r\n")
        if not size or not (count := int(size, 16)):
            return body, read[2:]
        body, read = body + read[:count], read[count + 2 :]


# ---- judging


def _judge(outcome: Outcome) -> None:
    one, wrong = outcome.attack, outcome.findings
    sent = b"".join(_bytes(one))  # a damaged body may hold its own word with another end
    strange = {found.decode() for found in CANARY.findall(outcome.read) if found in KEY_BYTES or found not in sent}
    if strange:
        wrong.append(f"an answer holds what others sent: {sorted(strange)}")
    if one.end == "part":
        return
    try:
        for status, headers, body in answers(outcome.read):
            outcome.statuses.append(status)
            _judge_answer(one, status, headers, body, wrong)
    except ValueError as error:
        if not (b"HEAD " in b"".join(_bytes(one))[:10] and outcome.statuses):
            wrong.append(f"no HTTP: {error}")
    if one.honest and outcome.statuses != [200]:
        wrong.append(f"an honest request was answered with {outcome.statuses or 'nothing'}: {outcome.read[-300:]!r}")
    if one.kind == "heads" and len(outcome.statuses) > 1 and 200 in outcome.statuses[1:]:
        wrong.append("what stood in a body was answered as a request")


def _judge_answer(one: Attack, status: int, headers: dict[str, str], body: bytes, wrong: list[str]) -> None:
    kind = headers.get("content-type", "")
    if status < 400 or not body:
        if one.honest and kind.startswith("text/event-stream") and not body.endswith(b"data: [DONE]\n\n"):
            wrong.append(f"a stream ends with {body[-200:]!r}")
        return
    if not kind.startswith("application/json"):  # of the HTTP library, before there was a request
        if (status, body) != (400, b"Invalid HTTP request received."):
            wrong.append(f"{status} is answered as {kind}: {body[:100]!r}")
        return
    error = json.loads(body)["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        wrong.append(f"{status} is answered in another shape: {body[:200]!r}")
    if status >= 500 and error["code"] not in OVERLOAD:
        wrong.append(f"{status}: {body[:200]!r}")
    if len(body) > 20_000:
        wrong.append(f"an error of {len(body):,} bytes")


# ---- the sites that pictures are fetched from


class _Public(http.server.BaseHTTPRequestHandler):
    """What public names lead to: pictures, and ways inside."""

    def do_GET(self) -> None:
        path, _, canary = self.path.partition("?")
        content = {"/picture": honest("PNG", (40, 30), 0) + canary.encode(), "/text": b"<svg>" + canary.encode(),
                   "/cut": honest("PNG", (40, 30), 0)[:200]}.get(path, b"")  # fmt: skip
        with contextlib.suppress(OSError):
            if path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/").encode("ascii", "ignore").decode())
                self.end_headers()
            elif path in ("/large", "/slow"):
                self.send_response(200)
                self.end_headers()
                for _ in range(20 if path == "/large" else 50):
                    self.wfile.write(bytes(1 << 20 if path == "/large" else 1))
                    time.sleep(0 if path == "/large" else 0.1)
            else:
                self.send_response(200 if content else 404)
                self.end_headers()
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def websites() -> Iterator[tuple[Sites, list[str]]]:
    """Their ports, and who called at the one where nobody may."""
    called: list[str] = []

    class Private(_Public):
        def handle(self) -> None:
            called.append(str(self.client_address))

    found = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_Public, Private)]
    for one in found:
        threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Sites(*(one.server_port for one in found)), called
    finally:
        for one in found:
            one.shutdown()
            one.server_close()


# ---- many attacks


def attacked(seed: int, count: int, clients: int = 8, told: int = 0) -> Report:
    """So many attacks by several clients at once on a server of its own. told: a line is printed every so many."""
    report, began = Report(), time.monotonic()
    with websites() as (sites, called), victim(sites.public, KEYS) as server:
        before = witness(server)
        with ThreadPoolExecutor(clients) as pool:
            waiting = attacks(seed, count, sites)
            for outcome in pool.map(lambda one: launched(one, server.port), waiting):
                report.add(outcome)
                if outcome.attack.kind == "witness" and said(outcome.read) != before:
                    report.findings.append(f"attack {outcome.attack.number}: the witness says something else")
                if server.process.poll() is not None:
                    report.findings.append(f"the server ended with {server.process.returncode}: {server.said()[-5:]}")
                    return report
                if told and report.count % told == 0:
                    print(f"{report.count} requests, {len(report.findings)} findings", flush=True)
        report.findings += afterwards(server, before)
        if called:
            report.findings.append(f"the server called where nobody may: {called[:3]}")
    report.seconds = time.monotonic() - began
    return report


def witness(server: Victim, key: str = KEYS[0]) -> str:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=WITNESS, timeout=60, headers=_bearer(key))
    return _words(answer.json())


def said(read: bytes) -> str:
    """The witness's answer."""
    return next((_words(json.loads(body)) for status, _, body in answers(read) if status == 200), "")


def _words(value: dict) -> str:
    if "choices" not in value:
        return json.dumps(value)
    choice = value["choices"][0]
    return json.dumps([choice["message"]["content"], *(token["token"] for token in choice["logprobs"]["content"])])


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def afterwards(server: Victim, before: str) -> list[str]:
    """What is wrong with a server once it has nothing to do."""
    wrong: list[str] = []
    end = time.monotonic() + 70
    while any(left := _left(numbers := httpx.get(f"{server.url}/metrics", timeout=30).text)):
        if time.monotonic() > end:
            wrong.append(f"requests are left in the server: {left}")
            break
        time.sleep(0.1)
    if witness(server, KEYS[1]) != before:
        wrong.append("the witness says something else in the end")
    if httpx.get(f"{server.url}/ready", timeout=30).status_code != 200:
        wrong.append("the server is no longer ready")
    log = server.said()
    told = sorted({found.decode() for found in CANARY.findall("\n".join([*log, numbers]).encode())})
    if told:
        wrong.append(f"log or numbers hold what was sent: {told[:5]}")
    for line in log:
        try:
            value = json.loads(line)
        except ValueError:
            wrong.append(f"the log says {line[:300]!r}")
            continue
        if value["level"] not in ("info", "warning"):
            wrong.append(f"the log says {line[:2000]}")
    return wrong


def _left(numbers: str) -> list[float]:
    """Requests that wait or are answered, says /metrics."""
    found = re.findall(r"^sensorium_requests_(?:active|waiting)\{\S* (\S+)$", numbers, re.M)
    return [float(one) for one in found if float(one)]
