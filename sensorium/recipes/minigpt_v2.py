"""MiniGPT-v2: one interface for many vision-language tasks."""

from __future__ import annotations

from sensorium.connectors.pool import Adjacent
from sensorium.data.mixture import Part
from sensorium.data.questions import EmojiQuestions
from sensorium.encoders.vit import eva_vit_g14
from sensorium.models.fused import Fused
from sensorium.nn.lora import LoRA
from sensorium.recipes.common import (
    FAMILY,
    LLAMA_2,
    STAND_INS,
    fields_for,
    instruct,
    instructions,
    language_for,
    llama_7b,
    template_for,
    vision_for,
)
from sensorium.train.recipe import Figure, Recipe, Size

EMOJI_TAGS = {
    "caption": "[caption]",
    "category": "[vqa]",
    "choice_name": "[vqa]",
    "choice_letter": "[vqa]",
    "yes_no": "[vqa]",
}
SCENE_TAGS = {
    **dict.fromkeys(("what", "count", "where", "relation", "yes_no", "bigger", "text"), "[vqa]"),
    "describe": "[caption]",
    "box": "[refer]",
    "refer": "[identify]",
}
LORA = {f"backbone.blocks.*.attention.{name}": LoRA(rank=64, alpha=16.0, dropout=0.05) for name in ("q", "v")}
TRAIN = ("connectors.*", "backbone.*.lora_*")


def minigpt_v2(size: Size = "small") -> Recipe:
    """MiniGPT-v2 (Chen et al. 2023, arXiv 2310.09478).

    New in it: a tag before the question says the task ([vqa], [caption], [refer], [identify] ...); boxes are text,
    `{<x0><y0><x1><y1>}` with integers in [0, 100]; four adjacent features of a frozen EVA ViT-g at 448 px are joined
    before one linear layer (256 tokens). Three stages, all on projection and LoRA (queries and values, rank 64):
    weak and fine-grained data, fine-grained data, instructions.
    """
    vision = vision_for(size, eva_vit_g14(448), small_px=256)
    tagged = instructions(emoji_tags=EMOJI_TAGS, scene_tags=SCENE_TAGS)
    captions = EmojiQuestions(families=("caption",), questions_per_picture=1, tags=EMOJI_TAGS)  # type: ignore[arg-type]
    weak = tagged.replace(parts=(Part(name="captions", source=captions), *tagged.parts))
    common = {"train": TRAIN, "adapters": LORA, "epochs": None}
    stages = (
        instruct(size, name="pretrain", data=weak, lr=1e-4, steps=400_000, **common,
                 published="weak (LAION, CC3M, SBU, GRIT-20M) and fine-grained data, 400K steps, batch 96, lr 1e-4"),
        instruct(size, name="multitask", data=tagged, lr=1e-5, steps=50_000, **common,
                 published="fine-grained data alone, 50K steps, batch 64, lr 1e-5"),
        instruct(size, name="instruct", data=tagged, lr=1e-5, steps=35_000, **common,
                 published="multimodal instructions, 35K steps, batch 24, lr 1e-5"),
    )  # fmt: skip
    figures = (
        Figure(name="parameters.encoders.image", published=1.01e9, source="EVA ViT-g, arXiv 2211.07636"),
        Figure(name="parameters.backbone", published=6.74e9, source="Llama 2 7B, released checkpoint"),
        Figure(name="parameters.backbone.lora", published=33_554_432, source="derived: 32 blocks x 2 x 64 x 8192"),
        Figure(name="view.image", published=448, tolerance=0.0, source="arXiv 2310.09478, section 2.1"),
        Figure(
            name="tokens.image", published=256, tolerance=0.0, source="arXiv 2310.09478, section 2.1: a quarter of 1024"
        ),
        Figure(name="stages", published=3, tolerance=0.0, source="arXiv 2310.09478, section 2.3"),
    )
    deviations = (
        *STAND_INS,
        "paper: the encoder keeps EVA's 40th block, which is not read (the published system drops it)",
        "the schedule falls to zero, the published one to 8e-5 in stage 1",
        "tiny, small: no grounded captions and no detection, so [grounding] and [detection] are not trained; the third "
        "stage goes on with the tagged questions",
        "small: EfficientNet-Lite0 at 256 px (8 x 8 features), so that four in a row can be joined",
    )
    return Recipe(
        name="minigpt-v2", title="MiniGPT-v2 7B", paper="arXiv 2310.09478", family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": Adjacent.Config()}, backbone=language_for(size, llama_7b())
        ),
        template=template_for(size, LLAMA_2.replace(media={"image": ("<Img>", "</Img> ")})),
        stages=stages, figures=figures if size == "paper" else (), deviations=deviations, **fields_for(size),
    )  # fmt: skip
