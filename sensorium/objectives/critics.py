"""What others say of reconstructions: a frozen encoder to which both should look alike, and a critic that learns.

Options beside `Reconstruct` in a codec's stage. Whoever judges is a part of the stage's wiring, among its `critics`,
and no part of the model that uses the codec later.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.models.wiring import CodecOutputs, Critic, Encoder, as_it_is
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence


class _OfReconstructions(Objective):
    """kind: of the items. critic: the name of who judges them."""

    kind: str = "image"
    critic: str

    def count(self, sequence: Sequence) -> float:
        return float(len(sequence.items.get(self.kind, ())))

    def _judge(self, outputs: Any) -> Any:
        if not isinstance(outputs, CodecOutputs) or self.critic not in outputs.critics:
            known = sorted(outputs.critics) if isinstance(outputs, CodecOutputs) else []
            raise ValueError(f"no critic is called {self.critic!r}: the stage's wiring has {known}; give it "
                             f"critics={{{self.critic!r}: ...}}")  # fmt: skip
        return outputs.critics[self.critic]


class Perceptual(_OfReconstructions):
    """Squared distance of the features of a frozen encoder, each brought to unit length (LPIPS without learned weights:
    Zhang et al. 2018, arXiv 1801.03924, section 3)."""

    name: str = "perceptual"
    critic: str = "perceptual"

    def __call__(self, outputs: Any, sequence: Sequence) -> Loss:
        encoder = self._judge(outputs)
        assert isinstance(encoder, Encoder)
        total = torch.zeros((), dtype=torch.float32, device=sequence.ids.device)
        for pixels, coded in outputs.batches[self.kind]:
            with torch.no_grad():
                real = _features(encoder, pixels)
            total = total + (_features(encoder, coded.pixels) - real).square().sum(-1).flatten(1).mean(1).sum()
        return Loss(total, torch.tensor(self.count(sequence)))


def _features(encoder: Encoder, pixels: Tensor) -> Tensor:
    """pixels (N, 3, F, H, W), normalised to [-1, 1] -> unit features (N, F * cells, D) of the encoder."""
    transform = encoder.config.transform
    frames = (pixels.transpose(1, 2).flatten(0, 1).float() + 1) / 2
    frames = F.interpolate(frames, size=transform.view, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(of, device=frames.device)[:, None, None] for of in (transform.mean, transform.std))
    made = encoder.encode(((frames - mean) / std).to(encoder.reference().dtype)).float()
    return F.normalize(made, dim=-1).unflatten(0, (len(pixels), -1)).flatten(1, 2)


class Adversarial(_OfReconstructions):
    """Hinge losses of critic and codec in one backward pass: neither moves by the other's (VQGAN, section 3.1).

    codec  weight of what the codec learns, beside the critic's own loss
    """

    name: str = "adversarial"
    critic: str = "pieces"
    codec: float = 0.1

    def __call__(self, outputs: Any, sequence: Sequence) -> Loss:
        critic = self._judge(outputs)
        assert isinstance(critic, Critic)
        device = sequence.ids.device
        sums = {name: torch.zeros((), dtype=torch.float32, device=device) for name in ("critic", "fools")}
        for pixels, coded in outputs.batches[self.kind]:
            real, made = critic(pixels), critic(coded.pixels.detach())
            sums["critic"] = sums["critic"] + (F.relu(1 - real) + F.relu(1 + made)).float().mean(1).sum()
            sums["fools"] = sums["fools"] - as_it_is(critic, coded.pixels).float().mean(1).sum()
        count = torch.tensor(self.count(sequence))
        report = {name: (value.detach(), count) for name, value in sums.items()}
        return Loss(sums["critic"] + self.codec * sums["fools"], count, report)
