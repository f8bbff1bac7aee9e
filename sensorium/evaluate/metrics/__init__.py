"""Metrics, each equal to its reference implementation, by the name a user types.

Of many pictures at once there are functions: `retrieval` (R@k, mAP) and `distributions` (FID, KID).
"""

from __future__ import annotations

from sensorium.errors import UserError, nearest
from sensorium.evaluate.metrics.answers import Anls, Exact, Relaxed
from sensorium.evaluate.metrics.base import Metric
from sensorium.evaluate.metrics.captions import Bleu, Cider, Meteor, RougeL
from sensorium.evaluate.metrics.chair import Chair
from sensorium.evaluate.metrics.choices import Choice, Likelihood, LikelihoodMean
from sensorium.evaluate.metrics.clip import ClipScore
from sensorium.evaluate.metrics.college import Circular, Mmmu
from sensorium.evaluate.metrics.grounding import Grounding
from sensorium.evaluate.metrics.needle import Needle
from sensorium.evaluate.metrics.perplexity import Perplexity
from sensorium.evaluate.metrics.segmentation import MeanIou
from sensorium.evaluate.metrics.speech import Cer, Wer
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
    "meteor": Meteor,
    "clipscore": ClipScore,
    "pope": Pope,
    "chair": Chair,
    "mme": Mme,
    "choice": Choice,
    "circular": Circular,
    "mmmu": Mmmu,
    "likelihood": Likelihood,
    "likelihood_mean": LikelihoodMean,
    "grounding": Grounding,
    "miou": MeanIou,
    "wer": Wer,
    "cer": Cer,
    "perplexity": Perplexity,
    "needle": Needle,
}


def metric_of(name: str) -> Metric:
    """The metric of a name with its usual settings. Raises UserError that names the nearest one."""
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}: {nearest(name, METRICS)}")
    return METRICS[name]()
