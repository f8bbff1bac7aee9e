"""What the language model still knows: its loss on plain English that no stage trains on."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sensorium.infer.engine import Engine
from sensorium.objectives.language import log_likelihood
from sensorium.sequence import Sample, Segment, Sequence

PLAIN = Path(__file__).parents[1] / "data" / "builtin" / "text" / "plain.txt"


@torch.inference_mode()
def text_loss(engine: Engine, path: Path = PLAIN) -> float:
    """Nats per token over the lines of a text file, each a document of its own."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    documents = [
        engine.renderer.render(Sample((Segment("text", line),), id=f"line {n}")) for n, line in enumerate(lines)
    ]
    packed = Sequence.pack(engine.prepare(documents))
    sums, counts = log_likelihood(engine.model(packed), packed)
    return -math.fsum(sums.flatten().tolist()) / math.fsum(counts.flatten().tolist())
