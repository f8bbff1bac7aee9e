"""A server in a process of its own, to be attacked: `python victim.py PUBLIC_PORT` prints its address as JSON.

It is the server of `sensorium serve` with two tiny models of random weights. Names of hosts lead to a web server of
this machine, so that no request leaves it; whatever else it would connect to, it says so and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
NAMES = {"public.example": ["93.184.216.34"], "inside.example": ["10.0.0.1"],
         "both.example": ["93.184.216.34", "127.0.0.1"]}  # fmt: skip
LITERAL = re.compile(r"[0-9a-fx.:]+|localhost\.?", re.IGNORECASE)
PATIENCE = {"head_seconds": 1.0, "body_seconds": 2.0, "request_seconds": 60.0, "url_seconds": 2.0, "max_tokens": 400}
"""Limits that differ from what a server has by itself, so that slow clients and long answers can be many."""


@dataclass
class Victim:
    """A running server: its process, where it listens, and the file with its log."""

    process: subprocess.Popen[str]
    url: str
    log: IO[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def resident(self) -> int:
        """Bytes of memory that it holds now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RuntimeError("the server has ended")

    def said(self) -> list[str]:
        """Lines of its log so far."""
        return Path(self.log.name).read_text(errors="replace").splitlines()


@contextlib.contextmanager
def victim(public: int, keys: tuple[str, ...] = (), rest: float = 60.0) -> Iterator[Victim]:
    """Asked to end when it is no longer needed, which must be with exit code 0."""
    paths = [str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SENSORIUM_API_KEYS": ",".join(keys),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen([sys.executable, str(HERE / "victim.py"), str(public), str(rest)], env=environment,
                                   stdout=subprocess.PIPE, stderr=log, text=True)  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, Path(log.name).read_text()
            yield Victim(process, json.loads(line)["url"], log)  # type: ignore[arg-type]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(150) == 0, "the server did not end as it should"
        finally:
            process.kill()
            process.communicate()


# ---- inside the process


def resolve(host: str) -> list[str]:
    """Names of the tests, and addresses however they are written; no name server is asked."""
    from sensorium.serve import urls

    if host in NAMES:
        return NAMES[host]
    if not LITERAL.fullmatch(host):
        raise OSError("there is no such name")
    return urls.resolve(host)


def connect(public: int, address: str, seconds: float) -> socket.socket:
    if [address] != NAMES["public.example"]:
        print(f"the server would have connected to {address}", file=sys.stderr, flush=True)
        os._exit(9)
    return socket.create_connection(("127.0.0.1", public), timeout=seconds)


def plain(raw: socket.socket, host: str) -> socket.socket:
    """In place of TLS."""
    return raw


def serve(public: int, rest: float) -> None:
    from sensorium.api import Model
    from sensorium.infer.room import one_arena
    from sensorium.recipes.clip import clip
    from sensorium.recipes.llava import llava
    from sensorium.serve import prompts
    from sensorium.serve.app import create_app
    from sensorium.serve.hosted import Hosted
    from sensorium.serve.limits import Limits
    from sensorium.serve.run import address_of, listening, log_to_stderr, run
    from sensorium.serve.urls import Fetcher
    from sensorium.train.build import build_model, tokenizer_of

    one_arena()
    fetcher: Any = partial(Fetcher, resolve=resolve, connect=partial(connect, public), secured=plain)
    prompts.Fetcher = fetcher
    limits = Limits(**PATIENCE)  # type: ignore[arg-type]
    models = []
    for name, recipe in (("tiny", llava("tiny")), ("pair", clip("tiny"))):
        hosted = Hosted.of(name, Model(recipe, build_model(recipe), tokenizer_of(recipe)), limits)
        if hosted.loop is not None:
            hosted.loop.rest = rest
        models.append(hosted)
    sock = listening("127.0.0.1", 0)
    log_to_stderr()
    keys = os.environ.get("SENSORIUM_API_KEYS", "")
    app = create_app(models, limits, keys=[key for key in keys.split(",") if key], urls=True)
    print(json.dumps({"url": address_of(sock)}), flush=True)
    run(app, sock, 5.0, rest + 5)


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
