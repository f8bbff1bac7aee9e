"""Nobody makes the server fetch an address through the page's framework."""

from __future__ import annotations

import json
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sensorium.serve import page

JSON = {"content-type": "application/json"}
PUBLIC = "https://93.184.216.34/x.png"


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that the framework would have fetched."""
    import gradio.processing_utils
    import safehttpx

    found = []

    async def get(url, *_, **__):
        found.append(url)
        raise OSError("not from here")

    monkeypatch.setattr(safehttpx, "get", get)
    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_get", get)
    return found


def client(monkeypatch, guarded=True):
    app = FastAPI()
    if not guarded:
        monkeypatch.setattr(page, "Guard", lambda app, path: app)
    page.mount_page(app, "http://127.0.0.1:1/v1", ["tiny"])
    return TestClient(app, raise_server_exceptions=False)


def attempts(asking):
    """Ways to have an address fetched: as a file that is shown, and as one that was uploaded, of any component."""
    statuses = [asking.get(f"/ui/gradio_api/file={PUBLIC}").status_code]
    config = asking.get("/ui/config").json()
    file = {"path": PUBLIC, "meta": {"_type": "gradio.FileData"}}
    for number, dependency in enumerate(config["dependencies"]):
        if not dependency["inputs"]:
            continue
        values = [{"text": "x", "files": [file]} if place == 0 else file for place in range(len(dependency["inputs"]))]
        body = {"data": values, "fn_index": number, "session_hash": "abc", "event_data": None, "trigger_id": None}
        for route in ("queue/join", "run/predict", "call/x", f"api/{number}"):
            content = json.dumps(body).replace("https", "\\u0068ttps")
            statuses.append(asking.post(f"/ui/gradio_api/{route}", content=content, headers=JSON).status_code)
    time.sleep(0.5)  # what was queued is begun
    return statuses


def test_the_framework_would_fetch(fetched, monkeypatch):
    with client(monkeypatch, guarded=False) as asking:
        attempts(asking)
    assert fetched, "if the framework no longer fetches, the guard is no longer needed"


def test_an_address_is_refused(fetched, monkeypatch):
    with client(monkeypatch) as asking:
        statuses = attempts(asking)
        assert asking.get("/ui/").status_code == 200
        body = {"data": ["look at https://example.org/path", {"path": "/tmp/x.png", "url": "https://x/y"}]}
        assert "url_not_allowed" not in asking.post("/ui/gradio_api/queue/join", json=body).text
        assert asking.post("/ui/gradio_api/queue/join", content=b"x" * (5 << 20)).status_code == 413
        assert asking.post("/ui/gradio_api/queue/join", content=b"[" * 100_000).status_code != 500
    assert set(statuses) == {400}
    assert fetched == []
