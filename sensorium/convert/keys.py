"""How the tensors of a published layout and those of a model here are the same ones: rules that read both ways.

    Rule("layers.{}.self_attn.q_proj.*", "blocks.{}.attention.q.*")
    Rule("encoder.layers.{}.self_attn.qkv.*", ("blocks.{}.attention.q.*", ..k.., ..v..), Split())

`{}` stands for a number, `*` for the rest of a name. A rule whose names here do not exist in the model is not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sensorium.errors import UserError

Names = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]


class Fit:
    """What happens to tensors on the way; this one: nothing."""

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """The published tensors -> those here, whose shapes are given."""
        return tensors

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """Those here -> the published ones; the inverse of `into`, to the last bit."""
        return tensors


SAME = Fit()


class Transposed(Fit):
    """(in, out) there, (out, in) here: the "Conv1D" of GPT-2."""

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.T if tensor.ndim == 2 else tensor for tensor in tensors]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.into(tensors, [])


class Reshaped(Fit):
    """The same numbers in another shape: a convolution over patches (D, 3, P, P) is a linear layer (D, 3 P P).

    shape  the published one; -1 once, for what follows from the rest
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(shape) for tensor, shape in zip(tensors, shapes)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.shape) for tensor in tensors]


class Split(Fit):
    """The rows of one published tensor are those of several here, one after another.

    before  what happens to the published tensor first
    """

    def __init__(self, before: Fit = SAME) -> None:
        self.before = before

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        [whole] = self.before.into(tensors, [])
        sizes = [shape[0] for shape in shapes]
        if sum(sizes) != len(whole):
            raise ValueError(f"{len(whole)} rows do not split into {sizes}")
        return list(whole.split(sizes))

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.before.back([torch.cat(tensors)])


class Joined(Fit):
    """Several published tensors of one shape, one after another, are the rows of one here.

    count  how many
    each   what happens to each of them first
    """

    def __init__(self, count: int, each: Fit = SAME) -> None:
        self.count, self.each = count, each

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        [shape] = shapes
        part = (shape[0] // self.count, *shape[1:])
        return [torch.cat(self.each.into(tensors, [part] * self.count))]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.each.back(list(tensors[0].chunk(self.count)))


class Appended(Fit):
    """Published tables of any heights, one after another, are the rows of one here.

    rows  how many each of them has; -1 once, for what follows from the rest
    """

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [torch.cat(tensors)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        [whole] = tensors
        rest = len(whole) - sum(rows for rows in self.rows if rows >= 0)
        return [part.contiguous() for part in whole.split([rest if rows < 0 else rows for rows in self.rows])]


class Woven(Fit):
    """Queries, keys and values of one published tensor alternate head by head (BLOOM, Persimmon): (H, 3, W) rows."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        rows = tensors[0].unflatten(0, (self.heads, len(shapes), -1))
        return [rows[:, part].reshape(shape) for part, shape in enumerate(shapes)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([one.unflatten(0, (self.heads, -1)) for one in tensors], 1).flatten(0, 2)]


@dataclass(frozen=True)
class Rule:
    """Published names and names here that are the same tensors. Names are templates, see above."""

    theirs: str | Names
    ours: str | Names
    fit: Fit = field(default=SAME)

    @property
    def sides(self) -> tuple[Names, Names]:
        return _names(self.theirs), _names(self.ours)

    def under(self, theirs: str = "", ours: str = "") -> Rule:
        """The same rule for a part whose names begin with these."""
        there, here = self.sides
        return replace(self, theirs=tuple(theirs + one for one in there), ours=tuple(ours + one for one in here))


def _names(names: str | Names) -> Names:
    return (names,) if isinstance(names, str) else names


def under(rules: Iterable[Rule], theirs: str = "", ours: str = "") -> list[Rule]:
    """The rules of a part that stands inside another."""
    return [rule.under(theirs, ours) for rule in rules]


@dataclass(frozen=True)
class Pair:
    """Tensors that are the same ones: full names on both sides, and what happens on the way."""

    theirs: Names
    ours: Names
    fit: Fit

    def into(self, tensors: list[Tensor], shapes: Shapes) -> dict[str, Tensor]:
        """Raises UserError where a shape is not the model's."""
        wanted = [tuple(shapes[name]) for name in self.ours]
        try:
            made = self.fit.into(tensors, wanted)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{' and '.join(self.theirs)}: {error}") from error
        for name, tensor, shape in zip(self.ours, made, wanted, strict=True):
            if tuple(tensor.shape) != shape:
                raise UserError(f"{' and '.join(self.theirs)} has shape {tuple(tensor.shape)} as {name}, and the model "
                                f"that config.json describes has {shape}: they contradict each other")  # fmt: skip
        return dict(zip(self.ours, made))

    def back(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.theirs, self.fit.back(tensors), strict=True))


def pairs(rules: Sequence[Rule], names: Iterable[str]) -> list[Pair]:
    """How every tensor here is found there. The first rule that knows a name counts.

    names  of the model's tensors
    Raises ValueError for a name that no rule knows: the family's rules do not cover its models.
    """
    wanted = list(names)
    compiled = [(rule, *rule.sides, [_pattern(one) for one in rule.sides[1]]) for rule in rules]
    found: dict[Names, Pair] = {}
    unknown = []
    for name in wanted:
        for rule, theirs, ours, patterns in compiled:
            matched = next((match for match in (one.fullmatch(name) for one in patterns) if match), None)
            if matched is None:
                continue
            fill = _filler(matched.groups())
            pair = Pair(tuple(map(fill, theirs)), tuple(map(fill, ours)), rule.fit)
            found.setdefault(pair.ours, pair)
            break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"no rule says where {unknown[:3]} are in the published layout")
    return list(found.values())


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{\}|\*)", template)
    return re.compile("".join({"{}": r"(\d+)", "*": r"(.+)"}.get(piece, re.escape(piece)) for piece in pieces))


def _filler(values: Sequence[str]) -> Callable[[str], str]:
    def fill(template: str) -> str:
        left = iter(values)
        return re.sub(r"\{\}|\*", lambda _: next(left), template)

    return fill
