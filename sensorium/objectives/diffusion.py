"""How far a denoiser's prediction is from what was added."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.models.latents import Denoised
from sensorium.models.wiring import Outputs
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import CLEAN, Sequence


class Denoising(Objective):
    """Squared error of the prediction, the mean over the numbers of a token; every latent token counts the same.

    With a Diffusion schedule this is DDPM's simple loss (Ho et al. 2020, arXiv 2006.11239, equation 14), with a Flow
    schedule conditional flow matching (Lipman et al. 2022, arXiv 2210.02747, equation 9). The noise and the times are
    drawn in the forward pass, from the generator that training seeds for every step. Of a language model with latents
    in its stream every noised one counts, of whatever kind.
    """

    name: str = "denoising"

    def count(self, sequence: Sequence) -> float:
        return float(sum(span.length for span in sequence.spans if span.mode == "latent" and span.time != CLEAN))

    def __call__(self, outputs: Denoised | Outputs, sequence: Sequence) -> Loss:
        parts = [outputs] if isinstance(outputs, Denoised) else list(outputs.denoised.values())
        if not parts:
            raise ValueError("nothing was denoised: the model has no latents")
        each, time = torch.cat([_error(part) for part in parts]), torch.cat([part.time[part.number] for part in parts])
        return Loss(each.sum(), each.new_tensor(float(len(each))), _by_noise(time, each.detach()))


def _error(part: Denoised) -> Tensor:
    """(T) squared error of each token."""
    if part.target is None:
        raise ValueError("what is denoised in sampling has no target: leave the noise to the forward pass")
    return (part.output - part.target).square().mean(1)


def _by_noise(time: Tensor, each: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The error at the less and at the more noisy times of the batch, for the log: they differ by far."""
    noisy = time >= (time.median() if len(time) else 0.0)
    return {
        "error_less_noise": (each[~noisy].sum(), (~noisy).sum()),
        "error_more_noise": (each[noisy].sum(), noisy.sum()),
    }
