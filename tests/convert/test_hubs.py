"""A published checkpoint named as on the hub: fetched once, and only what is read."""

import hashlib
import http.server
import json
import threading

import pytest
import transformers
from published import saved
from test_published import SIZE

import sensorium
from sensorium.errors import UserError

COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with one model, which also has a pickle and code; asked counts what it was asked for."""
    saved(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZE), tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "model/modeling.py").write_text("raise SystemExit")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/org/tiny/tree/"):
                told = [{"type": "file", "path": file, "size": len(files[file]), "oid": COMMIT} for file in files]
                content, headers = json.dumps(told).encode(), {"Content-Type": "application/json"}
            elif path.startswith("/api/models/org/tiny"):
                siblings = [{"rfilename": file} for file in files]
                told = {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings}
                content, headers = json.dumps(told).encode(), {"Content-Type": "application/json"}
            elif path.startswith("/org/tiny/resolve/") and name in files:
                content = files[name]
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
                asked.append(name)
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield asked
    server.shutdown()


def test_a_model_of_the_hub_is_fetched_without_pickles_or_code(hub, tmp_path):
    model = sensorium.load("org/tiny", "fp32")
    local = sensorium.load(tmp_path / "model", "fp32")
    assert model.generate(["a cat"], max_tokens=5) == local.generate(["a cat"], max_tokens=5)
    assert "model.safetensors" in hub
    assert not {"pytorch_model.bin", "modeling.py"} & set(hub)


def test_a_name_that_the_hub_does_not_have_says_so(hub):
    with pytest.raises(UserError, match="no folder org/huge"):
        sensorium.load("org/huge")
