"""Conversations: chat JSON Lines (OpenAI and Hugging Face messages) and LLaVA JSON."""

from __future__ import annotations

import os
from typing import Any

from sensorium.data.formats.base import FileSource, JsonSource
from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import RowReader
from sensorium.data.media import Limits
from sensorium.sequence import Sample


class ChatJsonl(FileSource):
    """One conversation a row, as JSON Lines or one JSON array: {"messages": [{"role", "content"}, ...]}.

    role     system (or developer), user, assistant, tool
    content  text, or a list of {"type": "text", "text"} and {"type": "image", "image"} (also "path", "url") or
             {"type": "image_url", "image_url": {"url"}} parts. A picture is a path relative to the file, an absolute
             path, or a data: URL
    images   at the top of a row: pictures in the order of the `<image>` placeholders in its texts, or of its
             {"type": "image"} parts that have no picture of their own
    weight   in a message: 0 keeps that answer from being trained on

    picture_root  folder that relative picture paths start from; None: the folder of the file
    """

    picture_root: str | None = None

    def build(self) -> ChatSource:
        return ChatSource(self)


class ChatSource(JsonSource):
    def __init__(self, config: ChatJsonl):
        super().__init__(JsonRows(config.path), reader_of(config.path, config.picture_root, config.limits))

    def read(self, row: dict[str, Any], where: str) -> Sample:
        return self.reader.chat(row, where)


class LlavaJson(FileSource):
    """LLaVA's training files: {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}.

    `<image>` in a value is a picture; the text around it, newlines included, is kept as it is.

    picture_root  folder that `image` paths start from; None: the folder of the file
    """

    picture_root: str | None = None

    def build(self) -> LlavaSource:
        return LlavaSource(self)


class LlavaSource(JsonSource):
    def __init__(self, config: LlavaJson):
        super().__init__(JsonRows(config.path), reader_of(config.path, config.picture_root, config.limits))

    def read(self, row: dict[str, Any], where: str) -> Sample:
        return self.reader.conversation(row, where)


def reader_of(path: str, picture_root: str | None, limits: Limits) -> RowReader:
    """Of a file of rows, whose relative picture paths start from a given folder, else from its own."""
    return RowReader(os.path.dirname(path) if picture_root is None else picture_root, path, limits)
