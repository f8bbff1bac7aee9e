"""Rebuild the built-in emoji set from its npm packages: `python scripts/build_emoji.py [--workdir DIR] [--out DIR]`.

Needs npm on the PATH and Pillow with WebP. The packages (pinned below) come through `npm pack`; with --workdir they
are kept and found again. The result is the same bytes on every run with the same Pillow.

    emoji.jsonl.gz            one line per concept: key, characters, category, subcategory, captions, keywords, boxes
    {fluent,google,twitter}.zip   stored, `KEY.webp`, transparent background
    licenses/                 texts the packages carry are copied here; the others are kept in the repository by hand

Only base emoji (no skin tones) that all three artists drew and that all ten languages name. Country flags are the
only ones taken from the derived annotations: its other entries (families by composition, hair styles) are
near-duplicates of each other.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

LANGUAGES = ("en", "zh", "fr", "de", "es", "ja", "ko", "ru", "ar", "hi")
PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "cldr": "cldr-annotations-full@48.2.0",
    "cldr-derived": "cldr-annotations-derived-full@48.2.0",
}
SIZES = {"fluent": 128, "google": 64, "twitter": 64}
QUALITY = {"fluent": 75, "google": 75, "twitter": 75}
ALPHA_QUALITY = 50
"""Quantized alpha halves the archives; edges stay smooth to the eye."""
OPAQUE = 48
"""A pixel belongs to the drawing's box from this alpha on: fainter fringes vanish when the picture is scaled down."""


def fetch(name: str, workdir: Path) -> Path:
    """The unpacked package of PACKAGES[name], fetched with `npm pack` unless workdir already holds it."""
    target = workdir / name
    if target.is_dir():
        return target / "package"
    done = subprocess.run(
        ["npm", "pack", PACKAGES[name], "--json", "--pack-destination", str(workdir)],
        check=True,
        capture_output=True,
        text=True,
    )
    filename = json.loads(done.stdout)[0]["filename"].replace("@", "").replace("/", "-")
    with tarfile.open(workdir / filename) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def key_of(unified: str) -> str:
    """Code points in upper-case hex joined by '-', U+FE0F left out: `1F590-FE0F` -> `1F590`."""
    return "-".join(point for point in unified.upper().split("-") if point != "FE0F")


def read_annotations(cldr: Path, derived: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{language: (annotations, derived annotations)}, each {characters: {tts, default}}."""
    found = {}
    for language in LANGUAGES:
        full = json.loads((cldr / "annotations" / language / "annotations.json").read_text("utf-8"))
        more = json.loads((derived / "annotationsDerived" / language / "annotations.json").read_text("utf-8"))
        found[language] = (full["annotations"]["annotations"], more["annotationsDerived"]["annotations"])
    return found


def words(characters: str, subcategory: str, tables: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> Any:
    """(captions, keywords) by language, or None when a language does not name these characters."""
    captions, keywords = {}, {}
    for language, (full, derived) in tables.items():
        table = derived if subcategory == "country-flag" else full
        entry = table.get(characters) or table.get(characters.replace("\ufe0f", ""))
        if not entry or not entry.get("tts"):
            return None
        captions[language] = entry["tts"][0].strip()
        keywords[language] = sorted({word.strip() for word in entry.get("default", [])})
    return captions, keywords


def picture(path: Path, artist: str) -> tuple[bytes, list[int]]:
    """(webp bytes of a square RGBA picture, box x0 y0 x1 y1 of its drawing in pixels)."""
    with Image.open(path) as opened:
        image = opened.convert("RGBA")
    side = max(image.size)
    if image.size != (side, side):
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if side != SIZES[artist]:
        image = image.resize((SIZES[artist], SIZES[artist]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY[artist], method=5, alpha_quality=ALPHA_QUALITY)
    with Image.open(io.BytesIO(buffer.getvalue())) as stored:
        alpha = stored.convert("RGBA").getchannel("A")
    box = alpha.point([255 if value >= OPAQUE else 0 for value in range(256)]).getbbox()
    if box is None:
        raise SystemExit(f"{path}: the picture is empty")
    return buffer.getvalue(), list(box)


def files(packages: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """{artist: {key: picture file}}."""
    found = {"fluent": packages["fluent"] / "assets"}
    found |= {artist: packages[artist] / "img" / artist / "64" for artist in ("google", "twitter")}
    return {artist: {key_of(path.stem): path for path in sorted(folder.iterdir())} for artist, folder in found.items()}


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    """A stored (uncompressed) archive whose bytes depend on its members only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])


def copy_licences(packages: dict[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("emoji-data-MIT.txt", "google"), ("cldr-Unicode-3.0.txt", "cldr")):
        (folder / name).write_bytes((packages[source] / "LICENSE").read_bytes())


def build(packages: dict[str, Path], out: Path) -> None:
    tables = read_annotations(packages["cldr"], packages["cldr-derived"])
    drawn = files(packages)
    entries = json.loads((packages["google"] / "emoji.json").read_text("utf-8"))
    rows: list[dict[str, Any]] = []
    members: dict[str, dict[str, bytes]] = {artist: {} for artist in SIZES}
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        key = key_of(entry["unified"])
        characters = "".join(chr(int(point, 16)) for point in entry["unified"].split("-"))
        said = words(characters, entry["subcategory"], tables)
        if entry["category"] == "Component" or said is None or any(key not in drawn[artist] for artist in SIZES):
            continue
        boxes = {}
        for artist in SIZES:
            members[artist][f"{key}.webp"], boxes[artist] = picture(drawn[artist][key], artist)
        row = {"key": key, "characters": characters}
        row |= {name: entry[name] for name in ("category", "subcategory")}
        rows.append({**row, "captions": said[0], "keywords": said[1], "boxes": boxes})
    out.mkdir(parents=True, exist_ok=True)
    for artist, pictures in members.items():
        write_zip(out / f"{artist}.zip", pictures)
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    (out / "emoji.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    copy_licences(packages, out / "licenses")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{len(rows)} concepts x {len(SIZES)} artists, {total / 1e6:.2f} MB in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, help="where packages are kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "sensorium/data/builtin/emoji")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        build({name: fetch(name, workdir) for name in PACKAGES}, options.out)


if __name__ == "__main__":
    main()
