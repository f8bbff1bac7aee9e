"""Curves and speeds are read from the log of a run."""

from __future__ import annotations

import math

from sensorium.report.curves import Curve
from sensorium.train.history import read_run
from sensorium.train.log import MetricsLog


def test_curves_and_speeds_from_a_log(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (1, 2):
            metrics = {"tokens": 100, "samples": 4, "loss": 1 / step, "lr": 1e-3}
            log.write("align", 0, step, metrics, seconds=0.5)
        metrics = {"tokens": 50, "samples": 2, "loss": math.nan, "lr": {"a": 1.0}}
        log.write("instruct", 1, 1, metrics, seconds=2.0)
        metrics = {"tokens": 50, "samples": 2, "loss": 0.5, "lr": {"a": 0.5, "b": 0.1}, "validation_loss": 0.7}
        log.write("instruct", 1, 2, metrics, seconds=2.0)
    curves, speeds = read_run(tmp_path)
    assert curves[0] == Curve(stage="align", steps=[1, 2], loss=[1.0, 0.5], lr={"all": [1e-3, 1e-3]})
    assert curves[1].bad_steps == [1]
    assert curves[1].validation == [(2, 0.7)]
    assert curves[1].lr["a"] == [1.0, 0.5]
    assert math.isnan(curves[1].lr["b"][0])
    assert [(s.name, s.samples_per_second, s.tokens_per_second) for s in speeds] == [
        *(("align", 8.0, 200.0), ("instruct", 1.0, 25.0)),
    ]
    assert read_run(tmp_path / "nowhere") == ([], [])
