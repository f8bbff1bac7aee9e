"""Curves and speeds of a run, read from its log."""

from __future__ import annotations

import math
from pathlib import Path

from sensorium.report.curves import Curve, StageSpeed
from sensorium.train.log import read_log


def read_run(folder: Path | str) -> tuple[list[Curve], list[StageSpeed]]:
    """Curves and speeds, one per stage, from metrics.jsonl and timing.jsonl of a run; over all its interruptions.

    `lr` in a line may be a number or {glob: number}; `validation_loss` may be missing from any line.
    """
    curves: dict[str, Curve] = {}
    speeds: dict[str, StageSpeed] = {}
    for line in read_log(Path(folder) / "metrics.jsonl"):
        stage = line["stage"]
        curve = curves.setdefault(stage, Curve(stage=stage, steps=[], loss=[]))
        speed = speeds.setdefault(stage, StageSpeed(name=stage, steps=0, samples=0, tokens=0, seconds=0.0))
        rates = line.get("lr", {})
        for name, rate in (rates if isinstance(rates, dict) else {"all": rates}).items():
            values = curve.lr.setdefault(name, [])
            values += [math.nan] * (len(curve.steps) - len(values)) + [rate]
        curve.steps.append(line["step"])
        curve.loss.append(line["loss"])
        if "validation_loss" in line:
            curve.validation.append((line["step"], line["validation_loss"]))
        speed.steps += 1
        speed.samples += line["samples"]
        speed.tokens += line["tokens"]
    for curve in curves.values():
        for values in curve.lr.values():
            values += [math.nan] * (len(curve.steps) - len(values))
    for line in read_log(Path(folder) / "timing.jsonl"):
        if line["stage"] in speeds:
            speeds[line["stage"]].seconds += line["seconds"]
    return list(curves.values()), list(speeds.values())
