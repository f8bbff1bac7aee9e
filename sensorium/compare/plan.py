"""What a comparison will do, all of it, before anything is trained: which recipes, how many steps of each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sensorium.compare.alike import Data, has_own_data, on_data, questions, thawed, with_language, with_room
from sensorium.compare.budget import Budget, shares, steps_of
from sensorium.compare.calibrate import Speed
from sensorium.errors import UserError
from sensorium.evaluate.task import EvaluationTask
from sensorium.models.fused import Fused
from sensorium.train.describe import Description, describe
from sensorium.train.recipe import Recipe
from sensorium.train.task import check_stages

BATCH, COUNT = 16, 300
Calibrate = Callable[[Recipe, Callable[[], None]], Speed]
"""A recipe, and what is called before it is measured: where its speed is known, nothing is."""
BUSY = "{name}: its speed was measured while others used the processor (it had {share:.0%} of one)."


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for.

    recipes   (name, recipe) in the order of the table; names are unique
    own       data of some designs alone, by name, where what they are trained on is compared
    language  whether all get the language model of the first one; not where one recipe's values vary
    thaw      whether what is frozen without pretrained weights is trained; not where what is frozen is compared
    files     recipes of the user's own among them (path/to/file.py:function)
    batch     pictures a step
    count     items of each question
    """

    recipes: Sequence[tuple[str, Recipe]]
    budget: Budget
    seeds: tuple[int, ...] = (0,)
    data: Data
    own: Mapping[str, Data] = field(default_factory=dict)
    tasks: tuple[EvaluationTask, ...] | None = None
    language: bool = True
    thaw: bool = False
    files: tuple[str, ...] = ()
    batch: int = BATCH
    count: int = COUNT


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row that will be: a recipe, ready to be trained, and what is known of it. `error`: why it cannot be."""

    name: str
    title: str
    seed: int
    recipe: Recipe
    parameters: int = 0
    trained: int = 0
    flops: float = 0.0
    steps: tuple[int, ...] = ()
    seconds: float = 0.0
    speed: float = 0.0
    peak_memory: int = 0
    tokens_per_picture: float | None = None
    error: str = ""

    @property
    def place(self) -> str:
        """The name of its run folder."""
        safe = "".join(sign if sign.isalnum() or sign in "-._" else "-" for sign in self.name)
        return f"{safe}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """What a comparison that goes on must find unchanged."""
        return {"name": self.name, "seed": self.seed, "steps": list(self.steps), "error": self.error,
                "recipe": self.recipe.model_dump(mode="json")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    wanted: Wanted
    entries: list[Entry]
    tasks: tuple[EvaluationTask, ...]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        wanted = self.wanted
        return {
            "budget": str(wanted.budget), "data": wanted.data.title, "batch": wanted.batch,
            "tasks": [task.model_dump(mode="json") for task in self.tasks],
            "entries": [entry.to_json() for entry in self.entries], "notes": self.notes,
        }  # fmt: skip


def planned(wanted: Wanted, calibrate: Calibrate, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Raises UserError for what concerns all; what concerns one recipe becomes the error of its rows.

    say  is told what goes on, since measuring takes seconds
    """
    recipes = dict(wanted.recipes)
    tasks = questions(list(recipes.values()), wanted.count) if wanted.tasks is None else wanted.tasks
    notes: list[str] = []
    entries: list[Entry] = []
    lender = _lender(list(recipes.values())) if wanted.language else None
    machines = set()
    for name, recipe in recipes.items():
        said: list[str] = []
        try:
            if lender is not None:
                recipe, kept = with_language(recipe, lender)
                said += [kept] if kept else []
            if wanted.thaw:
                recipe, changed = thawed(recipe)
                said += [changed] if changed else []
            found, speed, more = _of_recipe(name, recipe, wanted, calibrate, say)
            entries += found
            machines.add(speed.machine)
            notes += [*said, *more]
        except UserError as error:
            entries += [
                Entry(name=name, title=recipe.title, seed=seed, recipe=recipe, error=str(error))
                for seed in wanted.seeds
            ]
    if lender is not None:
        notes.insert(0, f"All have the language model of {lender.name}; what a design adds to its blocks stays.")
    elif wanted.language:
        notes.insert(0, "None of these is a language model that another could have: each is trained as it is.")
    notes += [f"Speed and memory were measured once, before training, on {place}." for place in sorted(machines)]
    order = {name: number for number, name in enumerate(recipes)}
    entries.sort(key=lambda entry: (wanted.seeds.index(entry.seed), order[entry.name]))
    return Plan(wanted=wanted, entries=entries, tasks=tasks, notes=notes)


