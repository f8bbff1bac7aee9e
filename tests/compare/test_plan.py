"""What designs share: budgets over stages, one order of samples, one language model, the same questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium.commands.compare import Comparing, named_recipes, own_questions, seeds_of
from sensorium.compare import alike
from sensorium.compare.alike import built_in, on_data, questions, thawed, with_language
from sensorium.compare.budget import Budget, parse_budget, shares, steps_of
from sensorium.compare.calibrate import Speed
from sensorium.compare.plan import Wanted, planned
from sensorium.compare.vary import CONNECTORS, varied
from sensorium.config import from_json
from sensorium.data.questions import Captions
from sensorium.data.stream import Stream
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.recipes.catalog import find
from sensorium.train.build import build_model
from sensorium.train.recipe import Recipe
from sensorium.train.task import check_stages

NAMES = ("llava", "blip-2", "flamingo", "cogvlm", "fuyu")
NAMES_AND_MORE = built_in([find("llava", "small")])


@pytest.mark.parametrize(
    ("text", "budget"),
    [("10m", (600, "seconds")),
     ("90s", (90, "seconds")), ("1.5h", (5400, "seconds")), ("2000samples", (2000, "samples")),
     ("1e15flops", (1e15, "flops")), ("2e+3 Samples", (2000, "samples"))],
)  # fmt: skip
def test_budgets_are_read(text: str, budget: tuple[float, str]):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "10", "m", "-3m", "0s", "3 parsecs", "1e999s"])
def test_what_is_no_budget_is_said(text: str):
    with pytest.raises(UserError, match="budget"):
        parse_budget(text)


def test_a_budget_is_split_as_the_recipe_splits_its_tokens():
    llava = find("llava", "tiny")  # 60 and 200 steps of as many tokens
    assert shares(llava.stages) == pytest.approx([60 / 260, 200 / 260])
    assert shares([llava.stages[0], llava.stages[1].replace(steps=None, epochs=1)]) == [0.5, 0.5]
    assert steps_of(Budget(320, "samples"), shares(llava.stages), [16, 16]) == [4, 16]  # what is left goes to the last
    assert steps_of(Budget(10, "seconds"), [0.5, 0.5], [0.1, 2.0]) == [50, 2]
    assert steps_of(Budget(1, "seconds"), [0.5, 0.5], [9.0, 9.0]) == [1, 1]


def rows(stage, places, seed):
    source = stage.data.build()
    return [source[sum(source.sizes[:part]) + index].id for part, index in
            ((part, source.stream_row(part, stream, seed)) for part, stream in
             (source.stream(place, 0) for place in places))]  # fmt: skip


def test_the_nth_sample_is_the_same_for_every_design():
    last = []
    for name in ("llava", "fuyu"):  # of two stages and of one, whose own seeds of order differ
        recipe = find(name, "tiny")
        ready = on_data(recipe, NAMES_AND_MORE, 3, 4, [5] * len(recipe.stages))
        last.append(rows(ready.stages[-1], range(8), seed=len(ready.stages)))
    assert last[0] == last[1]
    other = on_data(find("fuyu", "tiny"), NAMES_AND_MORE, 4, 4, [5])
    assert rows(other.stages[-1], range(8), 0) != last[0]


def test_a_stage_goes_on_where_the_one_before_stopped():
    minigpt = find("minigpt-4", "tiny")  # three stages, the first two on captions
    ready = on_data(minigpt, NAMES_AND_MORE, 0, 4, [5, 7, 2])
    first, second, last = (stage.data for stage in ready.stages)
    assert (first.skip, second.skip, last.skip) == (0, 20, 0)
    assert rows(ready.stages[1], [0], 1) == rows(ready.stages[0], [20], 0)
    stream = Stream.over(NAMES_AND_MORE.before, order=1, skip=3)
    source = stream.build()
    plain = Stream.over(NAMES_AND_MORE.before, order=1).build()
    assert source.stream(source.samples - 1, 0) == plain.stream(2, 1)  # behind the end of an epoch comes the next
    assert from_json(stream.to_json(), Stream) == stream


def test_designs_without_pretrained_parts_get_short_questions():
    recipes = [find(name, "tiny") for name in NAMES]
    data = built_in(recipes)
    assert built_in([*recipes, find("llava", "small")]) == NAMES_AND_MORE
    represent, generate = on_data(recipes[1], data, 0, 4, [5, 7]).stages  # BLIP-2's first stage does not speak
    assert generate.data.parts[0].source.families == ("category",)
    assert represent.data.parts[0].source == Captions()
    align, instruct = (stage.data for stage in on_data(recipes[0], data, 0, 4, [5, 7]).stages)
    assert (align.parts, instruct.skip) == (instruct.parts, 20)  # the same rows: the second goes on
    assert {task.family for task in questions(recipes, 8)} == {"category", "count"}
    assert {task.family for task in questions([find("llava", "small")], 8)} == {"emoji", "count", "position"}


def test_what_is_random_is_not_frozen():
    for name in NAMES:
        recipe = find(name, "tiny")
        now, said = thawed(recipe)
        check_stages(now)
        for index, stage in enumerate(now.stages):
            names = [name for name, _ in build_model(now, now.wiring(index)).named_parameters()]
            frozen = {name for name in names if not stage.trains(name)}
            assert not any(name.startswith(("encoders.", "backbone.")) for name in frozen), (name, stage.name)
        assert (said == "") == (name == "fuyu")
        assert now.replace(stages=recipe.stages) == recipe
        assert thawed(now)[0] == now
    changed = thawed(find("llava", "tiny"))[1]
    assert changed == "llava: backbone, encoders.image not pretrained, so trained in every stage."
    small = find("llava", "small")
    assert thawed(small) == (small, "")
    half = find("llava", "tiny").replace(init={"encoders.image": small.init["encoders.image"]})
    assert thawed(half)[0].stages[0].train == ("connectors.*", "backbone.*")
    fixed = half.stages[0].replace(lr={"connectors.*": 1e-3})  # no rate for it: it stays as it is
    assert thawed(half.replace(stages=(fixed,)))[0].stages == (fixed,)


def test_all_have_the_language_model_of_the_first():
    first = find("llava", "tiny")
    for name in NAMES[1:]:
        own = find(name, "tiny")
        alike, kept = with_language(own, first)
        assert kept == ""
        assert isinstance(alike.model, Fused.Config)
        assert isinstance(own.model, Fused.Config)
        before, now = first.model.backbone, alike.model.backbone
        assert (now.width, now.depth, now.vocab, now.rope) == (before.width, before.depth, before.vocab, before.rope)
        assert now.block.replace(cross=None, routes=1) == before.block
        assert (now.block.cross, now.block.routes) == (own.model.backbone.block.cross, own.model.backbone.block.routes)
    assert alike.model.encoders["image"].width == first.model.backbone.width  # Fuyu's patches are words of it
    _, kept = with_language(find("blip-2-flan-t5", "tiny"), first)
    assert "keeps its own" in kept


def test_a_plan_says_steps_and_costs_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alike, "LONGEST_ROWS", 8)

    def measure(recipe: Recipe, measuring: Callable[[], None]) -> Speed:
        if recipe.name == "fuyu":
            raise UserError("fuyu cannot be trained: killed")
        measuring()  # Fuyu's is known, and nothing said of it
        return Speed((0.5, 0.5), 10**8, "a machine", share=0.4)

    said: list[str] = []
    recipes = [(name, find(name, "tiny")) for name in ("llava", "fuyu")]
    recipes.append(("empty", recipes[0][1].replace(stages=())))
    wanted = Wanted(recipes=recipes, budget=parse_budget("20s"), seeds=(2, 5), data=NAMES_AND_MORE)
    plan = planned(wanted, measure, said.append)
    assert said == ["llava: measuring the speed of 2 stages"]
    assert [(entry.name, entry.seed) for entry in plan.entries[:3]] == [("llava", 2), ("fuyu", 2), ("empty", 2)]
    llava, fuyu, empty, again = plan.entries[:4]
    assert fuyu.error == "fuyu cannot be trained: killed"  # an error of its rows alone
    assert "no stage" in empty.error
    assert llava.error == ""
    assert llava.steps == again.steps == (9, 31)
    assert llava.seconds == 20.0
    assert llava.speed == 32.0
    assert 0 < llava.trained < llava.parameters
    assert llava.tokens_per_picture == 64
    assert llava.flops > 0
    assert [stage.items for stage in llava.recipe.stages] == [16, 16]
    assert (llava.recipe.seed, again.recipe.seed) == (2, 5)
    assert all(stage.tokens >= 16 * 64 for stage in llava.recipe.stages)
    assert "language model of llava" in plan.notes[0]
    assert "others used the processor (it had 40% of one)" in " ".join(plan.notes)
    assert "a machine" in plan.notes[-1]
    assert plan.tasks == questions([llava.recipe], 300)


def test_one_axis_of_one_recipe():
    llava = find("llava", "tiny")
    found = varied(llava, f"model.connectors.image={','.join(CONNECTORS)}")
    assert [name for name, _ in found] == list(CONNECTORS)
    for name, recipe in found:
        assert isinstance(recipe.model, Fused.Config)
        recipe.model.build()  # at widths that fit
        tokens = recipe.model.num_tokens("image", (64, 64))
        assert tokens == (64 if "mlp" in name or name == "linear" else 16)
    rates = varied(llava, "stages.align.lr=1e-3,5e-4")
    assert [(name, recipe.stages[0].lr) for name, recipe in rates] == [("1e-3", 1e-3), ("5e-4", 5e-4)]


@pytest.mark.parametrize(
    ("axis", "said"),
    [("model.connectors.image", "form"), ("model.connectors.image=linear", "two values"), ("seed=1,1", "twice"),
     ("model.connectors.image=linear,qformr", "did you mean 'qformer'"), ("model.conectors.image=1,2", "connectors"),
     ("model.backbone=big,small", "no other has a short name"), ("stages.align.steps=[1,2", "not readable")],
)  # fmt: skip
def test_a_wrong_axis_is_said(axis: str, said: str):
    with pytest.raises(UserError, match=said):
        varied(find("llava", "tiny"), axis)


def test_questions_are_those_that_all_can_be_asked():
    assert len(questions([find("llava", "small"), find("fuyu", "tiny")], 50)) == 4
    assert all("val" in task.split for task in questions([find("clip", "tiny"), find("siglip", "tiny")], 50))
    with pytest.raises(UserError, match="same questions"):
        questions([find("llava", "tiny"), find("clip", "tiny")], 50)


def test_mistakes_of_the_command_are_said(tmp_path: Path):
    with pytest.raises(UserError, match="needs two"):
        named_recipes(Comparing(("llava",), "10s", "tiny"))
    with pytest.raises(UserError, match="named twice"):
        named_recipes(Comparing(("llava", "llava"), "10s", "tiny"))
    with pytest.raises(UserError, match="name one"):
        named_recipes(Comparing(("llava", "fuyu"), "10s", "tiny", vary="seed=1,2"))
    with pytest.raises(UserError, match="no file"):
        own_questions([str(tmp_path / "none.jsonl")], None, None)
    with pytest.raises(UserError, match="not given"):
        own_questions([], "exact", None)
    assert own_questions([], None, None) is None
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Two and two?", "answer": "four"}\n')
    (task,) = own_questions([str(path)], "exact", 5) or ()
    assert (task.name, task.n) == ("mine", 5)
    described = tmp_path / "described.toml"
    described.write_text('n = 7\n[source]\ntask = "jsonl"\npath = "mine.jsonl"\n')
    assert [one.n for one in own_questions([str(path), str(described)], None, None) or ()] == [0, 7]
    with pytest.raises(UserError, match="two tasks are called 'mine'"):
        own_questions([str(path), str(path)], None, None)
    with pytest.raises(UserError, match="mine needs a judge"):
        own_questions([str(path)], "clipscore", None)
    assert seeds_of("0,2,1") == (0, 2, 1)
    for text in ("", "a", "1,1", "-1"):
        with pytest.raises(UserError, match="seeds"):
            seeds_of(text)
