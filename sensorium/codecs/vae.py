"""Continuous latents: a variational autoencoder whose prior is barely felt (latent diffusion, arXiv 2112.10752)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.codecs.base import Codec, Coded
from sensorium.codecs.conv import Convolutions, Down, Up
from sensorium.encoders.transform import ImageTransform


class VAE(Codec):
    """Pixels -> convolutions -> mean and variance of each latent -> convolutions -> pixels.

    What is kept of an item is the mean, so that the same item always has the same latent; training draws from the
    whole distribution.
    """

    class Config(Codec.Config):
        """channels  of a latent
        scale     latents are multiplied by it, which brings their spread near 1 (latent diffusion, section G: 0.18215
                  for Stable Diffusion's)
        """

        transform: ImageTransform = ImageTransform(size=256)
        conv: Convolutions = Convolutions()
        channels: int = Field(default=4, ge=1)
        scale: float = Field(default=1.0, gt=0)

        @property
        def width(self) -> int:
            return self.channels

        @property
        def spatial(self) -> int:
            return self.conv.spatial

        @property
        def temporal(self) -> int:
            return self.conv.temporal

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        channels = config.channels
        self.down, self.up = Down(config.conv, 2 * channels), Up(config.conv, channels)
        self.leave, self.enter = nn.Linear(2 * channels, 2 * channels), nn.Linear(channels, channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> scaled means (N, f, rows, cols, channels)."""
        return self._moments(pixels)[0] * self.config.scale

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        latents = self.enter(values / self.config.scale)
        return self.up(latents.permute(0, 4, 1, 2, 3), frames)

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
        mean, log_variance = self.leave(self.down(pixels).permute(0, 2, 3, 4, 1)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)
