"""Vectors of pictures and texts in the shared space of a contrastive model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.models.dual import Dual, DualOutputs
from sensorium.sequence import Media, Sample, Segment, Sequence


@torch.inference_mode()
def picture_vectors(
    engine: Engine, media: Iterable[Media], kind: str = "image", progress: Callable[[int], None] | None = None
) -> Tensor:
    """(N, Q, E) float32 unit vectors. progress: called with the number that is done."""
    samples = (Sample((Segment(kind, one),)) for one in media)  # type: ignore[arg-type]
    return _vectors(engine, samples, lambda outputs: outputs.image, progress)


@torch.inference_mode()
def text_vectors(engine: Engine, texts: Iterable[str], progress: Callable[[int], None] | None = None) -> Tensor:
    """(N, E) float32 unit vectors. Raises TooLong for a text that the tower has no positions for."""
    return _vectors(engine, (Sample((Segment("text", one),)) for one in texts), lambda outputs: outputs.text, progress)


@torch.inference_mode()
def pair_logits(
    engine: Engine, pairs: Many[tuple[Media, str]], progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """(N) pictures with a text -> (N, 2) logits float32: apart, together.

    progress  called with the number that is done, and of how many
    Raises UserError for a model that judges no pairs.
    """
    if not isinstance(engine.model, Dual):
        raise UserError(f"a {type(engine.model).__name__} model judges no pairs: ask a contrastive one that does")
    found: list[Tensor] = []
    pending: list[Sequence] = []

    def flush() -> None:
        outputs = engine.outputs(pending)
        found.append(outputs.matching(*outputs.pairs.unbind(1)).float().cpu())
        pending.clear()

    for done, (picture, text) in enumerate(pairs):
        pending.append(engine.renderer.render(Sample((Segment("image", picture), Segment("text", text)))))
        if len(pending) >= engine.items or sum(map(len, pending)) >= engine.tokens:
            flush()
            if progress is not None:
                progress(done + 1, len(pairs))
    if pending:
        flush()
    return torch.cat([torch.zeros(0, 2), *found])


def _vectors(
    engine: Engine,
    samples: Iterable[Sample],
    chosen: Callable[[DualOutputs], Tensor],
    progress: Callable[[int], None] | None,
) -> Tensor:
    model = engine.model
    if not isinstance(model, Dual):
        raise UserError(
            f"a {type(model).__name__} model has no space that pictures and texts share: ask a contrastive one (clip)"
        )
    found: list[Tensor] = []
    pending: list[Sequence] = []

    def flush() -> None:
        if pending:
            found.append(chosen(engine.outputs(pending)))
            pending.clear()
        if progress is not None:
            progress(sum(map(len, found)))

    for sample in samples:
        sequence = engine.renderer.render(sample, max_tokens=engine.context)
        tokens = sum(map(len, pending)) + len(sequence)
        items = sum(len(member.spans) for member in pending) + len(sequence.spans)
        if tokens > engine.tokens or items > engine.items:
            flush()
        pending.append(sequence)
    flush()
    return torch.cat(found) if found else torch.zeros(0, model.config.width)
