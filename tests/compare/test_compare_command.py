"""`sensorium compare` as a person runs it: two tiny designs, killed, gone on with, and done once more elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sensorium.cli import main

COMMAND = ("compare", "llava", "fuyu", "--size", "tiny", "--budget", "2s", "--batch", "4", "--n", "8", "--json")


def run(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("compare", "llava", "fuyu", "--size", "tiny", "--budget", "soon", "--out", str(tmp_path)) == 2
    assert "10m, 90s, 2000samples or 1e15flops" in capsys.readouterr().err
    assert run("compare", "llava", "--size", "tiny") == 2
    assert "--vary" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_it_goes_on_and_twice_it_says_the_same(tmp_path: Path):
    environment = {**os.environ, "SENSORIUM_CACHE": str(tmp_path / "cache")}

    def started(out: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "sensorium", *COMMAND, "--out", str(tmp_path / out)]
        return subprocess.Popen(program, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    killed = started("cut")
    while killed.poll() is None and not (tmp_path / "cut/rows/llava-seed0.json").exists():
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "cut/compare.json").exists()
    said = {}
    for out in ("cut", "whole"):
        process = started(out)
        said[out] = json.loads(process.communicate()[0])
        assert process.returncode == 0
    assert said["cut"] == said["whole"]
    for name in ("compare.json", "compare.svg"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = said["whole"]["rows"]
    assert [row["name"] for row in rows] == ["llava", "fuyu"]
    for row in rows:
        assert row["error"] == ""
        assert row["samples"] == 4 * row["steps"] > 0
        said_of = [(score["task"], score["n"]) for score in row["scores"]]
        assert said_of == [("category", 8), ("category", 8), ("counting", 8), ("average", 24)]
    assert (tmp_path / "whole/report.html").exists()