def _lender(recipes: Sequence[Recipe]) -> Recipe | None:
    """The first whose language model is a decoder that another can have."""
    for recipe in recipes:
        model = recipe.model
        if isinstance(model, Fused.Config) and model.source is None and model.thinker is None:
            return recipe
    return None


def _of_recipe(
    name: str, recipe: Recipe, wanted: Wanted, calibrate: Calibrate, say: Callable[[str], None]
) -> tuple[list[Entry], Speed, list[str]]:
    if not recipe.stages:
        raise UserError(f"{recipe.name} has no stage that trains anything")
    parts, data = shares(recipe.stages), wanted.own.get(name, wanted.data)
    ready = with_room(on_data(recipe, data, 0, wanted.batch, [1] * len(parts)), wanted.batch)
    check_stages(ready)
    described = describe(ready)
    flops = [float(view.cost.flops.training) if view.cost is not None else 0.0 for view in described.stages]
    stages = f"{len(parts)} stage{'s' if len(parts) > 1 else ''}"
    speed = calibrate(ready, lambda: say(f"{name}: measuring the speed of {stages}"))
    match wanted.budget.unit:
        case "seconds":
            costs = list(speed.step_seconds)
        case "samples":
            costs = [float(wanted.batch)] * len(parts)
        case "flops":
            costs = [wanted.batch * one for one in flops]
            if min(costs) <= 0:
                raise UserError(f"the FLOPs of {name} are not counted: give a budget in time or samples")
    steps = steps_of(wanted.budget, parts, costs)
    seconds = sum(count * one for count, one in zip(steps, speed.step_seconds))
    entries = []
    for seed in wanted.seeds:
        placed = on_data(ready, data, seed, wanted.batch, steps)
        entries.append(
            Entry(
                name=name, title=recipe.title, seed=seed, recipe=placed.replace(seed=seed), steps=tuple(steps),
                parameters=described.total, trained=_trained(described, ready),
                flops=float(wanted.batch * sum(count * one for count, one in zip(steps, flops))), seconds=seconds,
                speed=wanted.batch * sum(steps) / seconds, peak_memory=speed.peak_memory,
                tokens_per_picture=_tokens(described),
            )
        )  # fmt: skip
    busy = [BUSY.format(name=name, share=speed.share)] if speed.share < 0.75 else []
    return entries, speed, [_split(name, ready, steps, speed), *_started(name, recipe, data), *busy]


def _split(name: str, recipe: Recipe, steps: Sequence[int], speed: Speed) -> str:
    spent = [
        f"{stage.name} {count} step{'s' if count != 1 else ''} at {seconds:g} s"
        for stage, count, seconds in zip(recipe.stages, steps, speed.step_seconds)
    ]
    return f"{name}: {', '.join(spent)}."


def _started(name: str, recipe: Recipe, data: Data) -> list[str]:
    started = [stage for stage in recipe.stages if stage.start is not None]
    left = [stage for stage in started if data.own and has_own_data(stage)]
    done = [stage.name for stage in started if stage not in left]
    notes = [f"{name}: no start of its connector, which is fitted to the built-in pictures."] if left else []
    return [*notes, *([f"{name}: the start before {', '.join(done)} is outside the budget."] if done else [])]


def _trained(described: Description, recipe: Recipe) -> int:
    """Parameters of the model that any stage trains."""
    return sum(count for name, count in described.sizes.items() if any(stage.trains(name) for stage in recipe.stages))


def _tokens(described: Description) -> float | None:
    tokens = described.tokens.get("image")
    return None if tokens is None else float(tokens)
