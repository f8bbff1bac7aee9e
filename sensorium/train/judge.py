"""The contrastive model that judges made pictures: trained once, from a recipe's value, and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from sensorium.hub.cache import cache_root
from sensorium.infer.engine import Engine
from sensorium.train.ask import subject_of
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.recipe import Recipe
from sensorium.train.trainer import open_run, train


def judge_of(recipe: Recipe, console: Console | None = None) -> Engine | None:
    """The judge of a recipe, trained now where it is not there yet; None for a recipe without one.

    Its run lies in the cache under a hash of its recipe: what it learned depends on nothing else, so every run that
    names the same judge is judged by the same one. Raises Stopped when a signal asks to stop; the next call goes on.
    """
    if recipe.judge is None:
        return None
    folder = place_of(recipe.judge)
    run = open_run(recipe.judge, folder)
    if not run.finished:
        if console is not None:
            console.print(f"judge: {run.recipe.title} {run.recipe.size}, trained once into {folder}", soft_wrap=True)
        train(run, console=console)
    _, model, tokenizer = load_checkpoint(folder)
    return subject_of(recipe.judge, model, tokenizer, cache_root() / "features").engine


def place_of(judge: Recipe) -> Path:
    """Where the run of a judge is kept."""
    mark = hashlib.sha256(judge.to_json().encode()).hexdigest()
    return cache_root() / "judges" / f"{judge.name}-{judge.size}-{mark[:16]}"
