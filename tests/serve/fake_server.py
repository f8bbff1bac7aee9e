"""A small OpenAI-compatible server on a thread. It says what a test wants, by words, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

COUNTING = " ".join(f"word{number}" for number in range(400))


class FakeServer:
    """answers   what a model says, by its name; a question may name another one: "say: ..."
    asked     bodies of requests, in their order
    left      answers whose reader hung up before their end
    """

    def __init__(self, answers: dict[str, str], delay: float = 0.03, key: str | None = None) -> None:
        self.answers, self.delay, self.key = answers, delay, key
        self.asked: list[dict[str, Any]] = []
        self.left = 0
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)

    async def chat(self, request: Request) -> Any:
        body = await request.json()
        self.asked.append(body)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "the API key is missing or unknown")
        question = question_of(body)
        if question == "be busy":
            return JSONResponse({"error": {"message": "the queue is full"}}, 429, headers={"Retry-After": "3"})
        if question == "be wrong":
            return _error(400, "the picture has 2,000,000,000 pixels, at most 50,000,000 are taken")
        if question == "break":
            return StreamingResponse(self._breaking(), media_type="text/event-stream")
        text = question.removeprefix("say: ") if question.startswith("say: ") else self.answers[body["model"]]
        return StreamingResponse(self._words(text, body["max_tokens"]), media_type="text/event-stream")

    async def _words(self, text: str, most: int) -> Any:
        words = text.split(" ")
        try:
            for place, word in enumerate(words[:most]):
                yield _event({"content": word if place == 0 else " " + word})
                await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.left += 1
            raise
        yield _event({}, "length" if len(words) > most else "stop")
        yield "data: " + json.dumps({"choices": [], "usage": {"completion_tokens": min(len(words), most)}}) + "\n\n"
        yield "data: [DONE]\n\n"

    async def _breaking(self) -> Any:
        yield _event({"content": "half an answer"})
        yield 'data: {"error": {"message": "the model failed on this request"}}\n\n'


def question_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": None}}, status)


def _event(delta: dict[str, Any], finish: str | None = None) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + "\n\n"


class Running:
    """An app served on a thread, at a free port of this machine."""

    def __init__(self, app: FastAPI, port: int | None = None) -> None:
        self.port = port or free_port()
        config = uvicorn.Config(app, port=self.port, log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        end = time.monotonic() + 60
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            assert time.monotonic() < end, "the server did not start in time"
            time.sleep(0.02)
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *exception: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not end"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
