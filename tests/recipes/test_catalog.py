"""Every recipe at every size: what it is made of, what its stages train, and whether its published figures hold."""

from __future__ import annotations

from functools import cache

import pytest

from sensorium.config import from_json, override
from sensorium.connectors.anyres import AnyRes
from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import Adjacent
from sensorium.diffusion.schedule import Diffusion
from sensorium.errors import UserError
from sensorium.evaluate.contrastive import Retrieval, ZeroShot
from sensorium.evaluate.drawing import Judged
from sensorium.evaluate.painting import Gallery, Painted
from sensorium.models.denoiser import Denoiser
from sensorium.recipes.catalog import SIZES, find, names
from sensorium.render import Renderer
from sensorium.tokenizer import Tokenizer
from sensorium.train.describe import Description, describe
from sensorium.train.recipe import Recipe

NAMES = tuple(names())
PUBLISHED_TOTALS = {
    "llava-1.5": 7_062_902_784,  # llava-1.5-7b-hf has 7,063,427,072 with 64 padding rows in embedding and head
    "llava-1.5-13b": 13_350_839_296,
    "llava-next-34b": 34_750_000_000,
}
# part -> what the paper says of each stage: parts that train, all others frozen
PUBLISHED_STAGES = {
    "llava": [{"connectors.image"}, {"connectors.image", "backbone"}],
    "llava-1.5": [{"connectors.image"}, {"connectors.image", "backbone"}],
    "llava-1.5-13b": [{"connectors.image"}, {"connectors.image", "backbone"}],
    "llava-next": [{"connectors.image"}, {"encoders.image", "connectors.image", "backbone"}],
    "llava-next-34b": [{"connectors.image"}, {"encoders.image", "connectors.image", "backbone"}],
    "yi-vl": [{"encoders.image", "connectors.image"}] * 2 + [{"encoders.image", "connectors.image", "backbone"}],
    "seechat": [{"connectors.image"}, {"connectors.image", "backbone"}],
    "chinese-llava": [{"connectors.image"}, {"connectors.image", "backbone"}],
    "minigpt-v2": [{"connectors.image", "backbone.lora"}] * 3,
    "flamingo": [{"connectors.image", "backbone.cross"}],
    "openflamingo": [{"connectors.image", "backbone.cross"}],
    "cogvlm": [{"connectors.image", "backbone.routes"}] * 2,
    **{key: [{"encoders.image", "connectors.image", "backbone", "head"}] for key in ("clip", "siglip", "unicl")},
    "fuyu": [{"encoders.image", "connectors.image", "backbone"}],
    **{key: [{"codecs.image"}, {"backbone"}, {"backbone"}] for key in ("chameleon", "emu3")},
    "next-gpt": [
        {"enter", "time", "prompt", "backbone", "backbone.cross", "leave"},
        {"connectors.image"},
        {"generators.image.connector"},
        {"connectors.image", "generators.image.connector", "backbone.lora"},
    ],
    "dit": [{"text", "enter", "time", "prompt", "backbone", "leave"}],
    "blip-2": [{"connectors.image", "head", "grounding"}, {"connectors.image"}],
    "blip-2-flan-t5": [{"connectors.image", "head", "grounding"}, {"connectors.image"}],
    "instructblip": [{"connectors.image", "head", "grounding"}, {"connectors.image"}, {"connectors.image"}],
    "minigpt-4": [{"connectors.image", "head", "grounding"}, {"connectors.image"}, {"connectors.image"}],
}
LINEAR = {"connectors.image.out.weight", "connectors.image.out.bias"}
# (recipe, stage) that trains a piece of its part: names of what trains, or None where a figure counts it
PIECES = {
    ("blip-2", "generate"): None,
    ("blip-2-flan-t5", "generate"): None,
    ("instructblip", "align"): LINEAR,
    ("minigpt-4", "align"): LINEAR,
    ("minigpt-4", "finetune"): LINEAR,
}
# parts that stay frozen at a size, against the paper: its recipe lists it as a deviation
FROZEN_HERE = {(name, "small"): {"encoders.image"} for name in ("clip", "siglip", "unicl")}
FROZEN_HERE |= {("dit", "small"): {"text"}}
# parts that a size has and the paper has not: its recipe lists them as a deviation
ADDED_HERE = {("dit", size): {"backbone.cross"} for size in ("tiny", "small")}
# parts that the paper's size has and a smaller one has not: its recipe lists them as a deviation
LACKING_HERE = {("next-gpt", "small"): {"backbone.cross"}}
# (recipe, stage) -> at tiny, where nothing is pretrained, parts that train along, with no adapters and no
# cross-attention
ALONG_HERE = {
    ("next-gpt", "denoise"): {"text"},
    ("next-gpt", "encode"): {"encoders.image", "backbone"},
    ("next-gpt", "decode"): {"backbone"},
    ("next-gpt", "instruct"): {"encoders.image", "backbone"},
}


