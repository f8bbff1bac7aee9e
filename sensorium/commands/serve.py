"""`sensorium serve`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.commands.output import console_for
from sensorium.errors import UserError

if TYPE_CHECKING:
    from sensorium.serve.hosted import Hosted

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEYS = "SENSORIUM_API_KEYS"


@dataclass(frozen=True)
class Serving:
    """What the command line says. runs: RUN or NAME=RUN. limits: NAME=VALUE. drain: seconds. ui: with the web page.
    drafts: RUN, where several models are served NAME=RUN."""

    runs: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    urls: bool = False
    limits: tuple[str, ...] = ()
    drain: float = 30.0
    precision: str = "auto"
    device: str = "cpu"
    ui: bool = False
    quantize: str | None = None
    drafts: tuple[str, ...] = ()


def run_serve(asked: Serving, json: bool) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'sensorium[serve]'")
    from sensorium.infer.room import one_arena
    from sensorium.serve.run import address_of, listening, log_to_stderr, run

    if asked.ui:
        from sensorium.serve.page import need_gradio

        need_gradio()
    named = named_runs(asked.runs)
    sock = listening(asked.host, asked.port)  # a taken port is said before a model is loaded
    try:
        log_to_stderr()
        one_arena()
        app, url = app_of(asked, named), address_of(sock)
        if asked.ui:
            from sensorium.serve.page import mount_page

            mount_page(app, f"{url}/v1", list(named), keyed=bool(app.state.serving.keys))
        _announce(url, app.state.serving.models, asked, json)
        run(app, sock, asked.drain)
    finally:
        sock.close()


def _announce(url: str, models: Sequence[Hosted], asked: Serving, json: bool) -> None:
    if json:
        from json import dumps

        page = {"page": f"{url}/ui"} if asked.ui else {}
        print(dumps({"url": url, "models": [one.name for one in models], **page}), flush=True)
        return

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    console = console_for(False)
    coded = f", {asked.quantize} weights" if asked.quantize else ""
    say(f"{url}/v1 answers for {', '.join(f'{one.name} ({one.numbers}{coded})' for one in models)}")
    if asked.precision == "auto" and asked.device == "cpu" and any(one.numbers == "fp32" for one in models):
        say("fp32, as this CPU does not multiply bf16; --precision bf16 takes half the memory and decodes faster")
    if asked.ui:
        say(f"{url}/ui is the page; Ctrl-C ends both")


def app_of(asked: Serving, named: dict[str, str]) -> Any:
    """The models loaded, behind the routes."""
    from sensorium.api import load
    from sensorium.config import override
    from sensorium.infer.kernels.quantize import check_kind
    from sensorium.serve.app import create_app
    from sensorium.serve.hosted import Hosted
    from sensorium.serve.limits import Limits

    limits = Limits()
    for assignment in asked.limits:
        limits = override(limits, assignment)
    kind = None if asked.quantize is None else check_kind(asked.quantize)
    drafts = named_drafts(asked.drafts, list(named))
    models = [
        Hosted.of(
            name,
            load(run, asked.precision, asked.device, quantize=kind, draft=drafts.get(name)),  # type: ignore[arg-type]
            limits,
        )
        for name, run in named.items()
    ]
    keys = [*asked.keys, *filter(None, (key.strip() for key in os.environ.get(KEYS, "").split(",")))]
    return create_app(models, limits, keys=keys, origins=asked.origins, urls=asked.urls)


def named_drafts(drafts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Draft models by the name of the model they guess for. Raises UserError where that is not said, or is twice."""
    found: dict[str, str] = {}
    for draft in drafts:
        name, is_named, path = draft.partition("=")
        if not is_named:
            name, path = names[0], draft
            if len(names) > 1:
                raise UserError(f"--draft {draft}: of which of {', '.join(names)}? Give --draft NAME={draft}")
        if name not in names:
            raise UserError(f"--draft {draft}: there is no model {name!r} here: known are {', '.join(names)}")
        if name in found:
            raise UserError(f"--draft {draft}: {name} has a draft model already, {found[name]}")
        found[name] = path
    return found


def named_runs(runs: Sequence[str]) -> dict[str, str]:
    """Run by name: what is before the first =, or the last part of its path. Raises UserError for a name twice."""
    found: dict[str, str] = {}
    for run in runs:
        name, is_named, path = run.partition("=")
        if not is_named:
            name, path = Path(run).resolve().name if Path(run).exists() else run, run
        if not name or not path:
            raise UserError(f"{run!r} is neither RUN nor NAME=RUN")
        if name in found:
            raise UserError(f"two models would be called {name!r}: give one another name, NAME={path}")
        found[name] = path
    return found
