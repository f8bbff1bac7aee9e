"""Records, comparisons and pictures for tests of reports: made up, and of the form that evaluations leave."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from sensorium.data.boxes import format_box
from sensorium.evaluate.parts import by_part
from sensorium.evaluate.records import Record
from sensorium.evaluate.result import ComparedRow, Comparison, Difference
from sensorium.evaluate.statistics import Evaluation, Interval, Score
from sensorium.report.data import ReportData, TaskRecords

COLOURS = ("red", "green", "blue", "orange", "purple")
PARTS = ("colour", "count", "place")


def drawing(path, index):
    """A coloured block on grey, and where it is: x0 y0 x1 y1 in [0, 1]."""
    rng = random.Random(index)
    x, y = rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5)
    box = (x, y, x + 0.4, y + 0.35)
    image = Image.new("RGB", (320, 240 if index % 3 else 400), "#d8d8d0")
    size = image.size * 2
    ImageDraw.Draw(image).rectangle([edge * side for edge, side in zip(box, size)], fill=COLOURS[index % 5])
    image.save(path)
    return box


def record(index, folder=None, word="", skill=0.7, seed=0):
    """An answer that is right, wrong, unreadable or an error, in the same way for the same index and seed."""
    rng = random.Random(f"{index} {seed}")
    part, colour = PARTS[index % 3], COLOURS[index % 5]
    right, luck = rng.random() < skill, rng.random() < 0.25
    made = Record(
        id=f"made-{index:04d}{word}", part=part + word, prompt=f"What is the {part} of the block?{word}",
        said=f"It is {colour if right else 'grey'}.{word}", parsed=colour if right else "grey", score=float(right),
        expected=colour + word, blind_said=colour if luck else "grey", blind_parsed=colour, blind_score=float(luck),
    )  # fmt: skip
    if folder is not None:
        path = folder / f"{index}.png"
        box = drawing(path, index)
        made.pictures = [str(path)]
        if part == "place":
            moved = tuple(min(1.0, edge + (0.02 if right else 0.2)) for edge in box)
            made.prompt, made.expected = "Where is the block?", format_box(box, "decimal")
            made.said, made.parsed = f"At {format_box(moved, 'decimal')}.", [list(moved)]  # type: ignore[arg-type]
    if index % 17 == 5:
        made.said, made.parsed, made.score = "I cannot tell", None, 0.0
    if index % 41 == 7:
        made.said, made.parsed, made.score, made.error = None, None, 0.0, f"the endpoint timed out after 60 s{word}"
    return made


def evaluation(records, task="blocks", split="test", **fields):
    return Evaluation.of(
        task, split, [one.score or 0 for one in records], blind=[one.blind_score or 0 for one in records], **fields
    )


def evaluated(count=200, folder=None, word=""):
    """The report of an evaluation."""
    records = [record(index, folder, word) for index in range(count)]
    graded = Evaluation(
        task=f"captions{word}", split="test", n=50, score=0.873, low=0.81, high=0.95, blind=0.12, margin=0.753,
        margin_low=0.69, margin_high=0.81, metric="CIDEr", percent=False,
    )  # fmt: skip
    return ReportData(
        title=f"An evaluation{word}", kind="evaluation",
        evaluations=[evaluation(records, f"blocks{word}", chance=0.2), graded],
        records=[TaskRecords(task=f"blocks{word}", split="test", records=records)],
        tables=by_part(
            f"blocks{word}", "test", records, [Score("accuracy")],
            lambda members: [sum(records[index].score or 0 for index in members) / len(members)],
        ),
        environment={"cpu": f"made up{word}", "torch": "2"},
    )  # fmt: skip


NAMES = {"llava": 0.7, "blip-2": 0.66, "flamingo": 0.5, "cogvlm": 0.72, "fuyu": 0.3}


def compared(count=120, folder=None, word="", seeds=1):
    """The report of a comparison: five designs on two tasks, one of which failed."""
    rows, blocks, names = [], [], [name + word for name in NAMES]
    for place, (name, skill) in enumerate(NAMES.items()):
        records = [record(index, folder, word, skill, name) for index in range(count)]
        blocks.append(TaskRecords(task="blocks", split="test", records=records, by=name + word))
        scores = [evaluation(records, chance=0.2), evaluation(records[:60], "emoji_choice", "val_artist", chance=0.25)]
        rows += [
            ComparedRow(
                name=name + word, title=f"{name} tiny{word}", seed=None if seeds > 1 and seed == 0 else seed,
                scores=scores, parameters=2_400_000 + 300_000 * place, trained=1_100_000,
                flops=2.1e13 * (1 + place / 3), samples=2000, steps=125,
                seconds=61.0 + place, samples_per_second=2000 / 61, peak_memory=810_000_000,
                tokens_per_picture=None if name == "fuyu" else 16.0 * (1 + place), folder=f"{name}-seed{seed}",
            )
            for seed in range(seeds)
        ]  # fmt: skip
    rows.append(
        ComparedRow(name="emu3" + word, title="", seed=0, scores=[], parameters=0, trained=0, flops=0.0, samples=0,
                    steps=0, seconds=0.0, samples_per_second=0.0, peak_memory=0, tokens_per_picture=None,
                    error=f"no picture of the data fits its codec{word}")
    )  # fmt: skip
    differences = []
    for one, first in enumerate(names):
        for other in range(one + 1, len(names)):
            margin = list(NAMES.values())[one] - list(NAMES.values())[other]
            better = None if abs(margin) < 0.1 else margin > 0
            interval = Interval(margin, margin - 0.1, margin + 0.1)
            differences.append(
                Difference(one=first, other=names[other], task="blocks test", margin=interval, better=better)
            )
    comparison = Comparison(
        title=f"Five designs{word}", budget=f"2,000 samples{word}", data=f"built-in{word}", rows=rows,
        differences=differences, notes=[f"All are given the language model of llava.{word}"],
    )  # fmt: skip
    return ReportData(
        title=f"Five designs{word}", comparison=comparison, records=blocks, environment={"cpu": "made up"}
    )
