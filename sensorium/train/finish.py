"""After training: ask the model, and write down what it said."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sensorium.data.emoji import EmojiPicture, concept, pictures
from sensorium.data.source import RowError
from sensorium.evaluate.result import Example, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import SHOWN, Subject
from sensorium.evaluate.text import text_loss
from sensorium.hub.cache import cache_root
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.render import TooLong
from sensorium.report.data import PartRow, ReportData, SkippedRows, task_records
from sensorium.report.environment import environment
from sensorium.report.write import report_json, write_report
from sensorium.sequence import MediaError, Sample, Segment
from sensorium.train.ask import Asking, answers, subject_of
from sensorium.train.history import read_run
from sensorium.train.judge import judge_of
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.trainer import Run, Stopped, train

ROWS, LONGEST = 8, 48  # training rows with free answers in the report, and tokens of an answer


def complete(run: Run, console: Console | None = None) -> dict[str, Any]:
    """Train what is left of a run, evaluate it, and write its report; returns what report.json holds.

    Raises Stopped, with a report written, when a signal asks to stop. On several ranks all train, and the leader does
    the rest: the others return {} when training ends.
    """
    if run.step == 0 and run.ranks.leader:
        _note_text_loss(run, "before training")
    try:
        train(run, console=console)
    except Stopped as stopped:
        if run.ranks.leader:
            report(run, [], [], run.notes, stopped=str(stopped))
        raise
    run.ranks.leave()
    if not run.ranks.leader:
        return {}
    judge = None
    if run.recipe.judge is not None:
        with run.phases("judge"):
            judge = judge_of(run.recipe, console)
    subject = subject_of(run.recipe, run.model, run.tokenizer, cache_root() / "features", judge)
    with run.phases("evaluate"), Asking(console) as asking:
        results = evaluate(run.recipe, subject, asking)
        _note_text_loss(run, "after training")
    with run.phases("examples"):
        speaks = run.recipe.stages and run.recipe.model.speaks
        examples = row_examples(subject.engine, run.recipe.stages[-1]) if speaks else []
    return report(run, results, examples, run.notes)


def _note_text_loss(run: Run, when: str) -> None:
    """What a pretrained language model knows of plain text, to the last bit: whoever is frozen must not lose any."""
    if run.model.config.speaks and "backbone" in run.recipe.init:
        loss = text_loss(subject_of(run.recipe, run.model, run.tokenizer).engine)
        run.notes.append(f"Loss on plain English text {when}: {loss!r} nats per token.")


def evaluate(
    recipe: Recipe, subject: Subject, progress: Callable[[str, int, int], None] | None = None
) -> list[TaskResult]:
    """Every evaluation of the recipe. progress: (task, prompts done, prompts in all)."""
    return answers(recipe.evaluations, subject, progress)


def row_examples(engine: Engine, stage: Stage, count: int = ROWS) -> list[Example]:
    """Free answers beside the expected ones, for rows of a stage spread evenly; unusable rows are left out."""
    assert stage.data is not None
    source = stage.data.build()
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)).tolist():
        try:
            sample = source[index]
            segments = [replace(one, branch=0) for one in sample.segments if one.branch in (0, 1)]
            if not segments or segments[-1].kind != "text" or segments[-1].role not in (None, "assistant"):
                continue
            *asked, expected = segments
            answer = (
                engine.generate([Sample(tuple(asked), sample.id)], Sampling(max_tokens=LONGEST))[0] if asked else ""
            )
        except (RowError, MediaError, TooLong):
            continue
        question = "\n".join(str(one.data) for one in asked if one.kind == "text") or "(the picture alone)"
        pictures = [one.data for one in asked if one.kind == "image"]
        found.append(
            Example(task="training rows", split="train", question=question, answer=answer,
                    expected=str(expected.data), pictures=pictures)
        )  # fmt: skip
    return found


def caption_examples(engine: Engine, split: str, count: int = SHOWN, holdout_dev: bool = False) -> list[Example]:
    """Free answers to "What is this?", beside the answer to the same question about another picture."""
    drawn = random.Random(1).sample(pictures(split, holdout_dev), count)  # type: ignore[arg-type]
    media = [EmojiPicture(member.key, artist) for member, artist in drawn]
    samples = [Sample((Segment("image", one, "user"), Segment("text", "What is this?", "user"))) for one in media]
    swapped = [replace(sample, segments=(other.segments[0], sample.segments[1]))
               for sample, other in zip(samples, samples[1:] + samples[:1])]  # fmt: skip
    answers = engine.generate([*samples, *swapped], Sampling(max_tokens=16))
    rows = zip(drawn, media, answers, answers[count:])
    return [
        Example(task="caption", split=split, question="What is this?", answer=answer,
                expected=concept(member.key).captions["en"], blind=blind, pictures=[picture])
        for (member, _), picture, answer, blind in rows
    ]  # fmt: skip


def report(
    run: Run, results: list[TaskResult], examples: list[Example], notes: list[str], stopped: str = ""
) -> dict[str, Any]:
    """Write report.html, report.json and report.md of a run; returns what report.json holds."""
    curves, stages = read_run(run.folder)
    recipe = run.recipe
    rows: dict[str, PartRow] = {}
    for result in run.results:
        inside = recipe.inside(recipe.stage(result.name))
        parts = result.parts
        if inside:
            parts = {inside: (sum(one for one, _ in parts.values()), sum(one for _, one in parts.values()))}
        for part, (trained, frozen) in parts.items():
            origin = recipe.init[part].title if part in recipe.init else "from scratch"
            row = rows.setdefault(part, PartRow(name=part, parameters=trained + frozen, trained={}, origin=origin))
            if trained:
                row.trained = {**row.trained, result.name: trained}
    skipped = [
        SkippedRows(source=row["part"], reason=row["reason"], count=row["times"], first=row["where"])
        for result in run.results
        for row in result.bad
    ]
    data = ReportData(
        title=f"{recipe.title} {recipe.size}",
        evaluations=[
            *(one for result in results for one in result.evaluations),
            *(Evaluation(**one) for result in run.results for one in result.evaluations),
        ],
        curves=curves,
        stages=stages,
        parts=list(rows.values()),
        examples=[*examples, *(one for result in results for one in result.examples)],
        records=task_records(results),
        tables=[one for result in results for one in result.tables],
        pictures=[one for result in results for one in result.pictures],
        skipped=skipped,
        seconds=run.phases.seconds,
        recipe=recipe.model_dump(mode="json"),
        recipe_yaml=recipe.to_yaml(),
        recipe_name=recipe.name,
        seed=recipe.seed,
        environment={**environment(), "torch": torch.__version__, "threads": str(torch.get_num_threads())},
        stopped=stopped,
        notes=notes,
    )
    write_report(run.folder, data)
    return report_json(data)
