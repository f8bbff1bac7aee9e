"""A person's own data with no code: `open_data(path)` finds the format, `check(source)` looks at every row."""

from sensorium.data.formats.captions import CocoCaptions, Columns, PictureFolder
from sensorium.data.formats.chat import ChatJsonl, LlavaJson
from sensorium.data.formats.check import Report, check
from sensorium.data.formats.detect import open_data
from sensorium.data.formats.parquet import Parquet
from sensorium.data.formats.questions import QuestionJsonl
from sensorium.data.formats.vqa import Vqa

__all__ = [
    "ChatJsonl",
    "CocoCaptions",
    "Columns",
    "LlavaJson",
    "Parquet",
    "PictureFolder",
    "QuestionJsonl",
    "Report",
    "Vqa",
    "check",
    "open_data",
]
