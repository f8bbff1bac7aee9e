"""The blind control: the same questions, each with the media of another item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.task import shuffled
from sensorium.sequence import Media, Segment


def blinded(items: Sequence[TaskItem], seed: int) -> list[TaskItem | None]:
    """Each item with the media of another in place of its own, none of which it has itself; None where it has no media,
    or no other item has any of the kind.

    Whose media it gets follows from the items, their ids and the seed, not from the order in which they stand. Raises
    MediaError for media that cannot be read.
    """
    keys = [_keys(item) for item in items]
    units: dict[tuple[str, ...], int] = {}  # items about the same media -> who stands for them
    for index in sorted(range(len(items)), key=lambda index: items[index].id):
        if keys[index]:
            units.setdefault(keys[index], index)
    place = {unit: number for number, unit in enumerate(units)}
    standing = list(units.values())
    order = shuffled(len(units), seed)
    found: list[TaskItem | None] = []
    for index, item in enumerate(items):
        media = None
        if keys[index]:
            own = unit = place[keys[index]]
            while media is None and (unit := order[unit]) != own:
                media = _fitting(item.media, items[standing[unit]].media, set(keys[index]))
        found.append(None if media is None else replace(item, media=media))
    return found


def _keys(item: TaskItem) -> tuple[str, ...]:
    return tuple(one.data.key() for one in item.media if isinstance(one.data, Media))


def _fitting(own: Sequence[Segment], others: Sequence[Segment], keys: set[str]) -> tuple[Segment, ...] | None:
    """Another item's media at the places of one's own, in turn where there are fewer; None where a kind is missing."""
    strange: dict[str, list[Segment]] = {}
    for one in others:
        if isinstance(one.data, Media) and one.data.key() not in keys:
            strange.setdefault(one.kind, []).append(one)
    found, taken = [], dict.fromkeys(strange, 0)
    for one in own:
        if not isinstance(one.data, Media):
            found.append(one)
            continue
        if one.kind not in strange:
            return None
        other = strange[one.kind][taken[one.kind] % len(strange[one.kind])]
        taken[one.kind] += 1
        found.append(replace(one, data=other.data, start=other.start, end=other.end))
    return tuple(found)
