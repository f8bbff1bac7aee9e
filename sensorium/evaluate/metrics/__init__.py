"""Metrics, each equal to its reference implementation, by the name a user types."""

from __future__ import annotations

from sensorium.errors import UserError, nearest
from sensorium.evaluate.metrics.answers import Anls, Exact, Relaxed
from sensorium.evaluate.metrics.base import Metric
from sensorium.evaluate.metrics.captions import Bleu, Cider, RougeL
from sensorium.evaluate.metrics.choices import Choice, Likelihood
from sensorium.evaluate.metrics.grounding import Grounding
from sensorium.evaluate.metrics.vqa import Vqa
from sensorium.evaluate.metrics.yesno import Mme, Pope

METRICS: dict[str, type[Metric]] = {
    "vqa": Vqa,
    "exact": Exact,
    "relaxed": Relaxed,
    "anls": Anls,
    "cider": Cider,
    "bleu": Bleu,
    "rouge_l": RougeL,
    "pope": Pope,
    "mme": Mme,
    "choice": Choice,
    "likelihood": Likelihood,
    "grounding": Grounding,
}


def metric_of(name: str) -> Metric:
    """The metric of a name with its usual settings. Raises UserError that names the nearest one."""
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}: {nearest(name, METRICS)}")
    return METRICS[name]()
