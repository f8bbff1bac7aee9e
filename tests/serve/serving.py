"""A server on a thread, and a loop that says what it is told to, when it is told to."""

import asyncio
import base64
import io
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
from PIL import Image

from sensorium.infer.loop import Busy, Piece
from sensorium.serve.app import create_app
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits
from sensorium.serve.run import Server, address_of, listening


def encoded(kind="PNG", size=(40, 30), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def data_url(content=None, kind="png"):
    content = encoded() if content is None else content
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def shown(*urls, text="What is it?"):
    """Messages of one user who shows pictures."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def hello(**fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **fields}


@contextmanager
def server(models, limits=None, drain=5.0, **options):
    """A real server on a free port of the loopback device, on a thread: .url, .client, .state, .server."""
    app = create_app(models, limits or Limits(), **options)
    sock = listening("127.0.0.1", 0)
    running = Server(app, drain)
    loops = []

    async def serve():
        loops.append(asyncio.get_running_loop())
        await running.serve(sockets=[sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url = address_of(sock)
    until(lambda: running.started)
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            yield SimpleNamespace(
                url=url, client=client, state=app.state.serving, server=running, app=app,
                leave=lambda: loops[0].call_soon_threadsafe(running.leave), thread=thread,
            )  # fmt: skip
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(holds, seconds=10.0):
    """Waits for something that is to be soon."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)


class Scripted:
    """A loop that says each of its words when `go` is set, and notes what was asked and cancelled.

    words  pieces of the answer; an exception is raised to whoever listens
    """

    def __init__(self, engine, words=("one ", "two"), waiting_limit=64):
        self.engine, self.words, self.limit = engine, words, waiting_limit
        self.go = threading.Event()
        self.tickets, self.sampled = [], []
        self.waiting = self.active = 0
        self.stats = SimpleNamespace(prompt_tokens=0, cached_tokens=0, completion_tokens=0, failed=0)

    def submit(self, sample, sampling, heard, owner=""):
        if self.waiting >= self.limit:
            raise Busy
        ticket = SimpleNamespace(prompt_tokens=3, cached_tokens=1, completion_tokens=0, done=False, cancelled=False)
        ticket.cancel = lambda: setattr(ticket, "cancelled", True)
        self.tickets.append(ticket)
        self.sampled.append((sample, sampling))
        threading.Thread(target=self._say, args=(ticket, heard), daemon=True).start()
        return ticket

    def _say(self, ticket, heard):
        self.waiting += 1
        self.go.wait(30)
        self.waiting -= 1
        for word in self.words:
            if ticket.cancelled:
                break
            if isinstance(word, Exception):
                heard(word)
                return
            if isinstance(word, float):
                time.sleep(word)
                continue
            ticket.completion_tokens += 1
            heard(Piece(0, word, (), None))
        heard(Piece(0, "", (), "cancelled" if ticket.cancelled else "stop"))
        ticket.done = True

    def call(self, ask):
        future = Future()
        future.set_result(ask())
        return future

    def close(self, drain=0.0):
        self.go.set()


def scripted(model, limits=None, **options):
    """A hosted model whose words are written beforehand."""
    loop = Scripted(model.engine, **options)
    return Hosted("tiny", model, loop, limits or Limits())
