"""docs/claims.md: claims and verdicts, then of each its protocol, its effects and what every design scored."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch

from benchmarks.claims.claim import Effect, Judged
from sensorium.compare.run import AVERAGE
from sensorium.compare.table import cost_cells, score_cell
from sensorium.evaluate.result import ComparedRow
from sensorium.report.data import label_of
from sensorium.report.environment import environment

HEAD = """
Made by `{command}`: {minutes:.0f} minutes in all on {place}. A claim is a test of effects that was fixed before
anything was trained (benchmarks/claims/designs.py). **Reproduced**: every effect that decides has a 95 % interval
above zero. **Not reproduced**: one has its interval below zero, with Bonferroni's correction. **Not decidable**:
these items do not tell. Intervals are of a paired bootstrap over the same items{seeds}. A task that no design has
learned (none beats its blind control, the same model with pictures shuffled across items) tells nothing and is left
out; where a design has learned no task, nothing is decided, since it may only have been trained badly.

What this can say is narrow: language models of {size} parameters that start random, a pretrained encoder of three
million, emoji and scenes of them, minutes of training. It tests how a picture gets into a language model, not what a
large one makes of it; a claim that is not reproduced here may hold where it was made, and the other way round.
"""


def document(tested: Sequence[Judged]) -> str:
    facts, threads = environment(), torch.get_num_threads()
    command = f"sensorium bench claims {' '.join(one.claim.letter for one in tested)}"
    many = max(one.seeds for one in tested) > 1
    head = HEAD.format(
        command=command, minutes=sum(one.minutes for one in tested), size="0.3 to 7.4 million",
        place=f"{facts['cpu']}, {threads} thread{'s' if threads > 1 else ''}",
        seeds=" and over seeds" if many else " (one seed: its luck is in none of them)",
    )  # fmt: skip
    lines = [
        "# Claims of surveys, tested at a small scale", "",
        *(line for part in head.strip().split("\n\n") for line in (filled(part), "")),
        "| | claim | effect | measured (95 %) | verdict | minutes |", "|-|-|-|-|-|-:|",
    ]  # fmt: skip
    for one in tested:
        for number, effect in enumerate(effect for effect in one.effects if effect.decides):
            start = f"| {one.claim.letter} | {one.claim.says} " if not number else "| | "
            end = f"| {one.verdict} | {one.minutes:.0f} |" if not number else "| | |"
            lines.append(f"{start}| {effect.name} | {measured(effect, one)} {end}")
    return "\n".join(lines) + "\n" + "".join(_section(one) for one in tested)


def filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _section(one: Judged) -> str:
    claim = one.claim
    lines = [
        "", f"## {claim.letter}. {claim.says}", "", filled(f"Source: {claim.source}."), "", filled(claim.protocol), "",
        f"**{one.verdict[0].upper()}{one.verdict[1:]}.**", "",
        *([filled(f"Left out, since nothing learned it: {'; '.join(one.idle)}."), ""] if one.idle else []),
        *([filled(f"Learned nothing, so nothing is decided: {'; '.join(one.blank)}."), ""] if one.blank else []),
        f"| effect | {'points' if claim.points else 'nats per byte'} (95 %) | decides |", "|-|-|-|",
    ]  # fmt: skip
    lines += [
        f"| {effect.name} | {measured(effect, one)} | {'yes' if effect.decides else ''} |" for effect in one.effects
    ]
    rows = [row for row in one.comparison.rows if row.seed is None] or one.comparison.rows
    tasks = [label_of(score) for score in rows[0].scores if score.task != AVERAGE]
    lines += [
        "", f"| design | {' | '.join(tasks)} | parameters trained | training FLOPs | samples | tokens of a picture |",
        f"|-|{'-|' * len(tasks)}-:|-:|-:|-:|",
    ]  # fmt: skip
    return "\n".join([*lines, *(_row(row, tasks) for row in rows)]) + "\n"


def _row(row: ComparedRow, tasks: Sequence[str]) -> str:
    found = {
        label_of(score): score_cell(score, row.spread[n] if row.spread else None) for n, score in enumerate(row.scores)
    }
    trained, _, flops, samples, _, _, _, tokens = cost_cells(row)
    return f"| {row.name} | {' | '.join(found[task] for task in tasks)} | {trained} | {flops} | {samples} | {tokens} |"


def measured(effect: Effect, one: Judged) -> str:
    found = effect.interval
    if one.claim.points:
        return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def in_words(one: Judged) -> str:
    lines = [f"{one.claim.letter}. {one.claim.says} {one.verdict} ({one.minutes:.0f} min)"]
    return "\n".join(lines + [f"  {effect.name}: {measured(effect, one)}" for effect in one.effects])
