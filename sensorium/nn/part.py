"""What every part is, and how features travel from an encoder to a connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sensorium.config import Config, owned


class Part(nn.Module):
    """A module with a nested frozen `Config`; `Config.build(...)` makes it."""

    Config: type[Config]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        owned(cls)


class Together(Protocol):
    """The ranks that train together, as a part meets them between two steps, never within a forward pass."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over ranks, the same on all of them."""
        ...


@runtime_checkable
class Stepped(Protocol):
    """A part that changes by itself when an optimizer step is done: moving means, codes that nothing uses."""

    def after_step(self, ranks: Together) -> dict[str, float]:
        """Change, and return what the log shows."""
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    """How the features of one item are laid out.

    Without `tiles`: frames x rows x cols features, row-major. With tiles (R, C), any-resolution pictures: the
    whole-picture view first, then R x C tile views in row-major order, each rows x cols features.

    size  (height, width) of the original picture in pixels, where a connector needs its aspect ratio
    extra  features before those of each view that belong to no cell (a class token)
    """

    rows: int
    cols: int
    frames: int = 1
    tiles: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    extra: int = 0

    @property
    def views(self) -> int:
        """Pictures the encoder sees for this item."""
        return self.frames if self.tiles is None else 1 + self.tiles[0] * self.tiles[1]

    @property
    def tokens(self) -> int:
        """Features the encoder returns for this item."""
        return self.views * (self.extra + self.rows * self.cols)


@dataclass(slots=True)
class Features:
    """Packed features of several items: values (N, D), N = sum of grid.tokens.

    texts  for each item ids (M) of the words it is read with, or None; None where the connector asks for none
    """

    values: Tensor
    grids: list[Grid]
    texts: list[Tensor | None] | None = None

    @property
    def lengths(self) -> list[int]:
        return [grid.tokens for grid in self.grids]
