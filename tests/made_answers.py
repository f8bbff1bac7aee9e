"""Answers other than captions as models give them, beside what is right; the same for every seed."""

from __future__ import annotations

import random

import numpy as np
from made_captions import made_captions


def made_transcripts(count: int, seed: int = 1) -> tuple[list[str], list[str]]:
    """(said, right): sentences with words dropped, doubled, swapped and misspelt."""
    items = made_captions(count, seed)
    return [" ".join(one.said.split()) for one in items], [" ".join(one.references[0].split()) for one in items]


def made_yes_no(count: int, seed: int = 2) -> tuple[list[bool], list[bool]]:
    """(said, right), said too often yes."""
    rng = random.Random(seed)
    right = [rng.random() < 0.5 for _ in range(count)]
    return [one if rng.random() < 0.8 else rng.random() < 0.7 for one in right], right


def made_masks(count: int, seed: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(said, right) of 12 x 16 pixels of 5 classes, some right ones without a class (255)."""
    rng = np.random.default_rng(seed)
    right = [np.kron(rng.integers(0, 5, (3, 4)), np.ones((4, 4), dtype=np.int64)) for _ in range(count)]
    said = [np.where(rng.random(mask.shape) < 0.3, rng.integers(0, 5, mask.shape), mask) for mask in right]
    return said, [np.where(rng.random(mask.shape) < 0.05, 255, mask) for mask in right]


def made_rankings(count: int, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (count, 40) of queries and candidates, and whether those are right; one at least is."""
    rng = np.random.default_rng(seed)
    right = rng.random((count, 40)) < 0.08
    right[np.arange(count), rng.integers(0, 40, count)] = True
    return rng.normal(size=right.shape) + 1.2 * right, right


def made_features(count: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, 48) of real and of made pictures: mixed, rectified, shifted."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(48, 48)) / 7
    real = np.maximum(rng.normal(size=(count, 48)) @ mix, -0.2)
    made = np.maximum(rng.normal(size=(count, 48)) @ (mix + 0.05 * rng.normal(size=(48, 48))) + 0.1, -0.2)
    return real, made


def made_boxes(count: int, seed: int = 6) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Pairs of boxes whose edges are multiples of 1/200, most of them overlapping."""
    rng = random.Random(seed)

    def box() -> tuple[float, ...]:
        x, y = (sorted(rng.sample(range(201), 2)) for _ in range(2))
        return tuple(edge / 200 for edge in (x[0], y[0], x[1], y[1]))

    return [(box(), box()) for _ in range(count)]
