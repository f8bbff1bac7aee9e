"""Classes as words: a pipeline that is asked for a class has no tokenizer, and a denoiser here reads ids of texts.

A text is a label: the number of its class, or one of its names. Each is one token, whose id is the class.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers

from sensorium.convert.settings import Settings
from sensorium.tokenizer import Tokenizer

FIELD = "id2label"


def read_labels(settings: Settings, classes: int) -> Tokenizer:
    """The words of so many classes; their names are in the field id2label, "tench, Tinca tinca", if anywhere.

    A name that two classes have is the later one's. Raises UserError for names of a class that does not exist.
    """
    numbers: dict[str, str] = {}
    for number, names in settings.take(FIELD, dict, {}).items():
        if not str(number).isdecimal() or int(number) >= classes or not isinstance(names, str):
            raise settings.error(f"{FIELD} says {number!r}: {names!r}, expected names of classes 0 to {classes - 1}")
        numbers |= {name.strip(): str(int(number)) for name in names.split(",") if name.strip()}
    words = {str(number): number for number in range(classes)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=None))  # type: ignore[arg-type]
    if numbers:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Replace(Regex(f"^{re.escape(name)}$"), number) for name, number in numbers.items()]
        )
    return Tokenizer(backend)


def write_labels(tokenizer: Tokenizer) -> dict[str, Any]:
    """The field with the names that `read_labels` gave a tokenizer; nothing for any other tokenizer."""
    rules = (json.loads(tokenizer.source).get("normalizer") or {}).get("normalizers", [])
    names: dict[str, list[str]] = {}
    for rule in rules:
        pattern = rule.get("pattern", {}).get("Regex", "")
        if pattern.startswith("^") and pattern.endswith("$"):
            names.setdefault(rule["content"], []).append(re.sub(r"\\(.)", r"\1", pattern[1:-1]))
    return {FIELD: {number: ", ".join(held) for number, held in names.items()}} if names else {}
