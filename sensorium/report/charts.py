"""Charts of a run: what is drawn of its curves, by the page's CSS classes."""

from __future__ import annotations

import math

from markupsafe import Markup

from sensorium.report import svg
from sensorium.report.curves import Curve, smoothed, smoothing_window, thinned


def loss_chart(curve: Curve) -> Markup:
    """Raw loss faint, its mean over `smoothing_window` steps strong, validation dots; logarithmic when it falls far."""
    window = smoothing_window(len(curve.loss))
    mean = smoothed(curve.loss, window)
    lines = [
        svg.Line(thinned(curve.steps, curve.loss), "raw"),
        svg.Line(thinned(curve.steps, mean), "c0"),
        svg.Line(curve.validation, "c1", "dots"),
    ]
    title = f"Training loss of stage {curve.stage} by step"
    log = svg.wants_log(mean) and all(loss > 0 for loss in curve.loss if math.isfinite(loss))
    label = "loss (log scale)" if log else "loss"
    return svg.line_chart(lines, title=title, x_label="step", y_label=label, log=log, bad=curve.bad_steps)


def rate_chart(curve: Curve) -> Markup:
    """Learning rate by glob; logarithmic when the globs' highest rates lie far apart."""
    peaks = [max((rate for rate in rates if math.isfinite(rate)), default=0.0) for rates in curve.lr.values()]
    log = svg.wants_log(peaks)
    # A logarithmic axis stops at a hundredth of the lowest peak: the end of a cosine goes on down for ever.
    floor = min(peaks) / 100 if log else -math.inf
    lines = []
    for number, rates in enumerate(curve.lr.values()):
        shown = [rate if rate >= floor else math.nan for rate in rates]
        lines.append(svg.Line(thinned(curve.steps, shown), f"c{number % 8}"))
    title = f"Learning rate of stage {curve.stage} by step"
    label = "rate (log scale)" if log else "learning rate"
    return svg.line_chart(lines, title=title, x_label="step", y_label=label, height=170, log=log)
