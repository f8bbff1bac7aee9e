"""Many streaming clients at once, through each side's own OpenAI-compatible server on 127.0.0.1.

1, 4 and 16 clients ask for chat completions of 64 tokens, one after another each, every prompt of about 64 tokens and
new. Measured are tokens a second of all clients together, by the clock and by the processor time of the server's
process (with one thread that is the ratio of a quiet machine), seconds to the first token, errors, and the memory that
the server's process holds at the end. The servers are started once, stay idle while another has its turn, and compute
with the same number of threads; the clients are this process's own threads.

Sides: `sensorium serve`, llama-cpp-python's server (one request at a time, the others wait: its own interruption of a
request by the next is off), `transformers serve`, plain and with its continuous batching.

    python -m benchmarks.serving [--clients 1 4 16] [--tokens 64] [--rounds 3] [--only PATTERNS] [--json FILE]
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from benchmarks import prompts
from benchmarks.turns import Missing, Sides, begin, compare, parser, save, spread, table
from benchmarks.weights import Weights

PAIRS = (
    *((f"sensorium {ours}", f"llama.cpp {theirs}") for ours, theirs in (("bf16", "bf16"), ("int8", "q8_0"))),
    ("sensorium int4", "llama.cpp q4_1"),
    *((f"sensorium {ours}", f"transformers {ours}") for ours in ("fp32", "bf16")),
    ("sensorium fp32", "transformers fp32 batching"),
)
START_S, ANSWER_S = 180, 300


@dataclass(frozen=True)
class Heard:
    """One answer as a client saw it; error: what came instead. Times in seconds from the request."""

    first: float
    last: float
    tokens: int
    error: str = ""


def ask(port: int, model: str, messages: Sequence[dict[str, Any]], count: int) -> Heard:
    """One streamed chat completion."""
    body = {"model": model, "messages": plain(messages), "max_tokens": count, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            return Heard(0, time.perf_counter() - began, 0, f"{answer.status}: {answer.read(200)!r}")
        return listen(answer, began)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Heard(0, time.perf_counter() - began, 0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def listen(lines: Iterable[bytes], began: float) -> Heard:
    """Server-sent events. Tokens are those of the usage where the server says it, else the pieces that came."""
    first = last = 0.0
    pieces, said = 0, None
    for line in lines:
        if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
            continue
        event = json.loads(line[5:])
        if "error" in event:
            return Heard(first, last, pieces, str(event["error"])[:200])
        said = (event.get("usage") or {}).get("completion_tokens") or said
        if any((choice.get("delta") or {}).get("content") for choice in event.get("choices", [])):
            pieces += 1
            last = time.perf_counter() - began
            first = first or last
    return Heard(first, last, said or pieces, "" if pieces else "no text came")


def plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contents as one text: what every server takes."""
    return [{"role": one["role"], "content": "".join(part["text"] for part in one["content"])} for one in messages]


