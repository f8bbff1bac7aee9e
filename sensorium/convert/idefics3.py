"""Idefics 3 (Laurençon et al. 2024, arXiv 2408.12637): SigLIP on a picture and its tiles, neighbours joined, one linear
layer, Llama."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import PixelShuffle
from sensorium.connectors.tiles_first import TilesFirst
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.llama import LLAMA
from sensorium.convert.llava import image_prompts, parts_of
from sensorium.convert.pictures import class_of, picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, part, stack_for
from sensorium.convert.towers import SIGLIP_VISION
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.marks import Marks, TileMarks
from sensorium.models.wiring import Wiring
from sensorium.tokenizer import Tokenizer

AROUND, WHOLE, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
"""Tokens that the released processors have by heart; those of tiles are <row_1_col_1> and so on."""
LARGEST = 4096
"""Pixels of a side above which the released processors scale a second time."""
_OLD_VISION = ("max_image_size", "size", "use_base_siglip", "tie_word_embeddings")
_OLD_TEXT = ("_flash_attn_2_enabled", "is_llama_config", "neftune_noise_alpha", "perceiver_config", "use_resampler",
             "pixel_shuffle_factor", "qk_layer_norms", "transformers.js_config")  # fmt: skip
"""Fields of released configs that the published classes do not read."""


def tower_named(*types: str) -> Stack[ViT.Config]:
    """SigLIP under another name and with other defaults."""
    kind = types[0]
    absent = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
              "vision_use_head": False}  # fmt: skip

    def write(config: ViT.Config) -> dict[str, Any]:
        said = {**SIGLIP_VISION.write(config), "model_type": kind}
        del said["vision_use_head"]
        return said

    return replace(SIGLIP_VISION, types=types, architecture="", write=write, absent=absent)


def read(files: Files, towers: Stack[ViT.Config]) -> Wiring.Config:
    config, pictures = files.config, files.pictures
    _, tower = part(config, "vision_config", (towers,), towers.types[0], without=_OLD_VISION)
    _, backbone = part(config, "text_config", (LLAMA,), "llama", without=_OLD_TEXT)
    backbone = backbone.replace(tied=config.take("tie_word_embeddings", bool, False))
    config.skip(
        "image_token_id", "vocab_size", "_pad_token_id", "use_reentrant_checkpointing", "transformers.js_config"
    )
    factor, cells = config.count("scale_factor", 2), tower.cells[0]
    if cells % factor:
        raise config.error(f"scale_factor is {factor}, and a view has {cells} x {cells} patches: it must divide them")
    _check_places(cells, config)
    tokens = files.processor.count("image_seq_len", 169)
    if tokens != (cells // factor) ** 2:
        raise files.processor.error(f"image_seq_len is {tokens}, and the {cells} x {cells} patches of a view become "
                                    f"{(cells // factor) ** 2} tokens (config.json)")  # fmt: skip
    files.processor.skip("chat_template")
    transform = _transform(pictures)
    if transform.size != tower.transform.size:
        raise pictures.error(f"views become {transform.size} pixels wide, and the vision tower of config.json reads "
                             f"{tower.transform.size}: positions of other views cannot be said here")  # fmt: skip
    return Fused.Config(
        encoders={"image": tower.replace(transform=transform)}, connectors={"image": _connector(factor)},
        backbone=backbone, marks={"image": _marks(files.words(), transform)},
    )  # fmt: skip


def _connector(factor: int) -> TilesFirst.Config:
    return TilesFirst.Config(inner=PixelShuffle.Config(factor=factor, inner=MLP.Config(depth=1, bias=False)))


def _check_places(cells: int, config: Settings) -> None:
    """The published classes find the row and the column of a patch by comparing fractions of a side.

    In floats these come out one too low for some numbers of patches (19, 25, 29 ...), and two rows then share their
    positions. Of square views of the trained size the others are row-major, as a ViT's are here.
    """
    at = torch.arange(cells, dtype=torch.float32) * (1.0 / torch.tensor(cells))
    bounds = torch.arange(1 / cells, 1.0, 1 / cells)
    found = torch.bucketize(at.clamp(max=1 - 1e-6), bounds, right=True)
    if found.tolist() != list(range(cells)):
        raise config.error(f"a view has {cells} x {cells} patches, of which the published class takes some for their "
                           f"neighbours (rows {found.tolist()}): this cannot be said here")  # fmt: skip


def _transform(pictures: Settings) -> ImageTransform:
    """How the image processor prepares a picture: its longer side to a size, then views of another."""
    longer, view = (longest(pictures, name, side) for name, side in (("size", 4 * 364), ("max_image_size", 364)))
    first = longer if pictures.take("do_resize", bool, True) else None
    if longer > LARGEST:
        raise pictures.error(f"size is {longer} pixels; no more than {LARGEST} can be said here")
    pictures.skip("do_pad", "video_sampling", "return_row_col_info")  # padding is between the pictures of a batch
    if class_of(pictures) not in ("", "Idefics3", "SmolVLM"):
        raise pictures.error(f"its class is {class_of(pictures)}ImageProcessor, expected Idefics3 or SmolVLM")
    return squashed(pictures, view, OWN).replace(first=first, split=pictures.take("do_image_splitting", bool, True))


def squashed(settings: Settings, view: int, own: tuple[str, ...]) -> ImageTransform:
    """How a picture becomes one square view of so many pixels, whatever its own shape.

    own  fields that are asked for elsewhere
    Raises UserError for settings that crop, or fields that nobody asks for.
    """
    given = {name: value for name, value in settings.values.items() if name not in own and value is not None}
    view_alone = Settings({**_ABSENT, **given, "size": {"height": view, "width": view}}, settings.where)
    made = transform_of(view_alone)
    view_alone.skip(*_NAMED)
    view_alone.done(idle=())
    settings.skip(*given)
    if made != made.replace(resize="squash", scaled=None):
        raise settings.error(f"views are squashed pictures, and these settings crop them: {made}")
    return made


_NAMED = ("processor_class", "_valid_processor_keys")
OWN = ("size", "max_image_size", "do_resize", "do_image_splitting", "do_pad", "video_sampling", "return_row_col_info",
       "image_processor_type", "feature_extractor_type")  # fmt: skip
"""Fields of an image processor that `squashed` does not read."""
_ABSENT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1}
"""What the published classes do where the settings say nothing: Lanczos."""


def longest(settings: Settings, name: str, default: int) -> int:
    inner = settings.inner(name, {"longest_edge": default})
    side = inner.count("longest_edge")
    inner.done(idle=())
    return side


def _marks(words: Tokenizer, transform: ImageTransform) -> Marks:
    """What the processor writes around views, as ids of the tokenizer."""
    missing = [one for one in (AROUND, IMAGE) if one not in words.special]
    if missing:
        raise UserError(f"the tokenizer has no special token {missing[0]}, which pictures are marked with here")
    ids = words.encode_trusted
    around = tuple(ids(AROUND))
    tiles = None
    if transform.split:
        most = -(-(transform.first or LARGEST) // transform.size)
        tile = tuple(
            tuple((*around, *ids(f"<row_{row}_col_{col}>")) for col in range(1, most + 1)) for row in range(1, most + 1)
        )
        whole = (*ids("\n\n"), *around, *ids(WHOLE))
        tiles = TileMarks(tile=tile, row=tuple(ids("\n")), whole=whole)
    return Marks(open=(*around, *ids(WHOLE)), close=around, filler=words.special[IMAGE], tiles=tiles)


def _parts(model: Wiring.Config, name: str) -> tuple[ViT.Config, int, Fused.Config]:
    """Tower, how many patches are joined along a side, and the whole. Raises UserError for another model."""
    if not isinstance(model, Fused.Config) or set(model.marks) != {"image"}:
        raise UserError(f"the layout of {name} has ids that mark the views of a picture, and this model none")
    tower, connector, _ = parts_of(model.replace(marks={}), name, TilesFirst.Config)
    inner = connector.inner
    factor = inner.factor if isinstance(inner, PixelShuffle.Config) else 1
    if connector != _connector(factor):
        raise UserError(f"the layout of {name} joins neighbours for one linear layer without bias: this model has "
                        f"{connector}")  # fmt: skip
    if tower.drop_last or tower.levels or not tower.normed or tower.class_feature:
        raise UserError(f"the layout of {name} reads the last states of its tower, normalised: this model others")
    return tower, factor, model


def write(model: Wiring.Config, towers: Stack[ViT.Config], kind: str, name: str) -> Written:
    tower, factor, whole = _parts(model, name)
    transform, marks = tower.transform, whole.marks["image"]
    if transform.split != (marks.tiles is not None) or marks.row is not None or not marks.open or not marks.close:
        raise UserError(f"the layout of {name} marks each view of a picture, and tiles where pictures are split: "
                        f"this model has split={transform.split} and {marks}")  # fmt: skip
    _check_places(tower.cells[0], Settings({}, f"the layout of {name}"))
    _, vision = stack_for(tower, (towers,))
    _, text = stack_for(whole.backbone, (LLAMA,))
    config = {
        "model_type": kind, "vision_config": vision, "text_config": text, "scale_factor": factor,
        "tie_word_embeddings": whole.backbone.tied,
    }  # fmt: skip
    pictures = {
        **picture_settings(transform.replace(first=None, split=False)),
        "image_processor_type": f"{name}ImageProcessor", "do_resize": transform.first is not None,
        "size": {"longest_edge": transform.first or transform.size}, "max_image_size": {"longest_edge": transform.size},
        "do_image_splitting": transform.split, "do_pad": True,
    }  # fmt: skip
    del pictures["do_center_crop"]
    if _transform(Settings(pictures)) != transform:
        raise UserError(f"the layout of {name} cannot say how this model prepares pictures: {transform}")
    processor = {"processor_class": f"{name}Processor", "image_seq_len": (tower.cells[0] // factor) ** 2}
    return Written(config, {"processor_class": f"{name}Processor", **pictures}, processor)


def rules(model: Wiring.Config) -> list[Rule]:
    tower, _, whole = _parts(model, "Idefics3")
    language = under(LLAMA.rules(whole.backbone), ours="backbone.")
    return [
        Rule("model.connector.modality_projection.proj.weight", "connectors.image.inner.inner.layers.0.weight"),
        *under(SIGLIP_VISION.rules(tower), "model.vision_model.", "encoders.image."),
        *(replace(rule, theirs=tuple(map(_inside, rule.sides[0]))) for rule in language),
    ]


def _inside(name: str) -> str:
    """A language model's tensor inside this one: the head stands beside, the rest is called text_model."""
    return f"model.text_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


SPARE = (*map(_inside, LLAMA.spare), "model.vision_model.embeddings.position_ids")
COPIES = {"lm_head.weight": "model.text_model.embed_tokens.weight"}


IDEFICS3_EYES = tower_named("idefics3_vision", "idefics3")
IDEFICS3 = Family(
    "idefics3", ("idefics3",), "Idefics3ForConditionalGeneration", partial(read, towers=IDEFICS3_EYES),
    partial(write, towers=IDEFICS3_EYES, kind="idefics3", name="Idefics3"), rules, spare=SPARE, copies=COPIES,
    tokens={"image": "image_token_id"}, prompts=image_prompts,
)  # fmt: skip
