"""`sensorium ui`."""

from __future__ import annotations

from sensorium.commands.serve import Serving, run_serve


def run_ui(runs: tuple[str, ...], host: str, port: int, precision: str, device: str, json: bool) -> None:
    """The server with its web page. runs: RUN or NAME=RUN."""
    run_serve(Serving(runs, host, port, precision=precision, device=device, ui=True), json)