@cache
def described(name: str, size: str) -> Description:
    return describe(find(name, size), costs=False)


def test_every_system_of_the_issue_has_a_recipe_under_its_paper_name():
    wanted = {"llava", "llava-1.5", "llava-next", "yi-vl", "seechat", "chinese-llava", "minigpt-v2"}
    wanted |= {"clip", "siglip", "unicl", "blip-2", "instructblip", "minigpt-4", "flamingo", "openflamingo", "cogvlm"}
    wanted |= {"fuyu", "chameleon", "emu3", "dit", "next-gpt"}
    assert wanted <= set(NAMES)
    assert set(PUBLISHED_STAGES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_survives_json_at_every_size(name: str):
    for size in SIZES:
        recipe = find(name, size)
        assert (recipe.name, recipe.size) == (name, size)
        assert from_json(recipe.to_json(), Recipe) == recipe


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_runnable_sizes_have_data_steps_and_rates_for_all_that_trains(name: str, size: str):
    recipe = find(name, size)
    splits = {task.split for task in recipe.evaluations if task.n}
    kinds = {type(task) for task in recipe.evaluations}
    assert recipe.model.speaks or kinds in ({ZeroShot, Retrieval}, {Painted, Gallery})
    assert recipe.judge is not None or not any(issubclass(kind, Judged) for kind in kinds)
    assert {"val_artist", "val_concept"} <= splits <= {"val_artist", "val_concept", "val_scene"}
    for stage in recipe.stages:
        assert stage.data is not None
        assert stage.steps
        assert stage.published
        for glob in stage.train:
            assert stage.lr_of(glob.replace("*", "x")) > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_stages_train_what_the_paper_says_and_nothing_else(name: str, size: str):
    found = described(name, size)
    assert sum(found.parts.values()) == found.total
    kept = FROZEN_HERE.get((name, size), set())
    assert not kept or any("frozen" in deviation for deviation in found.recipe.deviations)
    for view, published in zip(found.stages, PUBLISHED_STAGES[name], strict=True):
        trained = (published - kept) | ADDED_HERE.get((name, size), set())
        trained -= LACKING_HERE.get((name, size), set())
        if size == "tiny" and (name, view.name) in ALONG_HERE:
            trained = (trained - {"backbone.lora", "backbone.cross"}) | ALONG_HERE[name, view.name]
        assert {part for part, (count, _) in view.parts.items() if count} == trained
        assert view.trained + view.frozen == sum(every for _, every in view.parts.values())
        if view.stage.wiring is None:
            assert view.trained + view.frozen == found.total
        if (name, view.name) in PIECES:
            names = {key for key in found.sizes if view.stage.trains(key)}
            assert names == (PIECES[name, view.name] or names)
            assert view.trained == sum(found.sizes[key] for key in names)
            continue
        assert all(count in (0, every) for count, every in view.parts.values())  # whole parts, never pieces of one
        assert view.trained == sum(every for part, (_, every) in view.parts.items() if part in trained)


def test_without_text_beside_its_queries_the_text_side_of_a_q_former_rests():
    found = described("blip-2", "paper")
    stage = found.recipe.stage("generate")
    rests = {key for key in found.sizes if key.startswith("connectors.") and not stage.trains(key)}
    sides = {key.partition("stack.")[2] for key in rests}
    text = {"embed.weight", "place.weight"}
    text |= {f"blocks.{block}.ffn.{layer}.{leaf}" for block in range(12) for layer in ("up", "down")
             for leaf in ("weight", "bias")}  # fmt: skip
    text |= {f"blocks.{block}.norm2.{leaf}" for block in range(12) for leaf in ("weight", "bias")}
    assert sides == text


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_hold(name: str):
    figures = described(name, "paper").figures
    assert len(figures) >= 3
    assert [(figure.name, figure.published, figure.ours) for figure in figures if not figure.holds] == []


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_totals_are_those_of_the_released_models(name: str):
    assert described(name, "paper").total == pytest.approx(PUBLISHED_TOTALS[name], rel=1e-4)


def test_minigpt_v2_joins_four_features_and_writes_its_tags_and_boxes():
    recipe = find("minigpt-v2", "tiny")
    connector = recipe.model.connectors["image"]
    assert isinstance(connector, Adjacent.Config)
    assert connector.count == 4
    assert find("minigpt-v2", "paper").model.num_tokens("image", (448, 448)) == 256
    assert recipe.template.media["image"] == ("<Img>", "</Img> ")
    data = recipe.stage("multitask").data
    assert data is not None
    source = data.build()
    texts = [
        segment.data
        for index in range(len(source) - 40, len(source))
        for segment in source[index].segments
        if segment.kind == "text" and segment.role == "user"
    ]
    assert {text.split()[0] for text in texts} == {"[vqa]", "[caption]", "[refer]", "[identify]"}
    assert any("{<" in text for text in texts)  # [identify] gives a box


def test_connectors_are_the_published_ones():
    llava, better, wide, yi = (
        find(name, "paper").model.connectors["image"] for name in ("llava", "llava-1.5", "llava-next", "yi-vl")
    )
    assert llava == MLP.Config(depth=1)
    assert better == MLP.Config(depth=2)
    assert wide == AnyRes.Config(inner=MLP.Config(depth=2))
    assert yi == MLP.Config(depth=2, norm=True)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("llava-1.5", "A chat{}USER: <P>\nWhat? ASSISTANT: A cat</s>USER: Sure? ASSISTANT:"),
        ("chinese-llava", "<s>[INST] <P>\nWhat? [/INST] A cat </s><s>[INST] Sure? [/INST]"),
        ("minigpt-v2", "<s>[INST] <Img><P></Img> What? [/INST] A cat </s><s>[INST] Sure? [/INST]"),
        (
            "yi-vl",
            "This is{}\n\n### Human: <P>\nWhat?\n### Assistant: A cat<|endoftext|>\n### Human: Sure?\n### Assistant:",
        ),
        ("blip-2", "<P>Question: What? Answer: A cat</s>Question: Sure? Answer:"),
        ("instructblip", "<P>What? A cat</s>Sure?"),
        ("minigpt-4", "###Human: <Img><P></Img> What? ###Assistant: A cat</s>###Human: Sure? ###Assistant:"),
        ("seechat", "问：<P>What?\n答：A cat<eop>\n问：Sure?\n答："),
    ],
)
def test_paper_prompts(name: str, prompt: str):
    from sensorium.sequence import Plan, Sample, Segment

    template = find(name, "paper").template
    tokenizer = Tokenizer.bytes(("<s>", template.stop))
    renderer = Renderer(tokenizer, template, lambda kind, shape: Plan(3), None)
    turns = [("text", "What?", "user"), ("text", "A cat", "assistant"), ("text", "Sure?", "user")]
    segments = (Segment("image", _Square(), "user"), *(Segment("text", data, role) for _, data, role in turns))
    sequence = renderer.render(Sample(segments), generate=True, items=False)
    span = sequence.spans[0]
    ids = sequence.ids.tolist()
    before, after = ids[: span.start], ids[span.start + span.length :]
    text = tokenizer.decode(before, skip_special=False) + "<P>" + tokenizer.decode(after, skip_special=False)
    head, _, tail = prompt.partition("{}")
    assert text.startswith(head)
    assert text.endswith(tail or head)
    trained = tokenizer.decode(sequence.ids[sequence.weight > 0].tolist(), skip_special=False)
    assert trained == "A cat" + template.stop  # the answer and the token that ends it


