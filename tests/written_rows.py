"""Files as a person would write them, and what is read of them."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from sensorium.data.formats import (
    ChatJsonl,
)
from sensorium.data.source import RowError
from sensorium.sequence import Sample


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def png_bytes(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def chat_row(question="what is it?", answer="a dog", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def brief(sample: Sample) -> list[tuple]:
    """(kind, role, text or first pixel) of every segment."""
    found = []
    for segment in sample.segments:
        data = segment.data.load().getpixel((0, 0)) if segment.kind == "image" else segment.data
        found.append((segment.kind, segment.role, data))
    return found


def bad_row(row, *words: str, tmp_path: Path, config=ChatJsonl) -> str:
    """The row is bad: the error names the file, line 2 and all words; the row before it is still readable."""
    good = chat_row() if config is ChatJsonl else {"conversations": [{"from": "human", "value": "a"}]}
    path = jsonl(tmp_path / "rows.jsonl", [good, row])
    source = config(path=str(path)).build()
    assert source[0].segments
    with pytest.raises(RowError) as caught:
        source[1]
    for word in (f"{path} line 2", *words):
        assert word in str(caught.value)
    return str(caught.value)
