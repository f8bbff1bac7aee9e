"""Descriptions: figures worked out by hand, and costs that follow from them."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from sensorium.config import override
from sensorium.errors import UserError
from sensorium.nn.backbone import Local, llama
from sensorium.nn.lora import add_lora
from sensorium.nn.moe import MixtureOfExperts
from sensorium.recipes.catalog import find
from sensorium.sequence import Item
from sensorium.train.cost import LOSS_TOKENS, TEXT_TOKENS, stage_cost
from sensorium.train.describe import Description, count, describe, describe_tree, measure, native, size_of, summary
from sensorium.train.recipe import Figure

# tiny LLaVA: 64 features of width 64 -> 64 tokens of width 96; 3 blocks, feed-forward 256, vocabulary 259 (tied)
CONNECTOR = 64 * 96
BLOCK = 4 * 96 * 96 + 3 * 96 * 256
TOKENS = 64 + TEXT_TOKENS
CONNECT_FLOPS = 2 * CONNECTOR * 64
BLOCK_FLOPS = 2 * BLOCK * TOKENS
SCORE_FLOPS = 4 * TOKENS * TOKENS * 96  # queries times keys, and shares times values
HEAD_FLOPS = 2 * 96 * 259 * LOSS_TOKENS


@pytest.fixture(scope="module")
def tiny() -> Description:
    return describe(find("llava", "tiny"))


def test_parameters_and_stages_by_hand(tiny: Description):
    assert tiny.parts["connectors.image"] == CONNECTOR + 96
    assert tiny.parts["backbone"] == 3 * (BLOCK + 2 * 96) + 96 + 259 * 96
    align, instruct = tiny.stages
    assert align.trained == CONNECTOR + 96
    assert instruct.trained == tiny.parts["connectors.image"] + tiny.parts["backbone"]


def test_flops_of_frozen_passed_through_and_trained_parts(tiny: Description):
    align, instruct = (view.cost.flops for view in tiny.stages if view.cost)
    forward = CONNECT_FLOPS + 3 * (BLOCK_FLOPS + SCORE_FLOPS) + HEAD_FLOPS
    assert align.forward == instruct.forward == forward
    # stage 1: gradients pass through the frozen model (twice a product's forward cost for scores, once for weights),
    # and stop at the connector's weights: its input is the frozen encoder's
    passed = HEAD_FLOPS + 3 * (BLOCK_FLOPS + 2 * SCORE_FLOPS)
    assert align.backward == passed + CONNECT_FLOPS
    # stage 2: weight gradients besides; the embedding is a lookup
    assert instruct.backward == passed + HEAD_FLOPS + 3 * BLOCK_FLOPS + CONNECT_FLOPS
    assert align.encode_once == instruct.encode_once > 0


def test_an_encoder_that_learns_is_part_of_every_step():
    flops = [view.cost.flops for view in describe(find("yi-vl", "tiny")).stages if view.cost]
    assert [one.encode_once for one in flops] == [0, 0, 0]
    frozen = describe(find("llava", "tiny")).stages[0].cost
    assert frozen is not None
    assert flops[0].forward > frozen.flops.forward + frozen.flops.encode_once


def test_memory_holds_states_of_what_trains(tiny: Description):
    align, instruct = (view.cost.memory for view in tiny.stages if view.cost)
    assert align.weights == 2 * tiny.total
    assert align.optimizer == 8 * (CONNECTOR + 96)
    assert instruct.masters == instruct.gradients == 4 * tiny.stages[1].trained
    assert instruct.total == sum(
        (instruct.weights, instruct.masters, instruct.gradients, instruct.optimizer, instruct.activations)
    )
    assert 0 < align.activations <= instruct.activations


def test_checkpointing_trades_memory_for_a_second_forward_pass():
    recipe = find("llava", "tiny")
    stages = tuple(stage.replace(checkpointing=True) for stage in recipe.stages)
    plain, again = describe(recipe).stages[1].cost, describe(recipe.replace(stages=stages)).stages[1].cost
    assert plain is not None
    assert again is not None
    assert again.memory.activations < plain.memory.activations
    assert again.flops.backward - plain.flops.backward == 3 * (BLOCK_FLOPS + SCORE_FLOPS)


@pytest.mark.parametrize("name", [
    "llava", *(pytest.param(name, marks=pytest.mark.slow) for name in ("yi-vl", "minigpt-v2", "llava-next"))
])  # fmt: skip
def test_costs_of_deep_stacks_are_those_of_the_whole_model(name: str):
    recipe = find(name, "tiny")
    for path in ("model.backbone.depth=6", "model.encoders.image.backbone.depth=5", "model.encoders.image.drop_last=1"):
        recipe = override(recipe, path)
    stages = tuple(stage.replace(checkpointing=stage.name == "align") for stage in recipe.stages)
    recipe = recipe.replace(stages=stages)
    with torch.device("meta"):
        model = recipe.model.build().to(torch.bfloat16)
    encoder = recipe.model.encoders["image"]
    views = torch.empty(encoder.grid(native(encoder)).views, 3, 64, 64, device="meta")
    for view in describe(recipe).stages:
        add_lora(model, view.stage.adapters)
        whole = stage_cost(model, view.stage, {"image": Item(views, native(encoder))})
        assert view.cost is not None
        assert view.cost.flops == whole.flops
        assert view.cost.memory.optimizer == whole.memory.optimizer
        assert view.cost.memory.activations == pytest.approx(whole.memory.activations, rel=1e-6)


def test_blocks_that_a_stage_treats_apart_are_all_run():
    recipe = override(find("llava", "tiny"), "model.backbone.depth=6")
    some = recipe.stages[0].replace(train=("connectors.*", "backbone.blocks.5.*"))
    every = recipe.stages[0].replace(train=("connectors.*", "backbone.blocks.*"))
    last, all_six = (describe(recipe.replace(stages=(stage,))).stages[0].cost for stage in (some, every))
    assert last is not None
    assert all_six is not None
    assert all_six.flops.backward - last.flops.backward == 5 * BLOCK_FLOPS


def test_adapters_count_as_a_part_of_their_own():
    found = describe(find("minigpt-v2", "tiny"), costs=False)
    assert found.parts["backbone.lora"] == 3 * 2 * 64 * (96 + 96)
    assert found.stages[0].parts["backbone"][0] == 0


def test_json_has_the_promised_keys(tiny: Description):
    found = json.loads(json.dumps(tiny.to_json()))
    assert found["parameters"]["total"] == sum(found["parameters"]["by_part"].values()) == tiny.total
    assert found["tokens_per_item"] == {"image": 64}
    assert [stage["name"] for stage in found["stages"]] == ["align", "instruct"]
    assert {"trained", "frozen", "flops_per_sample", "memory_bytes"} <= set(found["stages"][0])
    paper = describe(find("llava-1.5", "paper"), costs=False).to_json()
    assert paper["tokens_per_item"] == {"image": 576}
    assert all(set(figure) >= {"name", "published", "ours", "tolerance", "holds"} for figure in paper["figures"])


def test_tokens_of_any_resolution_pictures():
    found = describe(find("llava-next", "paper"), costs=False)
    # thumbnail 24 x 24, then rows of tiles each with a newline
    assert found.tokens == {"image": 576 + 48 * (48 + 1)}
    assert found.tokens_by_size["image"]["336x1344"] == 576 + 24 * (96 + 1)
    assert found.tokens_by_size["image"]["1344x336"] == 576 + 96 * (24 + 1)
    assert measure(found, "tokens.image@336x336") == 576 + 24 * (24 + 1)  # padding of the 336 x 672 canvas is cut


def test_a_figure_that_does_not_hold_says_so_and_an_unknown_one_raises():
    recipe = find("llava", "tiny")
    wrong = recipe.replace(figures=(Figure(name="tokens.image", published=60, tolerance=0.05),))
    (figure,) = describe(wrong, costs=False).figures
    assert (figure.ours, figure.holds) == (64, False)
    unknown = recipe.replace(figures=(Figure(name="token.image", published=64),))
    with pytest.raises(UserError, match=r"did you mean 'tokens.image'"):
        describe(unknown, costs=False)


def test_a_glob_that_matches_nothing_raises():
    recipe = find("llava", "tiny")
    stage = recipe.stages[0].replace(train=("conectors.*",))
    with pytest.raises(UserError, match=r"'conectors.\*' matches no parameter"):
        describe(recipe.replace(stages=(stage,)), costs=False)


def test_describing_allocates_no_weights(tiny: Description):
    before = torch.get_default_device()
    describe(find("llava", "tiny"), costs=False)
    assert torch.get_default_device() == before


def test_tree_shows_parts_stages_and_figures():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(describe_tree(describe(find("llava-1.5", "paper"))))
    text = console.export_text()
    for word in (
        "LLaVA-1.5 7B",
        "7.06 B",
        "connectors.image",
        "MLP: depth 2",
        "576 tokens",
        "align",
        "holds",
        "yes",
    ):
        assert word in text


def test_numbers_for_people():
    assert [count(number) for number in (7_062_902_784, 20_979_712, 512)] == ["7.06 B", "21 M", "512"]
    assert [size_of(amount) for amount in (13.5e9, 2.5e6)] == ["13.5 GB", "2 MB"]


def test_experts_and_windows_are_told():
    stack = llama(vocab=0, width=16, depth=6, heads=4, hidden=24)
    ffn = MixtureOfExperts.Config(hidden=24, experts=8, top=2)
    stack = stack.replace(block=stack.block.replace(ffn=ffn), local=Local(window=4096, layers=(0, 2, 9)))
    assert summary(stack) == (
        "Backbone: 6 blocks of 16, 4 heads, ffn 24 x 8, 2 a token, a window of 4,096 tokens in 2"
    )  # fmt: skip