class _Square:
    def key(self) -> str:
        return "0" * 64

    def shape(self) -> tuple[int, int]:
        return (336, 336)

    def load(self):
        raise AssertionError("planned only")


def test_overrides_reach_every_part_of_a_recipe():
    recipe = find("llava-1.5", "tiny")
    changed = override(override(recipe, "stages.align.lr=5e-4"), "model.connectors.image.depth=3")
    assert changed.stage("align").lr == 5e-4
    connector = changed.model.connectors["image"]
    assert isinstance(connector, MLP.Config)
    assert connector.depth == 3
    with pytest.raises(UserError, match="did you mean 'steps'"):
        override(recipe, "stages.align.step=3")


def test_unknown_names_sizes_and_files_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"did you mean 'llava'\?"):
        find("lava")
    with pytest.raises(UserError, match="did you mean 'small'"):
        find("llava", "smal")
    with pytest.raises(UserError, match="no file"):
        find(f"{tmp_path}/mine.py:recipe")
    with pytest.raises(UserError, match="name the function"):
        find(f"{tmp_path}/mine.py")


USER_RECIPE = """
from sensorium.recipes.llava import llava
from sensorium.train.recipe import Stage

def mine(size="tiny"):
    return llava(size).replace(name="mine")

def fixed():
    return llava("tiny").replace(name="fixed")

def wrong():
    return 3

def invalid():
    return Stage(name="x", train=("*",), lr=1e-3, step=4)
"""


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "my_recipes.py"
    path.write_text(USER_RECIPE)
    assert find(f"{path}:mine").name == "mine"
    assert find(f"{path}:mine", "small").size == "small"
    assert find(f"{path}:fixed").name == "fixed"
    with pytest.raises(UserError, match="takes no size"):
        find(f"{path}:fixed", "small")
    with pytest.raises(UserError, match="returned a int"):
        find(f"{path}:wrong")
    with pytest.raises(UserError, match="step: Extra inputs"):
        find(f"{path}:invalid")
    with pytest.raises(UserError, match="did you mean 'mine'"):
        find(f"{path}:min")
    path.write_text("def broken(:\n")
    with pytest.raises(UserError, match="line 1"):
        find(f"{path}:broken")
    path.write_text("import no_such_module_at_all\n")
    with pytest.raises(UserError, match="no_such_module_at_all"):
        find(f"{path}:mine")


