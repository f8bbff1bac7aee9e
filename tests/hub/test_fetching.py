"""Cache, routes in order, verification, interruption, concurrency. No network: the routes are made here."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from sensorium.config import from_json
from sensorium.errors import UserError
from sensorium.hub import HubRepo, Package, Pretrained, cache, fetch, fetch_package
from sensorium.hub.cache import Route, RouteError
from sensorium.hub.catalog import CATALOG, EFFICIENTNET_LITE0, SMOLLM2_135M_INSTRUCT
from sensorium.hub.fetching import routes_to

from hub_fakes import WEIGHTS, WORDS, dead, delivers, part, resumes  # isort: skip

HERE = Path(__file__).parent


def folder_of(root: Path, toy: Pretrained) -> Path:
    return root / "pretrained" / toy.key


def test_a_fetched_part_is_complete_and_nothing_else_stays(cache: Path) -> None:
    toy = part()
    path = fetch(toy, routes=[delivers()])
    assert path == folder_of(cache, toy) / "weights.bin"
    assert path.read_bytes() == WEIGHTS
    assert path.with_name("words.json").read_bytes() == WORDS
    assert not list((cache / "partial").iterdir())


def test_a_cached_part_needs_no_route_and_is_hashed_once(monkeypatch) -> None:
    toy = part()
    fetch(toy, routes=[delivers()])
    hashed = []
    monkeypatch.setattr("sensorium.hub.cache.sha256_of", lambda path: hashed.append(path) or "")
    assert fetch(toy, routes=[dead()]).read_bytes() == WEIGHTS
    assert fetch(toy, routes=[], offline=True).read_bytes() == WEIGHTS
    assert not hashed


def test_a_file_put_there_by_hand_is_verified_once(cache: Path, monkeypatch) -> None:
    toy = part()
    place = folder_of(cache, toy)
    place.mkdir(parents=True)
    (place / "weights.bin").write_bytes(WEIGHTS)
    (place / "words.json").write_bytes(WORDS)
    fetch(toy, offline=True)
    hashed = []
    monkeypatch.setattr("sensorium.hub.cache.sha256_of", lambda path: hashed.append(path.name) or toy.sha256)
    fetch(toy, offline=True)
    assert hashed == []
    os.utime(place / "weights.bin", ns=(0, 0))  # touched: hashed again
    fetch(toy, offline=True)
    assert hashed == ["weights.bin"]


@pytest.mark.parametrize("damage", [b"", WEIGHTS[:-1], b"W" + WEIGHTS[1:]])
def test_a_damaged_cache_is_noticed_and_replaced(cache: Path, damage: bytes) -> None:
    toy = part()
    path = fetch(toy, routes=[delivers()])
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"the cache: .*weights.bin has"):
        fetch(toy, routes=[dead()])
    assert fetch(toy, routes=[delivers()]).read_bytes() == WEIGHTS


def test_the_second_route_is_taken_when_the_first_is_dead(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = fetch(part(), routes=[dead(), delivers("second", log=log), delivers("third", log=log)])
    assert path.read_bytes() == WEIGHTS
    assert log.read_text() == "second\n"


def test_when_no_route_delivers_one_message_says_all(cache: Path) -> None:
    toy = part()
    with pytest.raises(UserError) as raised:
        fetch(toy, routes=[dead("hub", "no address"), dead("package", "no such version")])
    message = str(raised.value)
    assert "1. the hub route: no address" in message
    assert "2. the package route: no such version" in message
    assert str(folder_of(cache, toy) / "weights.bin") in message
    assert toy.sha256 in message
    assert "toy/weights.bin of toy-model==1.0" in message
    assert not (folder_of(cache, toy)).exists()


def test_wrong_content_is_refused_and_deleted(cache: Path) -> None:
    toy = part()
    with pytest.raises(UserError, match=r"the evil route: its weights.bin has sha256 \w{64}, expected") as raised:
        fetch(toy, routes=[delivers("evil", weights=b"evil")])
    assert "deleted" in str(raised.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_wrong_content_of_one_route_is_told_though_the_next_delivers(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert fetch(part(), routes=[delivers("evil", weights=b"x"), delivers()]).read_bytes() == WEIGHTS
    assert "the evil route: its weights.bin has sha256" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fetch(part("other"), routes=[dead(), delivers()])
    assert not caplog.text, "a route that cannot be reached is no news"


def test_a_route_that_forgets_a_file(cache: Path) -> None:
    route = Route("half", "the half route", lambda work, out: (out / "weights.bin").write_bytes(WEIGHTS) and None)
    with pytest.raises(UserError, match=r"it delivered no words\.json"):
        fetch(part(), routes=[route])
    assert not list(cache.rglob("weights.bin"))


def child(code: str, **environment: str) -> subprocess.Popen:
    setup = f"import sys; sys.path[:0] = [{str(HERE)!r}]\nfrom pathlib import Path\nfrom hub_fakes import *\n"
    setup += "from sensorium.hub import fetch\n"
    return subprocess.Popen([sys.executable, "-c", setup + code], env={**os.environ, **environment})


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("resumable", [True, False])
def test_a_killed_fetch_leaves_nothing_wrong_and_goes_on(cache: Path, tmp_path: Path, resumable: bool) -> None:
    toy, log = part(), tmp_path / "log"
    route = f"resumes(Path({str(log)!r}), 60)" if resumable else "delivers(takes=60)"
    process = child(f"fetch(part(), routes=[{route}])")
    partial = cache / "partial" / toy.key
    wait_for(lambda: any(path.stat().st_size for path in partial.rglob("archive")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder_of(cache, toy).exists()
    again = resumes(log, 0) if resumable else delivers()
    assert fetch(toy, routes=[again]).read_bytes() == WEIGHTS
    assert not partial.exists()
    if resumable:
        first, second = map(int, log.read_text().split())
        assert first == 0
        assert second >= 1000


def test_processes_that_fetch_at_once_download_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"assert fetch(part(), routes=[delivers(log=Path({str(log)!r}), takes=1)]).read_bytes() == WEIGHTS"
    processes = [child(code) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert log.read_text() == "good\n"


def test_offline_tries_no_route(tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match="the good route: not tried, offline was asked for"):
        fetch(part(), routes=[delivers(log=log)], offline=True)
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    with pytest.raises(UserError, match="not tried, SENSORIUM_OFFLINE is set"):
        fetch(part(), routes=[delivers(log=log)])
    with pytest.raises(UserError, match="not tried, SENSORIUM_OFFLINE is set"):
        fetch_package("npm", "toy")
    assert not log.exists()
    assert fetch(part(), routes=[delivers(log=log)], offline=False).exists()


def test_hub_offline_leaves_out_the_hub_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub, package = routes_to(part(hub=HubRepo(repo="a/b", revision="main")))
    with pytest.raises(RouteError, match="HF_HUB_OFFLINE"):
        hub.fill(tmp_path, tmp_path)
    assert package.name == "package"


def test_progress_reports_growing_bytes(monkeypatch) -> None:
    monkeypatch.setattr(cache, "POLL_S", 0.01)
    seen: list[tuple[str, int, int | None]] = []
    fetch(part(), routes=[delivers(takes=0.3)], progress=lambda *report: seen.append(report))
    done = [bytes_ for _, bytes_, _ in seen]
    assert done[0] == 0
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert {(what, total) for what, _, total in seen} == {("Toy from the good route", len(WEIGHTS) + len(WORDS))}


def test_a_folder_that_cannot_hold_the_cache(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SENSORIUM_CACHE to another folder"):
        fetch(part(), routes=[delivers()])


def test_a_full_disk_is_noticed_before_the_download(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 100}))
    log = tmp_path / "log"
    with pytest.raises(UserError, match="Free some space"):
        fetch(part(), routes=[delivers(log=log)])
    assert not log.exists()


def test_a_cache_that_may_only_be_read_still_serves(cache: Path, monkeypatch) -> None:
    toy = part()
    fetch(toy, routes=[delivers()])
    (folder_of(cache, toy) / ".verified.json").unlink()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("sensorium.hub.cache.os.replace", refuse)
    assert fetch(toy, offline=True).read_bytes() == WEIGHTS


def test_where_the_cache_is(monkeypatch) -> None:
    monkeypatch.delenv("SENSORIUM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.cache_root() == Path("/home/somebody/.cache/sensorium")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache.cache_root() == Path("/elsewhere/sensorium")


def tree(**files: bytes) -> Route:
    def fill(work: Path, out: Path) -> None:
        for name, content in files.items():
            (out / "deep").mkdir(exist_ok=True)
            (out / "deep" / name).write_bytes(content)

    return Route("package", "the tree route", fill)


def test_a_package_is_fetched_once_per_selection(cache: Path) -> None:
    folder = fetch_package("debian", "toy", files=["deep/*"], routes=[tree(a=b"1", b=b"22")])
    assert folder.parent == cache / "packages"
    assert (folder / "deep" / "b").read_bytes() == b"22"
    assert fetch_package("debian", "toy", files=["deep/*"], routes=[dead()]) == folder
    assert fetch_package("debian", "toy", files=["*"], routes=[tree(a=b"1")]) != folder


def test_a_package_without_the_files_is_an_error(cache: Path) -> None:
    with pytest.raises(UserError, match="it holds no file that was asked for"):
        fetch_package("npm", "@scope/toy", "1.0.0", ["*.png"], routes=[tree()])
    assert not (cache / "packages").exists()


@pytest.mark.parametrize("name", ["--index-url=x", "../x", "", "a b", "a/b/c"])
def test_names_that_are_no_package(name: str) -> None:
    with pytest.raises(UserError, match="not a package name"):
        fetch_package("pypi", name)


def test_values_round_trip_and_refuse_nonsense() -> None:
    assert from_json(SMOLLM2_135M_INSTRUCT.to_json(), Pretrained) == SMOLLM2_135M_INSTRUCT
    with pytest.raises(ValidationError, match="version"):
        Package(kind="pypi", name="a", version="-e .")
    weights, words = part().files
    hub = HubRepo(repo="a/b", revision="main")
    with pytest.raises(ValidationError, match=r"not where .'words\.json'. lie"):
        part().replace(files=(weights, words.replace(hub=None)), hub=hub)
    with pytest.raises(ValidationError, match="sha256"):
        part().files[0].replace(sha256="579344248a93e230")


def test_the_catalog_pins_everything() -> None:
    assert len({entry.key for entry in CATALOG.values()}) == len(CATALOG) == 4
    for entry in CATALOG.values():
        assert entry.hub is None or len(entry.hub.revision) == 40, "a branch could move"
        assert entry.package.version is not None
        assert [route.name for route in routes_to(entry)] == (["hub"] if entry.hub else []) + ["package"]
    assert EFFICIENTNET_LITE0.sha256.startswith("579344248a93e230")
