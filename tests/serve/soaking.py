"""A server under clients that come and go, minute after minute, and how much memory it holds before and after."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from attacking import Report, afterwards, launched, websites, witness
from hostile import KEYS, KINDS, Attack, Sites, attack, request
from hostile_bodies import base, written
from victim import Victim, victim

PAUSE = 0.1
"""Seconds between two requests of one client: what is looked at is memory."""


@dataclass
class Soak:
    """Bytes that the server held: at rest after a first load, in each minute, and at rest in the end."""

    begin: int = 0
    end: int = 0
    minutes: list[int] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def growth(self) -> float:
        """Of the memory at rest, as a share."""
        return self.end / self.begin - 1


def soaked(minutes: float, clients: int = 3, rest: float = 60.0, warm: float = 60.0,
           told: Callable[[str], None] = lambda _: None) -> Soak:  # fmt: skip
    """So many minutes of load on a server of its own.

    clients  at least three: of each three one leaves in the middle of streams, one is silent, slow or closes half, and
             one is hostile in every way there is
    rest     seconds without a request after which the server gives memory back
    warm     seconds of load before memory is looked at first
    """
    found = Soak()
    with websites() as (sites, called), victim(sites.public, KEYS, rest) as server:
        before = witness(server)
        _load(server, sites, warm, clients, 0, found)
        found.begin = _at_rest(server, rest)
        told(f"at rest after {warm:g} s of load: {found.begin / 2**20:.1f} MiB")
        for minute in range(1, round(minutes) + 1):
            _load(server, sites, 60 * minutes / round(minutes), clients, minute, found)
            found.minutes.append(server.resident())
            told(f"minute {minute}: {found.minutes[-1] / 2**20:.1f} MiB, {found.report.count} requests")
        found.report.findings += afterwards(server, before)
        found.end = _at_rest(server, rest)
        told(f"at rest in the end: {found.end / 2**20:.1f} MiB, {100 * found.growth:+.1f} %")
        if called:
            found.report.findings.append("the server called where nobody may")
    return found


def _at_rest(server: Victim, rest: float) -> int:
    """Its memory once it has been left alone for its rest, and had time to give it back on a busy machine."""
    time.sleep(rest + 5)
    found = server.resident()
    for _ in range(20):
        time.sleep(2)
        found = min(found, server.resident())
    return found


def _load(server: Victim, sites: Sites, seconds: float, clients: int, part: int, found: Soak) -> None:
    end, lock = time.monotonic() + seconds, threading.Lock()

    def work(client: int) -> None:
        number = (part * clients + client) << 20
        while time.monotonic() < end:
            outcome = launched(_of(client, number, sites), server.port)
            number += 1
            with lock:
                found.report.add(outcome)
            time.sleep(PAUSE)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _of(client: int, number: int, sites: Sites) -> Attack:
    if client % 3 == 2:
        return attack(7, number, sites)
    return _leaving(number, sites) if client % 3 == 0 else _idle(number, sites)


def _leaving(number: int, sites: Sites) -> Attack:
    """A long stream, of which the beginning is read at most."""
    one = _made("honest", number, sites)
    rng = random.Random(f"leaving:{number}")
    route, body = base(rng, one.canary)
    if "embeddings" in route:
        return replace(one, end="drop", honest=False)
    content = request(rng, route, written({**body, "stream": True, "max_tokens": 300, "stop": None}))
    return replace(one, kind="leaving", steps=(content, 0.05), end=("part", "drop", "reset")[number % 3], honest=False)


def _idle(number: int, sites: Sites) -> Attack:
    """Nothing at all, a request drop by drop, a socket that is closed on one side."""
    if number % 4 == 0:
        return Attack("silent", number, "", (0.3,), "drop")
    return _made(("slow clients", "half-closed", "honest")[number % 3], number, sites)


def _made(kind: str, number: int, sites: Sites) -> Attack:
    maker = next(maker for name, maker, _ in KINDS if name == kind)
    rng = random.Random(f"soak:{number}")
    return maker(rng, kind, number, f"cnry{rng.getrandbits(64):016x}", sites)
