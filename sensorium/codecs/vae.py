"""Continuous latents: a variational autoencoder whose prior is barely felt (latent diffusion, arXiv 2112.10752)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.codecs.base import Coded
from sensorium.codecs.conv import Convolutional


class VAE(Convolutional):
    """Pixels -> convolutions -> mean and variance of each latent -> convolutions -> pixels.

    What is kept of an item is the mean, so that the same item always has the same latent; training draws from the
    whole distribution.
    """

    class Config(Convolutional.Config):
        """channels  of a latent
        scale     latents are multiplied by it, which brings their spread near 1 (latent diffusion, section G: 0.18215
                  for Stable Diffusion's)
        shift     is taken from them before that, which brings their mean near 0 (Stable Diffusion 3: arXiv 2403.03206)
        leave, enter  whether a linear layer mixes the channels of each latent: those that convolutions made, and those
                  that the others read (Stable Diffusion 3 has neither)
        """

        channels: int = Field(default=4, ge=1)
        scale: float = Field(default=1.0, gt=0)
        shift: float = 0.0
        leave: bool = True
        enter: bool = True

        @property
        def width(self) -> int:
            return self.channels

    config: Config

    def __init__(self, config: Config) -> None:
        channels = config.channels
        super().__init__(config, 2 * channels, channels)
        self.leave = nn.Linear(2 * channels, 2 * channels) if config.leave else nn.Identity()
        self.enter = nn.Linear(channels, channels) if config.enter else nn.Identity()

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> scaled means (N, f, rows, cols, channels)."""
        return self._scaled(self.moments(pixels)[0])

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        return self.pixels(self.enter(values / self.config.scale + self.config.shift), frames)

    def forward(self, pixels: Tensor) -> Coded:
        """`divergence`: of an item, from the standard normal distribution, nats per pixel value (Kingma and Welling
        2013, arXiv 1312.6114, appendix B)."""
        mean, log_variance = self.moments(pixels)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).float().sum(1)
        spread = mean.detach().float().std()
        back = self.decode(self._scaled(latents), pixels.shape[2])
        report = {"latent_std": (spread, torch.ones_like(spread))}
        return Coded(back, {"divergence": nats / pixels[0].numel()}, report)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, both (N, f, rows, cols, channels); the latter within -30 and 20."""
        mean, log_variance = self.leave(self.latents(pixels)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self.config.shift) * self.config.scale
