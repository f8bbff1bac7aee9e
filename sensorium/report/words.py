"""Numbers and names in the form that people read them."""

from __future__ import annotations

import math

from sensorium.evaluate.statistics import Evaluation


def duration(seconds: float) -> str:
    """For people: 0.4 s, 12 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def compact(number: float) -> str:
    """For people, three significant digits: 0.123, 48.2, 9.13k, 135M."""
    if not math.isfinite(number):
        return str(number)
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return _three_digits(number / size) + suffix
    return f"{number:.0f}" if float(number).is_integer() else _three_digits(number)


def _three_digits(number: float) -> str:
    rounded = float(f"{number:.3g}")
    return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{number:.3g}"


def percent(value: float) -> str:
    """0.6125 -> 61.3 %; the exact ends have no decimals."""
    return f"{value:.0%}".replace("%", " %") if value in (0.0, 1.0) else f"{value * 100:.1f} %"


def points(value: float) -> str:
    """A difference of two scores in percentage points: +37.1."""
    return f"{round(value * 100, 1) + 0.0:+.1f}".replace("-", "\u2212")  # + 0.0: no -0.0


def plain_name(name: str) -> str:
    """`multiple_choice` -> multiple choice."""
    return name.replace("_", " ")


def number(value: float) -> str:
    """A score that is no percentage: 0.873, 12.34, 1,482.0."""
    size = abs(value)
    return f"{value:,.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def score_text(evaluation: Evaluation, value: float) -> str:
    """A value of this evaluation's score, as its metric is written."""
    return percent(value) if evaluation.percent else number(value)


def bare_text(evaluation: Evaluation, value: float) -> str:
    """The same without a sign, for tables that name the unit once."""
    return f"{value * 100:.1f}" if evaluation.percent else number(value)


def margin_text(evaluation: Evaluation, value: float) -> str:
    """A difference of two such scores, with its sign."""
    return points(value) if evaluation.percent else f"{'+' if value > 0 else ''}{number(value)}".replace("-", "\u2212")
