"""Pictures that are nothing but their seed: 16 x 16 normal noise, made by `load`, never decoded."""

import torch

from sensorium.sequence import Item


class Picture:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def key(self) -> str:
        return str(self.seed)

    def shape(self) -> tuple[int, int]:
        return 16, 16

    def load(self):
        raise AssertionError("made by the loader")


def load(kind, media) -> Item:
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(media.seed))
    return Item(pixels, (16, 16), media.key())
