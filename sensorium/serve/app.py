"""The routes of the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

import sensorium
from sensorium.serve import errors
from sensorium.serve.answers import ChatAnswer, EmbeddingAnswer, Health, ModelCard, ModelList, TextAnswer
from sensorium.serve.chat import answer_chat
from sensorium.serve.completions import answer_text
from sensorium.serve.embeddings import answer_embedding
from sensorium.serve.errors import ErrorAnswer
from sensorium.serve.gate import Gate, State
from sensorium.serve.hosted import Hosted, chosen
from sensorium.serve.limits import JsonRoute, Limits
from sensorium.serve.metrics import Metrics
from sensorium.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest

SAID = {
    400: "The request is to be changed", 401: "No valid API key", 404: "No such model", 408: "The body was too slow",
    413: "The body is too large", 415: "The body is no JSON", 429: "Too much to do: see Retry-After",
    500: "The server failed", 503: "The server is shutting down", 504: "It took too long",
}  # fmt: skip
STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "chunks, ended by data: [DONE]"}}}


class App(FastAPI):
    """FastAPI, whose description of the interface leaves out the one answer that is never given: 422."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        return described


def create_app(
    models: Sequence[Hosted], limits: Limits | None = None, *, keys: Iterable[str] = (), origins: Sequence[str] = (),
    urls: bool = False,
) -> FastAPI:  # fmt: skip
    """The server as an ASGI application; `app.state.serving` is its State.

    keys     API keys of which a client must give one; none: everybody may ask
    origins  of web pages that may ask (CORS)
    urls     pictures are fetched by https address where a request says so
    """
    hashed = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
    state = State(models, limits or Limits(), Metrics(models), hashed, urls)
    app = App(
        title="Sensorium", version=sensorium.__version__, docs_url=None, redoc_url=None,
        description="Multimodal models behind the OpenAI interface.",
    )  # fmt: skip
    app.state.serving = state
    errors.install(app)
    app.include_router(_work(state))
    app.include_router(_about(state))
    app.add_middleware(Gate, state=state)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["x-request-id", "x-sensorium-ignored", "retry-after"],
        )  # fmt: skip
    return app


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": SAID[status]} for status in statuses}


def _security(state: State) -> list[Any]:
    return [Security(HTTPBearer(auto_error=False))] if state.keys else []


def _work(state: State) -> APIRouter:
    """What asks for work."""
    router = APIRouter(
        prefix="/v1", route_class=JsonRoute, dependencies=_security(state),
        responses=_responses(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
    )  # fmt: skip

    def model_of(request: Request, name: str) -> Hosted:
        hosted = chosen(state.models, name)
        request.scope["sensorium"].model = hosted.name
        return hosted

    @router.post("/chat/completions", response_model=ChatAnswer, responses={200: {"content": STREAM}})
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """The assistant's next answer to a conversation with pictures and sounds."""
        return await answer_chat(request, body, model_of(request, body.model))

    @router.post("/completions", response_model=TextAnswer, responses={200: {"content": STREAM}})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Plain text, continued."""
        return await answer_text(request, body, model_of(request, body.model))

    @router.post("/embeddings", response_model=EmbeddingAnswer)
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """Unit vectors of texts and pictures."""
        return await answer_embedding(request, body, model_of(request, body.model))

    return router


def _about(state: State) -> APIRouter:
    """What says how things are."""
    router = APIRouter()
    security = _security(state)

    @router.get("/v1/models", dependencies=security, responses=_responses(401))
    async def models() -> ModelList:
        """The models that are served."""
        return ModelList(data=[one.card() for one in state.models])

    @router.get("/v1/models/{name:path}", dependencies=security, responses=_responses(401, 404))
    async def model(name: str) -> ModelCard:
        """One of them."""
        return chosen(state.models, name).card()

    @router.get("/health")
    async def health() -> Health:
        """The process lives."""
        return Health(status="ok")

    @router.get("/ready", responses={503: {"model": Health, "description": "Draining"}})
    async def ready() -> Health:
        """New requests are taken."""
        status = "draining" if state.draining else "ready"
        value = Health(status=status)
        return value if status == "ready" else JSONResponse(value.model_dump(), 503)  # type: ignore[return-value]

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
