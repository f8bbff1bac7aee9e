"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from sensorium.report.words import compact, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s")),
        *((3599.7, "1 h 00 min"), (3900, "1 h 05 min"), (7190, "2 h 00 min")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (0.12345, "0.123"), (48.21, "48.2"), (300, "300"), (999.4, "999"), (999.9, "1k"), (9130, "9.13k")),
        *((134515008, "135M"), (7.06e9, "7.06B"), (123456, "123k"), (math.inf, "inf")),
    ],
)
def test_compact(number, text):
    assert compact(number) == text
