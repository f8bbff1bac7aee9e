"""What the recipes share: parts at each size, budgets, data and prompts.

tiny   everything from scratch, bytes as tokens: minutes on two cores, and no network
small  real pretrained parts: SmolLM2-135M-Instruct and EfficientNet-Lite0
paper  the published dimensions; described and drawn without weights, and without the published data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.connectors.mlp import MLP
from sensorium.connectors.pyramid import Pyramid
from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, EmojiQuestions, SceneQuestions
from sensorium.data.source import SourceConfig
from sensorium.encoders.base import Encoder
from sensorium.encoders.efficientnet import TRANSFORM, EfficientNetLite0
from sensorium.encoders.vit import vit
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.contrastive import Retrieval, ZeroShot
from sensorium.evaluate.task import EvaluationTask
from sensorium.hub.catalog import EFFICIENTNET_LITE0, SMOLLM2_135M_INSTRUCT
from sensorium.models.dual import Dual
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone, llama
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope
from sensorium.render import Template
from sensorium.train.recipe import Size, Stage
from sensorium.train.warm import RidgeStart

FAMILY = "LLM + connector"
STARTS_RANDOM = (
    "tiny: no part is pretrained, so a frozen part stays as it was drawn; it shows the mechanics, not quality"
)
CONVNET = (
    "small: EfficientNet-Lite0 (7 x 7 features) stands for the published ViT; fixed 2-D positions are added to its "
    "features, which do not say where they are as a ViT's do"
)
LANGUAGE = "small: SmolLM2-135M-Instruct, with its own chat template, stands for the published language model"
BUILT_IN = "tiny, small: data is the built-in emoji set and scenes composed of it, in place of the published sets"
TOKENIZER = "paper: the published tokenizer comes with the published weights; before that, text is bytes"
STAND_INS = (STARTS_RANDOM, CONVNET, LANGUAGE, BUILT_IN, TOKENIZER)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA = Template(
    chat="{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    system=VICUNA_SYSTEM,
    media={"image": ("", "\n")},
    stop="</s>",
    plain="</s>",
)
LLAMA_2 = Template(
    chat="{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% elif m['role'] == 'user' %}{{ '<s>[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    media={"image": ("", "\n")},
    stop="</s>",
    plain="</s>",
)


def vision_for(
    size: Size, paper: Encoder.Config, grids: tuple[tuple[int, int], ...] = (), small_px: int = 224
) -> Encoder.Config:
    """The image encoder at a size, with the published one's way of resizing.

    grids     (rows, columns) of tiles that a picture may be cut into, besides the whole picture
    small_px  side of a view at size small
    """
    if size == "tiny":
        encoder = vit(width=64, depth=2, heads=4, patch=8, size=64)
    elif size == "small":
        encoder = EfficientNetLite0.Config(transform=TRANSFORM.replace(size=small_px), positions="sincos2d")
    else:
        encoder = paper
    side = encoder.transform.size
    tiles = tuple((rows * side, cols * side) for rows, cols in grids)
    return encoder.replace(transform=encoder.transform.replace(resize=paper.transform.resize, tiles=tiles))


def language_for(size: Size, paper: Backbone.Config) -> Backbone.Config:
    """The language backbone at a size."""
    if size == "tiny":
        return llama(vocab=259, width=96, depth=3, heads=4, hidden=256, tied=True)
    if size == "small":
        return llama(vocab=49_152, width=576, depth=30, heads=9, kv_heads=3, hidden=1536, theta=100_000.0, tied=True)
    return paper


def fields_for(size: Size) -> dict[str, Any]:
    """What a size decides alone: the `tokenizer`, `init` and `evaluations` fields of a recipe."""
    match size:
        case "tiny":
            return {"evaluations": evaluations(100)}
        case "small":
            parts = {"backbone": SMOLLM2_135M_INSTRUCT, "encoders.image": EFFICIENTNET_LITE0}
            return {"tokenizer": SMOLLM2_135M_INSTRUCT, "init": parts, "evaluations": evaluations(300)}
        case "paper":
            return {}


def evaluations(count: int) -> tuple[EvaluationTask, ...]:
    """`count` items each: names of trained concepts and of concepts never trained on, counting, positions."""
    return (
        Choice(name="multiple_choice", family="emoji", split="val_artist", n=count),
        Choice(name="multiple_choice", family="emoji", split="val_concept", n=count),
        Choice(name="counting", family="count", split="val_scene", n=count),
        Choice(name="position", family="position", split="val_scene", n=count),
    )


def closed_questions(scenes: int, holdout_dev: bool = False) -> Mixture:
    """Which category an emoji is of, and how many of a thing are in a scene, half and half, one short question a
    picture: what a model learns to answer in minutes that starts with no language and no names.

    scenes  different ones
    """
    emoji = EmojiQuestions(families=("category",), questions_per_picture=1, holdout_dev=holdout_dev)
    counts = SceneQuestions(count=scenes, families=("count",), questions_per_picture=1, holdout_dev=holdout_dev)
    return Mixture(parts=(Part(name="emoji", source=emoji), Part(name="scenes", source=counts)))


def closed_evaluations(count: int, holdout_dev: bool = False) -> tuple[EvaluationTask, ...]:
    """The same as multiple choice: pictures by an artist and of concepts never trained on, and unseen scenes.

    holdout_dev  on slices of the training split: to choose settings, which no validation split may do
    """
    artist, concept, scene = (f"{'dev' if holdout_dev else 'val'}_{one}" for one in ("artist", "concept", "scene"))
    common = {"n": count, "holdout_dev": holdout_dev}
    return (
        Choice(name="category", family="category", split=artist, **common),
        Choice(name="category", family="category", split=concept, **common),
        Choice(name="counting", family="count", split=scene, **common),
    )


def evaluations_of(model: Wiring.Config, count: int) -> tuple[EvaluationTask, ...]:
    """What a model can be asked, `count` items each.

    A contrastive one: names among 50, and to find pictures by their names and names by their pictures.
    """
    if not isinstance(model, Dual.Config):
        return evaluations(count)
    splits = ("val_artist", "val_concept")
    return (*(ZeroShot(split=one, n=count) for one in splits), *(Retrieval(split=one, n=count) for one in splits))


def template_for(size: Size, paper: Template) -> Template:
    """The published prompt at paper size; below it ChatML with the published marks around a picture."""
    return paper if size == "paper" else Template(media=paper.media)


# ---- language models, published dimensions


def llama_7b(vocab: int = 32_000) -> Backbone.Config:
    """LLaMA 7B, Llama 2 7B, Vicuna 7B, Chinese-Llama-2-7b (Touvron et al. 2023): 6.74 B parameters."""
    return llama(vocab=vocab, width=4096, depth=32, heads=32, hidden=11_008)


def llama_13b(vocab: int = 32_000) -> Backbone.Config:
    """LLaMA 13B, Vicuna 13B: 13.0 B parameters."""
    return llama(vocab=vocab, width=5120, depth=40, heads=40, hidden=13_824)


def yi_6b() -> Backbone.Config:
    """Yi-6B (arXiv 2403.04652): Llama with 4 key-value heads; 6.06 B parameters."""
    return llama(vocab=64_000, width=4096, depth=32, heads=32, kv_heads=4, hidden=11_008, theta=5_000_000.0)


def yi_34b() -> Backbone.Config:
    """Yi-34B (arXiv 2403.04652): 34.4 B parameters."""
    return llama(vocab=64_000, width=7168, depth=60, heads=56, kv_heads=8, hidden=20_480, theta=5_000_000.0)


def chatglm_6b() -> Backbone.Config:
    """ChatGLM-6B: 28 blocks with LayerNorm, biases and a plain GELU feed-forward; 6.2 B parameters."""
    block = Block.Config(
        attention=Attention.Config(heads=32, bias=True),
        ffn=FeedForward.Config(hidden=16_384, activation="gelu_tanh", gated=False, bias=True),
        norm=Norm.Config(kind="layer"),
    )
    return Backbone.Config(vocab=130_528, width=4096, depth=28, block=block, rope=Rope.Config(), tied=True)


# ---- few and good tokens, what minutes on two cores allow (size small)

FEW = Pyramid.Config(levels=(3, 1), full_from=160, placed=True, inner=MLP.Config(depth=1))
"""A picture becomes one token, a scene ten."""
NAMED = RidgeStart(data=Captions(), tokens="last", ridge=0.03, gain=1.5)
"""That one token starts as near as a linear layer brings it to the words of its name."""


# ---- stages

STEPS = {"tiny": {"align": 60, "instruct": 200}, "small": {"align": 150, "instruct": 150}}
TOKENS = {"tiny": 1024, "small": 2048, "paper": 2048}
# the published rates fit 7 B to 13 B parameters; smaller models, and those that start random, take larger ones
RATES: dict[str, dict[str, dict[str, float]]] = {
    "tiny": {
        "align": {"connectors.*": 2e-3, "*": 1e-3},
        "instruct": {"connectors.*": 1e-3, "*": 2e-3},
    },
    "small": {
        "align": {"connectors.*": 2e-3, "encoders.*": 1e-4, "*": 2e-4},
        "instruct": {"connectors.*": 5e-4, "encoders.*": 5e-5, "*": 2e-4},
    },
}


def align(
    size: Size, *, lr: float, published: str, name: str = "align", train: tuple[str, ...] = ("connectors.*",),
    data: SourceConfig | None = None, **more: Any,
) -> Stage:  # fmt: skip
    """The first stage of most systems: plain captions, the connector alone. `lr` is the published rate."""
    return _stage(size, "align", data or Captions(), lr=lr, published=published, name=name, train=train, **more)


def instruct(
    size: Size, *, lr: float | dict[str, float], published: str, name: str = "instruct",
    train: tuple[str, ...] = ("connectors.*", "backbone.*"), data: SourceConfig | None = None, **more: Any,
) -> Stage:  # fmt: skip
    """Instruction tuning: questions and answers, the connector and the language model."""
    return _stage(size, "instruct", data or instructions(), lr=lr, published=published, name=name, train=train, **more)


def _stage(
    size: Size, kind: str, data: SourceConfig, here: Mapping[str, Mapping[str, Any]] | None = None, **fields: Any
) -> Stage:
    """here: what differs from the common settings, by size below paper."""
    if size == "paper":
        return Stage(**{"epochs": 1, "tokens": TOKENS[size], "checkpointing": True, **fields})
    small = {"lr": RATES[size][kind], "data": data, "steps": STEPS[size][kind], "tokens": TOKENS[size], "epochs": None}
    return Stage(**{**fields, **small, **(here or {}).get(size, {})})


def instructions(
    languages: tuple[str, ...] = ("en",),
    emoji_tags: dict[str, str] | None = None,
    scene_tags: dict[str, str] | None = None,
) -> Mixture:
    """Questions about single pictures and about scenes, half and half."""
    emoji = EmojiQuestions(languages=languages, tags=emoji_tags or {})  # type: ignore[arg-type]
    scenes = SceneQuestions(count=20_000, tags=scene_tags or {})  # type: ignore[arg-type]
    return Mixture(parts=(Part(name="emoji", source=emoji), Part(name="scenes", source=scenes)))
