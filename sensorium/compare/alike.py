"""Recipes made alike in all that is not compared: language model, data, order of samples, batches, questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sensorium.config import Config
from sensorium.data.questions import Captions
from sensorium.data.source import RowError, SourceConfig
from sensorium.data.stream import Stream
from sensorium.encoders.patch import Patch
from sensorium.errors import UserError
from sensorium.evaluate.task import EvaluationTask
from sensorium.models.dual import Dual
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone
from sensorium.recipes.common import closed_evaluations, closed_questions, evaluations_of, instructions
from sensorium.render import Renderer
from sensorium.sequence import MediaError
from sensorium.train.build import tokenizer_of
from sensorium.train.recipe import Recipe, Stage

LONGEST_ROWS = 64
"""Rows of a source that are looked at for the longest sample: sixteen rows longer than it are not met by chance."""
BUILT_IN = "built-in: captions of emoji in all stages but the last, questions about emoji and scenes in the last"
CLOSED = (
    "built-in, for models of which no part is pretrained: categories of emoji and numbers of things in scenes; names "
    "of emoji in stages that compare pictures with words"
)
SCENES = 20_000


class Data(NamedTuple):
    """What all are trained on: `last` in the last stage, `before` in those before it, where one kind of rows is
    enough for all stages the same; `pairs` in those that do not answer in words, None: `before`."""

    before: SourceConfig
    last: SourceConfig
    title: str
    own: bool = False
    pairs: SourceConfig | None = None

    def of(self, last: bool, speaks: bool) -> SourceConfig:
        """The rows of a stage."""
        if not speaks:
            return self.pairs or self.before
        return self.last if last else self.before


def built_in(recipes: Sequence[Recipe]) -> Data:
    """What fits them: where nothing is pretrained, short questions, of which minutes teach something."""
    if any(pretrained(recipe) for recipe in recipes):
        return Data(Captions(), instructions(), BUILT_IN)
    short = closed_questions(SCENES)
    return Data(short, short, CLOSED, pairs=Captions())


def pretrained(recipe: Recipe) -> bool:
    """Whether any part of it is."""
    return bool(recipe.init) or recipe.start is not None


def thawed(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe with its encoders and its language model trained in every stage where they have no pretrained weights,
    and what was changed: to freeze what was drawn at random keeps nothing.

    Not where a stage has adapters, a start that needs the encoder frozen, or no rate for the part.
    """
    stages, parts = [], set[str]()
    for index, stage in enumerate(recipe.stages):
        config, more = recipe.wiring(index), list[str]()
        for part in _random_parts(recipe, config):
            fixed = stage.start is not None and part == f"encoders.{stage.start.kind}"
            if stage.trains(f"{part}.") or stage.adapters or fixed or not _has_rate(stage, part):
                continue
            more.append(part)
        parts.update(more)
        stages.append(stage.replace(train=(*stage.train, *(f"{part}.*" for part in more))))
    said = f"{recipe.name}: {', '.join(sorted(parts))} not pretrained, so trained in every stage." if parts else ""
    return recipe.replace(stages=tuple(stages)), said


def _random_parts(recipe: Recipe, config: Config) -> list[str]:
    """Encoders and language models of a wiring that nothing fills."""
    if recipe.start is not None:
        return []
    inside = [f"encoders.{kind}" for kind in getattr(config, "encoders", {})]
    inside += [name for name in ("source", "backbone") if getattr(config, name, None) is not None]
    return [part for part in inside if not any(one == part or one.startswith(f"{part}.") for one in recipe.init)]


def _has_rate(stage: Stage, part: str) -> bool:
    try:
        stage.lr_of(f"{part}.")
    except UserError:
        return False
    return True


def with_language(recipe: Recipe, first: Recipe) -> tuple[Recipe, str]:
    """The recipe with the language model of another one, and why not where it keeps its own.

    What the design adds to a language model's blocks stays: cross-attention, routes, experts.
    """
    mine, theirs = recipe.model, first.model
    if not isinstance(mine, Fused.Config) or not isinstance(theirs, Fused.Config):
        return recipe, f"{recipe.name} has no language model of this kind, and is trained as it is"
    if mine.source is not None or mine.thinker is not None:
        return recipe, f"{recipe.name} keeps its own language model: it is more than a decoder"
    own, common = mine.backbone, theirs.backbone
    added = ("cross", "routes", "routed", "experts")
    block = common.block.replace(**{name: getattr(own.block, name) for name in added})
    backbone = common.replace(
        block=block, cross_every=own.cross_every, cross_from=own.cross_from,
        vocab=own.vocab if mine.formats else common.vocab,
    )  # fmt: skip
    if backbone == own and recipe.tokenizer == first.tokenizer:
        return recipe, ""
    encoders = {kind: _as_wide(encoder, own, backbone) for kind, encoder in mine.encoders.items()}
    init = {part: file for part, file in recipe.init.items() if part != "backbone"}
    if "backbone" in first.init:
        init["backbone"] = first.init["backbone"]
    model = mine.replace(backbone=backbone, encoders=encoders)
    return recipe.replace(model=model, init=init, tokenizer=first.tokenizer), ""


