"""The web page of the server: chat with pictures, by gradio, which is asked for only here."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.errors import UserError
from sensorium.serve.page_guard import Guard

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH = "/ui"

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy: a browser takes nothing from other hosts and tells them nothing, whatever a model writes.
The framework's own scripts stand in the page, so inline ones are allowed; Markdown is sanitised before it is shown."""


def need_gradio() -> None:
    """Raises UserError that names the extra, where gradio is not installed."""
    for name in ("gradio", "httpx"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the web page needs {name}, which is not installed: pip install 'sensorium[ui]'")


def mount_page(app: FastAPI, base_url: str, models: Sequence[str], *, keyed: bool = False) -> None:
    """Put the page at /ui of an app, before the app is started. It talks to the server at base_url and nothing else.

    base_url  of the OpenAI-compatible interface, with its version: http://127.0.0.1:8000/v1. The page's own process
              asks it, so an address of this machine will do
    models    names to choose from; the second is the one that is compared with the first
    keyed     the server wants an API key, so the page has a field for one: whoever opens the page writes their own, as
              any other client does; the page holds none
    The app's lifespan events must run (uvicorn: lifespan "on" or "auto"): the framework's queue starts there.
    Raises UserError where gradio is missing, and for no model.
    """
    need_gradio()
    if not models:
        raise UserError("the web page needs the name of at least one model")
    folder = _private_folder()
    import gradio

    from sensorium.serve.page_layout import HEAD, build, theme

    page = build(base_url, list(models), asks_key=keyed, folder=folder)
    gradio.mount_gradio_app(
        app, page, PATH, footer_links=[], run_history=False, ssr_mode=False, pwa=False, mcp_server=False,
        show_error=False, enable_monitoring=False, max_file_size="64mb", theme=theme(), head=HEAD,
    )  # fmt: skip
    app.add_middleware(_Policy)  # type: ignore[arg-type]
    app.add_middleware(Guard, path=PATH)  # type: ignore[arg-type]


def _private_folder() -> Path:
    """Where pictures that people give lie while the page runs: readable for this user alone, gone with the process.

    The framework's own choice is one folder in the system's temporary one, for all programs and people, that stays.
    GRADIO_TEMP_DIR, its own setting, is respected.
    """
    given = os.environ.get("GRADIO_TEMP_DIR")
    if given is None:
        given = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="sensorium-page-")
        atexit.register(shutil.rmtree, given, ignore_errors=True)
    folder = Path(given)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Policy:
    """ASGI middleware: the policy above on what is below /ui."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PATH}/"):
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                more = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [*message.get("headers", ()), *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        await self.app(scope, receive, send_with_policy)
