"""What a denoiser predicts, and what that says of the picture and of the noise.

All four are linear in each other: x = alpha * clean + sigma * noise, and the prediction is a second equation.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sensorium.config import Config

Kind = Literal["noise", "clean", "velocity", "flow"]


class Predictor(Config):
    """kind  noise (DDPM: Ho et al. 2020, arXiv 2006.11239, section 3.2); clean, the picture itself; velocity,
    alpha * noise - sigma * clean (Salimans and Ho 2022, arXiv 2202.00512, appendix D); flow, noise - clean, the
    velocity along a straight line (rectified flow: Liu et al. 2022, arXiv 2209.03003)
    """

    kind: Kind = "noise"

    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What a denoiser should say: clean, noise (N, ...); alpha, sigma broadcast to them -> (N, ...)."""
        match self.kind:
            case "noise":
                return noise
            case "clean":
                return clean
            case "velocity":
                return alpha * noise - sigma * clean
            case "flow":
                return noise - clean

    def estimates(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What a denoiser's output (N, ...) at x (N, ...) says: (clean, noise), both (N, ...).

        A term that the time leaves undetermined (the picture in pure noise, where alpha is 0, from predicted noise) is
        infinite or not a number: predict something else with such a schedule.
        """
        match self.kind:
            case "noise":
                return (x - sigma * output) / alpha, output
            case "clean":
                return output, (x - alpha * output) / sigma
            case "velocity":
                power = alpha * alpha + sigma * sigma
                return (alpha * x - sigma * output) / power, (alpha * output + sigma * x) / power
            case "flow":
                total = alpha + sigma
                return (x - sigma * output) / total, (x + alpha * output) / total