def _as_wide(encoder: Config, before: Backbone.Config, now: Backbone.Config) -> Config:
    """An encoder that has no width of its own, at the new one: Fuyu's patches are words."""
    if isinstance(encoder, Patch.Config) and encoder.dim == before.width:
        return encoder.replace(dim=now.width)
    return encoder


def on_data(recipe: Recipe, data: Data, order: int, batch: int, steps: Sequence[int]) -> Recipe:
    """The recipe with the comparison's data, `batch` pictures a step, and so many steps a stage.

    A stage goes on in the order where the stage before it on the same rows stopped, so that the n-th sample of a design
    is the n-th of every design on these rows. Token budgets leave room for the longest sample, so that it is the number
    of samples that ends a batch.
    """
    taken: dict[str, int] = {}
    stages = []
    for index, stage in enumerate(recipe.stages):
        last = index == len(recipe.stages) - 1
        config = recipe.wiring(index)
        source = data.of(last, config.speaks)
        if not isinstance(config, Fused.Config | Dual.Config):
            if stage.data is None:
                raise UserError(f"stage {stage.name!r} of {recipe.name} has no data: choose another --size")
            source = stage.data
        which = source.to_json()
        fields = {
            "data": Stream.over(source, order, taken.get(which, 0)),
            "steps": steps[index], "epochs": None, "items": batch, "accumulate": 1, "max_tokens": None,
            "evaluations": (), "start": None if data.own and has_own_data(stage) else stage.start,
        }  # fmt: skip
        taken[which] = taken.get(which, 0) + steps[index] * batch
        stages.append(stage.replace(**fields))
    return recipe.replace(stages=tuple(stages), evaluations=(), figures=())


def has_own_data(stage: Stage) -> bool:
    """Whether its start is fitted to pictures of its own, and not to those that the stage trains on."""
    return stage.start is not None and stage.start.fitted_to is not None


def with_room(recipe: Recipe, batch: int) -> Recipe:
    """Token budgets of at least `batch` times the longest sample. Renders some rows of every source."""
    tokenizer = tokenizer_of(recipe)
    longest: dict[tuple[str, str], int] = {}
    stages: list[Stage] = []
    for index, stage in enumerate(recipe.stages):
        config = recipe.wiring(index)
        assert isinstance(stage.data, Stream)
        parts = tuple(part.source.to_json() for part in stage.data.parts)
        key = ("".join(parts), config.to_json())
        if key not in longest:
            renderer = Renderer(tokenizer, recipe.template_of(config), config.plan)
            longest[key] = max(_longest(part.source, renderer) for part in stage.data.parts)
        room = -(-batch * longest[key] // 256) * 256
        stages.append(stage.replace(tokens=max(stage.tokens, room)))
    return recipe.replace(stages=tuple(stages))


def _longest(source: SourceConfig, renderer: Renderer) -> int:
    built = source.build()
    found = 1
    for index in np.unique(np.linspace(0, len(built) - 1, LONGEST_ROWS).astype(np.int64)).tolist():
        try:
            found = max(found, len(renderer.render(built[index], items=False)))
        except (RowError, MediaError):  # training skips it too
            continue
    return found


def questions(recipes: Sequence[Recipe], count: int) -> tuple[EvaluationTask, ...]:
    """What all of them can be asked, `count` items each. Raises UserError where there is nothing."""
    kinds = {recipe.name: (recipe.model.speaks, isinstance(recipe.model, Dual.Config)) for recipe in recipes}
    if len(set(kinds.values())) > 1:
        one, other = next((a, b) for a in kinds for b in kinds if kinds[a] != kinds[b])
        raise UserError(f"{one} and {other} cannot be asked the same questions, one of them does not answer in words: "
                        "compare recipes of one kind")  # fmt: skip
    speaks, dual = next(iter(kinds.values()))
    if speaks and not dual and not any(pretrained(recipe) for recipe in recipes):
        return closed_evaluations(count)
    if speaks or dual:
        return evaluations_of(recipes[0].model, count)
    tasks = recipes[0].evaluations
    if not tasks or any(recipe.evaluations != tasks for recipe in recipes):
        raise UserError(
            f"{recipes[0].name} is asked nothing that all of these can be asked: compare recipes of one kind"
        )
    return tuple(task.replace(n=count) for task in tasks)
