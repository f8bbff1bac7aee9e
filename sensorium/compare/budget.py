"""What every design of a comparison may spend, and how a design's stages share it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sensorium.errors import UserError
from sensorium.report.words import duration
from sensorium.train.recipe import Stage

Unit = Literal["seconds", "samples", "flops"]
_UNITS: dict[str, tuple[Unit, float]] = {
    "s": ("seconds", 1), "sec": ("seconds", 1), "seconds": ("seconds", 1),
    "m": ("seconds", 60), "min": ("seconds", 60), "minutes": ("seconds", 60),
    "h": ("seconds", 3600), "hours": ("seconds", 3600),
    "samples": ("samples", 1), "sample": ("samples", 1), "flops": ("flops", 1), "flop": ("flops", 1),
}  # fmt: skip
_FORM = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:e\+?[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)


class Budget(NamedTuple):
    """Of each design: seconds of training steps, samples seen, or FLOPs of training."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        match self.unit:
            case "seconds":
                return f"{duration(self.amount)} of training"
            case "samples":
                return f"{self.amount:,.0f} samples"
            case "flops":
                return f"{self.amount:.3g} training FLOPs"


def parse_budget(text: str) -> Budget:
    """10m, 90s, 1h; 2000samples; 1e15flops. Raises UserError for anything else, and for nothing at all."""
    found = _FORM.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UserError(f"a budget is a number and a unit, such as 10m, 90s, 2000samples or 1e15flops; given {text!r}")
    amount = float(found[1]) * unit[1]
    if amount <= 0 or not math.isfinite(amount):
        raise UserError(f"a budget of {text!r} trains nothing: give more than 0")
    return Budget(amount, unit[0])


def shares(stages: Sequence[Stage]) -> list[float]:
    """The part of a budget that each stage gets: its part of the tokens that the recipe itself trains on at this size.

    Equal parts where a stage is measured in epochs: how long that is depends on data that is not compared on.
    """
    own = [float(one.steps * one.accumulate * one.tokens) if one.steps is not None else None for one in stages]
    known = [amount for amount in own if amount is not None]
    if len(known) < len(own):
        return [1 / len(own)] * len(own)
    return [amount / sum(known) for amount in known]


def steps_of(budget: Budget, parts: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Optimizer steps of each stage: as many as its part of the budget pays for, the last one what is left; at least
    one each.

    costs  what one step of each stage costs, in the budget's unit
    """
    left, steps = budget.amount, []
    for index, (part, cost) in enumerate(zip(parts, costs, strict=True)):
        paid = left if index + 1 == len(parts) else budget.amount * part
        steps.append(max(1, math.floor(paid / cost + 1e-9)))
        left -= steps[-1] * cost
    return steps
