"""Noised spans in a language model's stream, denoised in several steps while what stands before them stays read."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from sensorium.diffusion.sampler import Sampler
from sensorium.infer.cache import Cache
from sensorium.mask import compile_layout
from sensorium.models.latent_stream import LatentStream, noisy
from sensorium.models.latents import Noised
from sensorium.sequence import Sequence


@torch.inference_mode()
def denoise(
    model: LatentStream, sequence: Sequence, kind: str, noise: Tensor, sampler: Sampler,
    cache: Cache | None = None, slots: Many[int] = (), seed: int = 0,
) -> Tensor:  # fmt: skip
    """(N, P) float32, the clean tokens of the noised spans of a kind, in the order of the spans.

    sequence     documents, or with a cache what stands behind what its slots hold; that is then as it was before
    noise        (N, P) where to start
    seed         of the noise that a random sampler adds
    """
    config = model.head(kind).config
    trail, layout = sampler.trail(config.schedule), compile_layout(sequence, model.config.rule)
    draws = torch.Generator().manual_seed(seed)
    spans = len(noisy(model.locate(kind, sequence).spans))

    def predicted(x: Tensor, time: float) -> Tensor:
        given = {kind: Noised(x, x.new_full((spans,), time))}
        if cache is None:
            return model(sequence, layout=layout, noised=given).denoised[kind].output
        held = [cache.lengths[slot] for slot in slots]
        cache.reserve(max(before + count for before, count in zip(held, layout.lengths)))
        with cache.step(slots, layout):
            outputs = model(sequence, cache, layout, noised=given)
        for slot, before in zip(slots, held):
            cache.truncate(slot, before)
        return outputs.denoised[kind].output

    def asked(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        terms = x.new_tensor(trail.alpha[index]), x.new_tensor(trail.sigma[index])
        return config.predictor.estimates(predicted(x, trail.times[index]), x, *terms)

    def fresh() -> Tensor:
        return torch.randn(noise.shape, generator=draws).to(noise)

    return sampler.run(trail, noise * trail.sigma[0], asked, fresh)
