"""How far a denoiser's prediction is from what was added."""

from __future__ import annotations

from torch import Tensor

from sensorium.models.denoiser import Denoised
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence


class Denoising(Objective):
    """Squared error of the prediction, the mean over the numbers of a token; every latent token counts the same.

    With a Diffusion schedule this is DDPM's simple loss (Ho et al. 2020, arXiv 2006.11239, equation 14), with a Flow
    schedule conditional flow matching (Lipman et al. 2022, arXiv 2210.02747, equation 9). The noise and the times are
    drawn in the forward pass, from the generator that training seeds for every step.
    """

    name: str = "denoising"

    def count(self, sequence: Sequence) -> float:
        return float(sum(span.length for span in sequence.spans if span.mode == "latent"))

    def __call__(self, outputs: Denoised, sequence: Sequence) -> Loss:
        each = (outputs.output - outputs.target).square().mean(1)
        return Loss(each.sum(), each.new_tensor(float(len(each))), _by_noise(outputs, each.detach()))


def _by_noise(outputs: Denoised, each: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The error at the less and at the more noisy times of the batch, for the log: they differ by far."""
    time = outputs.time[outputs.number]
    noisy = time >= (time.median() if len(time) else 0.0)
    return {
        "error_less_noise": (each[~noisy].sum(), (~noisy).sum()),
        "error_more_noise": (each[noisy].sum(), noisy.sum()),
    }
