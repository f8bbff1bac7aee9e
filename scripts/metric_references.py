"""Values that the reference implementations give, for tests/evaluate/metrics/test_references.py.

Needs Java and, in an environment of its own: pycocoevalcap, torchmetrics, scikit-learn, jiwer (with
rapidfuzz), torch, scipy; and pillow and pydantic for the package.

    PYTHONPATH=.:tests python scripts/metric_references.py
"""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from made_answers import made_features, made_masks, made_rankings, made_transcripts, made_yes_no
from made_captions import made_captions
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rapidfuzz.distance import Levenshtein
from scipy.linalg import sqrtm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)
from torchmetrics.functional.text import char_error_rate, word_error_rate
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from torchmetrics.retrieval import RetrievalHitRate

OUT = Path(__file__).parents[1] / "tests" / "evaluate" / "metrics" / "references.json.gz"
COUNT = 1000


def captions() -> dict[str, Any]:
    items = made_captions(COUNT)
    tokenizer = PTBTokenizer()
    said = tokenizer.tokenize({n: [{"caption": one.said}] for n, one in enumerate(items)})
    right = tokenizer.tokenize({n: [{"caption": text} for text in one.references] for n, one in enumerate(items)})
    bleu, bleus = Bleu(4).compute_score(right, said, verbose=0)
    cider, ciders = Cider().compute_score(right, said)
    rouge, rouges = Rouge().compute_score(right, said)
    return {
        "tokens": [[said[n][0], *right[n]] for n in range(COUNT)],
        "bleu": bleu, "bleus": _short(bleus[3]), "cider": float(cider), "ciders": _short(ciders),
        "rouge": float(rouge), "rouges": _short(rouges),
    }  # fmt: skip


def transcripts() -> dict[str, Any]:
    said, right = made_transcripts(COUNT)
    return {
        "wer": jiwer.wer(right, said),
        "cer": jiwer.cer(right, said),
        "wer_torchmetrics": float(word_error_rate(said, right)),
        "cer_torchmetrics": float(char_error_rate(said, right)),
        # torchmetrics.text.EditDistance looks along a beam and misses the least number of some of these
        "edits": [Levenshtein.distance(one, other) for one, other in zip(said, right)],
        "similar": _short(Levenshtein.normalized_similarity(*map(str.lower, pair)) for pair in zip(said, right)),
    }


def yes_no() -> dict[str, float]:
    said, right = made_yes_no(COUNT)
    return {
        "accuracy": accuracy_score(right, said), "precision": precision_score(right, said),
        "recall": recall_score(right, said), "f1": f1_score(right, said), "yes": float(np.mean(said)),
    }  # fmt: skip


def masks() -> dict[str, Any]:
    said, right = made_masks(COUNT)
    one, other = (np.concatenate([mask.ravel() for mask in masks]) for masks in (said, right))
    counted = other != 255
    each = jaccard_score(other[counted], one[counted], average=None, labels=range(5))
    return {"miou": float(each.mean()), "accuracy": accuracy_score(other[counted], one[counted])}


def rankings() -> dict[str, Any]:
    scores, right = made_rankings(COUNT)
    found: dict[str, Any] = {"ap": _short([average_precision_score(hits, row) for row, hits in zip(scores, right)])}
    index = torch.arange(COUNT)[:, None].expand(right.shape)
    for k in (1, 5, 10):
        hit = RetrievalHitRate(top_k=k)(torch.tensor(scores).flatten(), torch.tensor(right).flatten(), index.flatten())
        found[f"hit@{k}"] = float(hit)
    return found


def distributions() -> dict[str, float]:
    real, made = (torch.tensor(part, dtype=torch.float64) for part in made_features(2 * COUNT))
    first, second = torch.cov(real.T), torch.cov(made.T)
    ours = float(_compute_fid(real.mean(0), first, made.mean(0), second))
    apart = (real.mean(0) - made.mean(0)).numpy()
    root = sqrtm(first.numpy() @ second.numpy()).real
    scipys = float(apart @ apart + np.trace(first.numpy() + second.numpy() - 2 * root))
    return {"fid": ours, "fid_scipy": scipys, "kid": float(poly_mmd(real, made))}


def _short(values: Any) -> list[float]:
    return [round(float(value), 8) for value in values]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = (captions, transcripts, yes_no, masks, rankings, distributions)
    found = {part.__name__: part() for part in parts}
    with gzip.GzipFile(OUT, "wb", compresslevel=9, mtime=0) as file:
        file.write(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode())
