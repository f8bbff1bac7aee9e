"""The main job: a LLaVA of real pretrained parts, trained, measured and shown, in minutes on a laptop CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, EmojiQuestions, SceneQuestions
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.text import text_loss
from sensorium.hub.cache import cache_root
from sensorium.recipes.llava import llava
from sensorium.train.finish import caption_examples, engine_of, evaluate, report
from sensorium.train.log import Progress
from sensorium.train.recipe import Recipe
from sensorium.train.trainer import open_run, train
from sensorium.train.warm import RidgeStart

STEPS = {"align": 60, "instruct": 170}


def quickstart_recipe(holdout_dev: bool = False, steps: dict[str, int] | None = None) -> Recipe:
    """LLaVA small with the stages of a ten-minute run.

    holdout_dev  leave the development slices out of training, and evaluate on them instead of the validation splits:
                 how the settings here were chosen
    """
    steps = steps or STEPS
    emoji = EmojiQuestions(
        questions_per_picture=4,
        families=("caption", "keywords", "category", "choice_name", "yes_no"),
        holdout_dev=holdout_dev,
    )
    scenes = SceneQuestions(
        count=20_000,
        questions_per_picture=4,
        families=("count", "where", "what", "relation", "yes_no"),
        holdout_dev=holdout_dev,
    )
    mixture = Mixture(parts=(Part(name="emoji", source=emoji, weight=2), Part(name="scenes", source=scenes, weight=1)))
    recipe = llava("small")
    captions = Captions(holdout_dev=holdout_dev)
    align, instruct = recipe.stages
    stages = (
        align.replace(steps=steps["align"], data=captions, tokens=1536, lr=1e-3, start=RidgeStart(data=captions)),
        instruct.replace(
            steps=steps["instruct"], data=mixture, tokens=2048, lr={"connectors.*": 1e-3, "*": 2e-4}, warmup=0.05
        ),
    )
    splits = ("dev_artist", "dev_concept", "dev_scene") if holdout_dev else ("val_artist", "val_concept", "val_scene")
    sizes = (300, 152, 100, 100) if holdout_dev else (500, 400, 200, 200)
    return recipe.replace(
        stages=stages,
        evaluations=(
            Choice(name="multiple_choice", family="emoji", split=splits[0], n=sizes[0], holdout_dev=holdout_dev),
            Choice(name="multiple_choice", family="emoji", split=splits[1], n=sizes[1], holdout_dev=holdout_dev),
            Choice(name="counting", family="count", split=splits[2], n=sizes[2], holdout_dev=holdout_dev),
            Choice(name="position", family="position", split=splits[2], n=sizes[3], holdout_dev=holdout_dev),
        ),
    )


def quickstart(
    out: Path, *, json: bool = False, console: Console | None = None, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Train, evaluate, report into `out`; an interrupted run is taken up where it stopped. Returns report.json."""
    console = console or Console(stderr=json)
    recipe = recipe or quickstart_recipe()
    began = time.monotonic()
    console.print(f"[bold]Sensorium quickstart[/]: {recipe.title} {recipe.size}, two stages, into {out}")

    def fetching(what: str, done: int, total: int | None) -> None:
        console.print(f"  fetching {what}: {done / 1e6:.0f} of {(total or done) / 1e6:.0f} MB", end="\r")

    run = open_run(recipe, out, progress=fetching)
    cache = cache_root() / "features"
    notes = []
    if not run.results and run.step == 0:
        with run.phases("text before"):
            before = text_loss(engine_of(recipe, run.model, run.tokenizer))
        notes.append(f"Loss on plain English text before training: {before:.3f} nats per token.")
    train(run, console=console)
    engine = engine_of(recipe, run.model, run.tokenizer, cache)
    with run.phases("evaluate"), Progress("evaluate", 1, console=console) as bar:
        results = evaluate(recipe, engine)
        notes.append(f"Loss on the same text after training: {text_loss(engine):.3f} nats per token.")
        bar.note("evaluated")
    with run.phases("examples"):
        examples = [one for task in recipe.evaluations[:2] for one in caption_examples(engine, task.split)]
    run.phases.seconds["total"] = time.monotonic() - began
    data = report(run, results, examples, notes)
    for result in results:
        one = result.evaluation()
        console.print(
            f"  {one.task} {one.split}: {one.score:.1%} ({one.low:.1%} to {one.high:.1%}), blind {one.blind:.1%}, "
            f"chance {one.chance:.1%}, n {one.n}"
        )
    console.print(f"report: {out / 'report.html'}\nchat:   sensorium chat {out}")
    return data