def test_chinese_systems_read_and_answer_in_chinese():
    def trained_texts(name: str, stage: str, rows: int) -> list[str]:
        data = find(name, "tiny").stage(stage).data
        assert data is not None
        source = data.build()
        segments = [segment for index in range(rows) for segment in source[index].segments]
        return [segment.data for segment in segments if segment.kind == "text" and segment.role in (None, "assistant")]

    def chinese(text: str) -> bool:
        return any("\u4e00" <= letter <= "\u9fff" for letter in text)

    for name in ("seechat", "chinese-llava"):
        assert all(chinese(text) for text in trained_texts(name, "align", 50))
    assert not any(text.isascii() and len(text) > 2 for text in trained_texts("seechat", "instruct", 50))
    both = trained_texts("chinese-llava", "instruct", 200)
    assert any(chinese(text) for text in both)
    assert any(text.isascii() and len(text) > 2 for text in both)


def test_contrastive_recipes_have_their_papers_losses_and_first_temperatures():
    clip, siglip, unicl = (find(name, "paper") for name in ("clip", "siglip", "unicl"))
    kinds = [(one.kind, one.labels) for recipe in (clip, siglip, unicl) for one in recipe.stages[0].objectives]
    assert kinds == [("softmax", False), ("sigmoid", False), ("softmax", True)]
    assert (clip.model.scale, clip.model.ceiling, clip.model.bias) == (1 / 0.07, 100.0, None)
    assert (siglip.model.scale, siglip.model.bias) == (10.0, -10.0)
    assert (clip.model.rule.kind, siglip.model.rule.kind) == ("causal", "full")
    assert clip.model.num_tokens("image", (224, 224)) == 1


def test_a_dit_is_the_published_denoiser_on_a_published_latent():
    paper, tiny = described("dit", "paper"), find("dit", "tiny").model
    denoiser = paper.recipe.model
    assert isinstance(denoiser, Denoiser.Config)
    assert paper.total - paper.parts["codecs.image"] == 674_816_272  # 675 M with a learned variance (table 4)
    assert (denoiser.channels, denoiser.backbone.block.cross, denoiser.schedule) == (16, None, Diffusion())
    assert isinstance(tiny, Denoiser.Config)
    assert tiny.num_tokens("image", (64, 64)) == 64
    assert tiny.num_tokens("image", (16, 32)) == 32  # any aspect ratio
    assert tiny.num_tokens("video", (8, 24, 24)) == 8 * 36
