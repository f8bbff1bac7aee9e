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
        """

        channels: int = Field(default=4, ge=1)
        scale: float = Field(default=1.0, gt=0)

        @property
        def width(self) -> int:
            return self.channels

    config: Config

    def __init__(self, config: Config) -> None:
        channels = config.channels
        super().__init__(config, 2 * channels, channels)
        self.leave, self.enter = nn.Linear(2 * channels, 2 * channels), nn.Linear(channels, channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> scaled means (N, f, rows, cols, channels)."""
        return self._moments(pixels)[0] * self.config.scale

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        return self.pixels(self.enter(values / self.config.scale), frames)

    def forward(self, pixels: Tensor) -> Coded:
        """`divergence`: of an item, from the standard normal distribution, nats per pixel value (Kingma and Welling
        2013, arXiv 1312.6114, appendix B)."""
        mean, log_variance = self._moments(pixels)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).float().sum(1)
        spread = mean.detach().float().std()
        back = self.decode(latents * self.config.scale, pixels.shape[2])
        report = {"latent_std": (spread, torch.ones_like(spread))}
        return Coded(back, {"divergence": nats / pixels[0].numel()}, report)

    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, both (N, f, rows, cols, channels); the latter within -30 and 20."""
        mean, log_variance = self.leave(self.latents(pixels)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)
