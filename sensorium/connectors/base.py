"""What every connector is: features of an encoder in, tokens of the backbone's width out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sensorium.config import Config as Value
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid, Part


class Connector(Part):
    """A subclass gives its Config `after` or `num_tokens`, and `forward`.

    What an item becomes never depends on what shares its batch. With zero items the result is (0, out_width) and still
    depends on every parameter, so that every parameter has a gradient (zero).
    """

    class Config(Value):
        @property
        def reads_text(self) -> bool:
            """Whether what becomes of an item depends on the words of its turn (`Features.texts`)."""
            return False

        def after(self, grid: Grid) -> Grid | None:
            """The layout of the tokens an item with this grid becomes; None when they are no grid (a resampler's)."""
            return None

        def num_tokens(self, grid: Grid) -> int:
            """Tokens an item with this grid becomes. Raises UserError for a grid the connector cannot take."""
            after = self.after(grid)
            if after is None:
                raise NotImplementedError(f"{self.tag()} does not say how many tokens it makes")
            return after.tokens

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        """in_width: of a feature, out_width: of a token."""
        super().__init__()
        self.config, self.in_width, self.out_width = config, in_width, out_width

    def adopt(self, other: Connector) -> None:
        """Take over what `other`, of the same Config and in front of a model of another width, has learned.

        Raises UserError where nothing of a connector is independent of that width.
        """
        raise UserError(
            f"{self.config.tag()} made tokens of width {other.out_width}, now {self.out_width} are wanted, and all of "
            "it depends on that: give both wirings one width, or train it anew under another name"
        )

    def forward(self, features: Features) -> Tensor:
        """features: values (N, in_width) -> (sum of num_tokens(grid), out_width), items in order."""
        raise NotImplementedError(f"{type(self).__name__} connects nothing")


def divided(extent: int, factor: int, what: str, who: str) -> int:
    """extent / factor. Raises UserError, naming both and the connector, when it is not whole."""
    if extent % factor:
        raise UserError(
            f"{who} joins {factor} features along the {what} of a grid, and {extent} {what} cannot be divided by "
            f"{factor}: choose a factor that divides {extent}, or another transform.size for the encoder"
        )
    return extent // factor


def of_like_size(features: Features, run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Items of equally many features together, in the order in which they came: (sum of their tokens, out_width).

    run  (items, N, in_width) and the number of frames -> (items, tokens, out_width)
    """
    if not features.grids:  # one blank feature, of whose tokens none are returned, connects every parameter
        values = features.values
        return run(torch.cat([values, values.new_zeros(1, values.shape[1])])[None], 1)[0, :0]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, grid in enumerate(features.grids):
        groups.setdefault((grid.tokens, grid.frames), []).append(index)
    values, tokens = features.values.split(features.lengths), {}
    for (_, frames), members in groups.items():
        tokens.update(zip(members, run(torch.stack([values[index] for index in members]), frames)))
    return torch.cat([tokens[index] for index in range(len(values))])
