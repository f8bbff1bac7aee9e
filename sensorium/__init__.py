"""Sensorium: every published kind of multimodal foundation model as a short recipe of shared parts.

model = sensorium.load("runs/quickstart")       # a run, a checkpoint
model.chat(messages), model.generate(...), model.embed(...), model.logits(messages)
sensorium.train.run(recipe, "runs/mine")        # a recipe, for example sensorium.recipes.llava.llava("tiny")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sensorium.api import Model, load

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Model` import torch, so they are imported when first asked for."""
    if name in ("load", "Model"):
        from sensorium import api

        return getattr(api, name)
    raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
