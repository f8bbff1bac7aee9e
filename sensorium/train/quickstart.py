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
from sensorium.recipes.common import FEW, NAMED
from sensorium.recipes.llava import llava
from sensorium.train import checkpoint
from sensorium.train.ask import Asking
from sensorium.train.finish import caption_examples, evaluate, report, subject_of
from sensorium.train.loader import Batches
from sensorium.train.recipe import Recipe
from sensorium.train.task import Task
from sensorium.train.trainer import Run, device_of, open_run, train

ALIGN_STEPS = 40
INSTRUCT_SECONDS = 370.0  # of the second stage, whatever the machine; its steps follow from its speed
FEWEST, MOST = 80, 600
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right", "picture"
)  # fmt: skip
"""Words for where the ten tokens of a scene lie."""
DEVIATIONS = (
    "quickstart: a picture becomes ten tokens, its features averaged over 3 x 3 windows and over the whole, or only "
    "the last where it is smaller than 160 px (an emoji), so that minutes on two cores suffice; where "
    "each of ten lies says a learned vector that starts as the words for the place",
    "quickstart: the projection starts from a closed-form fit to word embeddings (train/warm.py): of captions, and of "
    "the numbers of things in scenes",
    "quickstart: options are scored by likelihood relative to their prior, the likelihood without any picture",
)


def quickstart_recipe(holdout_dev: bool = False, instruct_steps: int = 130) -> Recipe:
    """LLaVA small with the stages of a ten-minute run.

    holdout_dev  leave the development slices out of training, and evaluate on them instead of the validation splits:
                 how the settings here were chosen
    """
    recipe = llava("small")
    vision = recipe.model.encoders["image"].replace(positions="none")
    captions = Captions(holdout_dev=holdout_dev)
    counts = SceneQuestions(count=1000, questions_per_picture=1, families=("count",), holdout_dev=holdout_dev)
    pairs = Mixture(parts=(Part(name="captions", source=captions), Part(name="counts", source=counts)))
    align, instruct = recipe.stages
    stages = (
        align.replace(
            steps=ALIGN_STEPS,
            data=captions,
            tokens=768,
            lr=3e-4,
            start=NAMED.replace(data=pairs, words={"place": PLACES}),
        ),
        instruct.replace(
            steps=instruct_steps,
            data=_questions(holdout_dev),
            tokens=1024,
            lr={"connectors.*": 3e-4, "*": 2e-4},
            warmup=0.05,
        ),
    )
    return recipe.replace(
        model=recipe.model.replace(encoders={"image": vision}, connectors={"image": FEW}),
        stages=stages,
        evaluations=_evaluations(holdout_dev),
        deviations=(*recipe.deviations, *DEVIATIONS),
    )


def _questions(holdout_dev: bool) -> Mixture:
    """Mostly the question what a picture shows; beside it other questions about pictures, and about scenes."""
    names = EmojiQuestions(questions_per_picture=1, families=("caption",), rounds=8, holdout_dev=holdout_dev)
    others = EmojiQuestions(
        questions_per_picture=4, families=("keywords", "category", "choice_name", "yes_no"), holdout_dev=holdout_dev
    )
    scenes = SceneQuestions(
        count=20_000,
        questions_per_picture=4,
        families=("count", "where", "where"),
        holdout_dev=holdout_dev,
    )
    return Mixture(
        parts=(
            Part(name="names", source=names, weight=5),
            Part(name="questions", source=others, weight=0.3),
            Part(name="scenes", source=scenes, weight=1.2),
        )
    )


def _evaluations(holdout_dev: bool) -> tuple[Choice, ...]:
    artist, concept, scene = (
        ("dev_artist", "dev_concept", "dev_scene") if holdout_dev else ("val_artist", "val_concept", "val_scene")
    )
    common = {"scoring": "prior", "holdout_dev": holdout_dev}
    return (
        Choice(name="multiple_choice", family="emoji", split=artist, n=300 if holdout_dev else 500, **common),
        Choice(name="multiple_choice", family="emoji", split=concept, n=152 if holdout_dev else 400, **common),
        Choice(name="counting", family="count", split=scene, n=200, **common),
        Choice(name="position", family="position", split=scene, n=200, **common),
    )


def fit_to_machine(run: Run) -> Recipe:
    """The recipe with as many steps in its last stage as this machine does in INSTRUCT_SECONDS.

    Measured on two real micro-batches before training; the number is part of the recipe from then on, so a resumed run
    repeats it.
    """
    stage = run.recipe.stages[-1]
    task = Task(run.recipe, stage, run.model, run.tokenizer, cache_root() / "features", device_of(None))
    batches = Batches(stage, task.renderer, run.recipe.seed)
    seconds = []
    for _ in range(3):
        sequences = [task.complete(batches.build().sequence)]
        began = time.monotonic()
        task.backward(sequences, task.counts(sequences))
        seconds.append(time.monotonic() - began)
        task.model.zero_grad(set_to_none=True)
    each = min(seconds) * 1.2  # the optimizer's share
    steps = max(FEWEST, min(MOST, round(INSTRUCT_SECONDS / each)))
    return run.recipe.replace(stages=(*run.recipe.stages[:-1], stage.replace(steps=steps)))


def quickstart(
    out: Path, *, json: bool = False, console: Console | None = None, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Train, evaluate, report into `out`; an interrupted run is taken up where it stopped. Returns report.json."""
    console = console or Console(stderr=json)
    found = checkpoint.latest(out)
    fitted = recipe is not None or found is not None
    recipe = recipe or (checkpoint.read_recipe(found) if found is not None else quickstart_recipe())
    console.print(f"[bold]Sensorium quickstart[/]: {recipe.title} {recipe.size}, two stages, into {out}")

    def fetching(what: str, done: int, total: int | None) -> None:
        console.print(f"  fetching {what}: {done / 1e6:.0f} of {(total or done) / 1e6:.0f} MB", end="\r")

    run = open_run(recipe, out, progress=fetching)
    notes = []
    if run.step == 0:
        with run.phases("text before"):
            before = text_loss(subject_of(recipe, run.model, run.tokenizer).engine)
        notes.append(f"Loss on plain English text before training: {before:.3f} nats per token.")
    if not fitted:
        with run.phases("measure speed"):
            recipe = run.recipe = fit_to_machine(run)
        console.print(f"this machine gets {recipe.stages[-1].steps} steps of the second stage")
    train(run, console=console)
    subject = subject_of(recipe, run.model, run.tokenizer, cache_root() / "features")
    engine = subject.engine
    with run.phases("evaluate"):
        with Asking(console) as asking:
            results = evaluate(recipe, subject, asking)
        notes.append(f"Loss on the same text after training: {text_loss(engine):.3f} nats per token.")
    with run.phases("examples"):
        examples = [one for task in recipe.evaluations[:2] for one in caption_examples(engine, task.split)]
    data = report(run, results, examples, notes)
    for result in results:
        one = result.evaluations[0]
        console.print(
            f"  {one.task} {one.split}: {one.score:.1%} ({one.low:.1%} to {one.high:.1%}), blind {one.blind:.1%}, "
            f"chance {one.chance:.1%}, n {one.n}"
        )
    console.print(f"report: {out / 'report.html'}\nchat:   sensorium chat {out}")
    return data