class Server:
    """A server's process, ready when it lists its models. Closed, it is asked to end, and then made to."""

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        self.name, self.port = name, port
        self.log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.models = self._ready()
        except BaseException:  # also when told to end while it starts
            self.close()
            raise

    def _ready(self) -> list[str]:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise Missing(f"the server ended with exit code {self.process.returncode}: {self.said()}")
            with suppress(OSError, http.client.HTTPException, ValueError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/v1/models")
                answer = connection.getresponse()
                if answer.status == 200:
                    return [one["id"] for one in json.loads(answer.read())["data"]]
            time.sleep(0.2)
        raise Missing(f"the server was not ready in {START_S} s: {self.said()}")

    def said(self) -> str:
        self.log.seek(0)
        return " / ".join(self.log.read().strip().splitlines()[-3:])[-300:]

    def memory(self) -> float:
        """Megabytes that its process holds."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def worked(self) -> float:
        """Seconds of processor time that its process took so far."""
        with open(f"/proc/{self.process.pid}/stat") as line:
            user, system = line.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def commands(weights: Weights, port: int) -> dict[str, tuple[list[str], str]]:
    """By side the command that starts its server, and the model that is asked for ("": the one it lists)."""
    python, threads = sys.executable, os.environ["OMP_NUM_THREADS"]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    ours = {
        f"sensorium {numbers}": ([python, "-m", "sensorium", "serve", str(weights.text("bf16")), *where, *more], "")
        for numbers, more in (("fp32", ["--precision", "fp32"]), ("bf16", ["--precision", "bf16"]),
                              ("int8", ["--quantize", "int8"]), ("int4", ["--quantize", "int4"]))
    }  # fmt: skip
    cpp = {
        f"llama.cpp {numbers}": (
            [python, "-m", "llama_cpp.server", "--model", str(weights.gguf(numbers)), *where, "--n_ctx", "2048",
             "--n_threads", threads, "--n_threads_batch", threads, "--interrupt_requests", "False"], "")
        for numbers in ("bf16", "q8_0", "q4_1")
    }  # fmt: skip
    folder = str(weights.text("bf16"))
    theirs = {
        f"transformers {numbers}{name}": (
            [python, "-m", "transformers.cli.transformers", "serve", folder, *where, "--device", "cpu", "--dtype",
             dtype, *more], folder)
        for numbers, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        for name, more in (("", []), (" batching", ["--continuous-batching"]))
    }  # fmt: skip
    return {**ours, **cpp, **theirs}


class Load:
    """A server and how it is asked."""

    def __init__(self, name: str, command: list[str], port: int, model: str) -> None:
        self.server = Server(name, command, port)
        self.model = model or self.server.models[0]

    def close(self) -> None:
        self.server.close()

    def run(self, clients: int, requests: int, count: int, number: int) -> dict[str, Any]:
        """`requests` answers by `clients` at once, no two prompts alike."""
        asked = [prompts.story(1000 * number + 100 * clients + one) for one in range(requests)]
        began, worked = time.perf_counter(), self.server.worked()
        with ThreadPoolExecutor(clients) as pool:
            heard = list(pool.map(lambda one: ask(self.server.port, self.model, one, count), asked))
        seconds = time.perf_counter() - began
        good = [one for one in heard if not one.error]
        if not good:
            raise Missing(f"no answer without an error: {heard[0].error}")
        return {
            "rate": sum(one.tokens for one in good) / seconds,
            "work": sum(one.tokens for one in good) / (self.server.worked() - worked),
            "first": statistics.median(one.first for one in good),
            "slowest first": max(one.first for one in good),
            "errors": len(heard) - len(good),
            "tokens": sum(one.tokens for one in good),
            "memory": self.server.memory(),
        }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def measure(sides: Sides, clients: int, count: int) -> dict[str, Any]:
    requests = max(4, clients)
    measured = sides.rounds(lambda side, number: side.call("run", clients, requests, count, number))
    measured = {name: figures for name, figures in measured.items() if figures}
    rows = {name: [one["rate"] for one in figures] for name, figures in measured.items()}
    table(f"{clients} clients at once, {requests} answers of {count} tokens", "tokens/s of all", rows)
    for name, figures in measured.items():
        first, slowest = ([one[key] for one in figures] for key in ("first", "slowest first"))
        print(f"    {name:24} first token {spread(first, 2)} s, slowest {spread(slowest, 2)} s, "
              f"errors {sum(one['errors'] for one in figures)}, resident {figures[-1]['memory']:.0f} MB")  # fmt: skip
    compare(rows, PAIRS)
    print("  the same by the processor time of the servers, whatever else the machine does:")
    compare({name: [one["work"] for one in figures] for name, figures in measured.items()}, PAIRS)
    return measured


def main() -> None:
    made = parser(__doc__ or "", rounds=3)
    made.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once (default 1 4 16)")
    made.add_argument("--tokens", type=int, default=64, help="of each answer (default 64)")
    options = begin(made)
    figures = {}
    with Weights.at(options.weights) as weights, Sides(options) as sides:
        for name in commands(weights, 0):
            port = free_port()
            command, model = commands(weights, port)[name]
            sides.add(name, Load, name, command, port, model)
        for clients in options.clients:
            figures[str(clients)] = measure(sides, clients, options.tokens)
    save(options, figures)


if __name__ == "__main__":
    main()
