"""The LLaVA recipes, shrunk, give the same numbers as transformers' own LLaVA with the same random weights."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sensorium.encoders.vit import ViT, stack
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.catalog import find
from sensorium.sequence import KINDS, Item, Sequence, Span

pytestmark = pytest.mark.slow

SIDE, PATCH, VOCAB, IMAGE_TOKEN = 56, 14, 60, 59  # 4 x 4 features of a view
WIDTH, DEPTH, HEADS, HIDDEN = 32, 3, 4, 64


def shrunk(name: str) -> Fused.Config:
    """The recipe's model at paper size, with small widths; connector, tiles and what the encoder reads stay."""
    model = find(name, "paper").model
    vision = model.encoders["image"]
    assert isinstance(vision, ViT.Config)
    tiles = tuple((rows // 336 * SIDE, cols // 336 * SIDE) for rows, cols in vision.transform.tiles)
    small = vision.replace(
        transform=vision.transform.replace(size=SIDE, tiles=tiles),
        backbone=stack(WIDTH, DEPTH, HEADS, HIDDEN, activation="quick_gelu", eps=1e-5, embed_norm=True),
    )
    language = llama(vocab=VOCAB, width=48, depth=2, heads=4, kv_heads=2, hidden=96)
    return model.replace(encoders={"image": small}, backbone=language)


def reference(kind: str, **more: Any) -> nn.Module:
    """A random Llava or LlavaNext of transformers in the same shape."""
    transformers = pytest.importorskip("transformers")
    vision = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        image_size=SIDE, patch_size=PATCH, hidden_act="quick_gelu", attn_implementation="eager",
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-2, **more
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    for (
        parameter
    ) in model.parameters():  # the usual initial weights are too small to tell a wrong model from a right one
        nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.2)
    return model.eval()


def ours_of(config: Fused.Config, theirs: nn.Module, inner: str) -> Fused:
    """Our model with their weights; every parameter of both is used exactly once."""
    state = dict(theirs.state_dict())
    vision = next(name for name in state if name.endswith("embeddings.class_embedding"))
    vision = vision.removesuffix("embeddings.class_embedding")
    names = {
        "class_token": "embeddings.class_embedding",
        "patch.weight": "embeddings.patch_embedding.weight",
        "place": "embeddings.position_embedding.weight",
    }
    for mine, other in (("embed_norm", "pre_layrnorm"), ("norm", "post_layernorm")):
        names |= {f"backbone.{mine}.{leaf}": f"{other}.{leaf}" for leaf in ("weight", "bias")}
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}
    parts |= {f"attention.{x}": f"self_attn.{'out' if x == 'o' else x}_proj" for x in "qkvo"}
    for layer in range(DEPTH):
        for mine, other in parts.items():
            for leaf in ("weight", "bias"):
                names[f"backbone.blocks.{layer}.{mine}.{leaf}"] = f"encoder.layers.{layer}.{other}.{leaf}"
    full = {f"encoders.image.{mine}": vision + other for mine, other in names.items()}
    for layer in range(2):
        for leaf in ("weight", "bias"):
            full[f"connectors.image.{inner}layers.{layer}.{leaf}"] = (
                f"model.multi_modal_projector.linear_{layer + 1}.{leaf}"
            )
    if "model.image_newline" in state:
        full["connectors.image.newline"] = "model.image_newline"
    full |= {
        "backbone.embed.weight": "model.language_model.embed_tokens.weight",
        "backbone.head.weight": "lm_head.weight",
    }
    full["backbone.norm.weight"] = "model.language_model.norm.weight"
    for layer in range(2):
        mine, other = f"backbone.blocks.{layer}", f"model.language_model.layers.{layer}"
        full |= {f"{mine}.attention.{x}.weight": f"{other}.self_attn.{x}_proj.weight" for x in "qkvo"}
        full |= {f"{mine}.ffn.{x}.weight": f"{other}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        full |= {f"{mine}.norm1.weight": f"{other}.input_layernorm.weight"}
        full |= {f"{mine}.norm2.weight": f"{other}.post_attention_layernorm.weight"}
    model: Fused = config.build()
    own = model.state_dict()
    taken = {mine: state.pop(other).reshape(own[mine].shape) for mine, other in full.items()}
    model.load_state_dict(taken)
    assert not [name for name in state if not name.endswith(("position_ids", "inv_freq"))]
    return model.eval()


def prompt(count: int, item: Item) -> Sequence:
    """Five tokens of text, a picture of `count` tokens, seven tokens of text."""
    torch.manual_seed(2)
    ids = torch.cat([torch.randint(0, 50, (5,)), torch.full((count,), IMAGE_TOKEN), torch.randint(0, 50, (7,))])
    total = len(ids)
    modality = torch.zeros(total, dtype=torch.uint8)
    modality[5 : 5 + count] = KINDS.index("image")
    zeros = torch.zeros(total, dtype=torch.long)
    return Sequence(
        ids=ids, modality=modality, position=torch.arange(total)[:, None].expand(-1, 3).contiguous(), doc=zeros,
        branch=zeros, weight=torch.zeros(total), spans=[Span("image", 5, count, 0)], items={"image": [item]},
    )  # fmt: skip


def logits(model: Fused, sequence: Sequence) -> Tensor:
    return model(sequence).logits(torch.arange(len(sequence)))


@torch.no_grad()
def test_llava_1_5_is_transformers_llava():
    config = shrunk("llava-1.5")
    theirs = reference("Llava", vision_feature_select_strategy="default")
    ours = ours_of(config, theirs, inner="")
    pixels = torch.randn(1, 3, SIDE, SIDE)
    count = config.num_tokens("image", (SIDE, SIDE))
    assert count == 16
    sequence = prompt(count, Item(pixels, (SIDE, SIDE)))
    expected = theirs(input_ids=sequence.ids[None], pixel_values=pixels).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(ours, sequence), expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(112, 112), (50, 120), (200, 60), (130, 90), (56, 224)])
def test_llava_next_is_transformers_llava_next(shape: tuple[int, int]):
    config = shrunk("llava-next")
    tiles = config.encoders["image"].transform.tiles
    theirs = reference(
        "LlavaNext", vision_feature_select_strategy="default", image_grid_pinpoints=[list(t) for t in tiles]
    )
    ours = ours_of(config, theirs, inner="inner.")
    torch.manual_seed(3)
    pixels = torch.randn(config.encoders["image"].transform.views(shape), 3, SIDE, SIDE)
    sequence = prompt(config.num_tokens("image", shape), Item(pixels, shape))
    expected = theirs(
        input_ids=sequence.ids[None], pixel_values=pixels[None], image_sizes=torch.tensor([shape])
    ).logits[0]  # fmt: skip
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(ours, sequence), expected, atol=2e-4, rtol=1e-4)


def test_tiles_and_tokens_of_300_picture_sizes_are_those_of_transformers():
    modeling = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    model = find("llava-next", "paper").model
    encoder = model.encoders["image"]
    pinpoints = [list(canvas) for canvas in encoder.transform.tiles]
    drawn = random.Random(0)
    sizes = [(336, 336), (672, 672), (336, 1344), (1344, 336), (1, 1), (480, 640)]
    sizes += [
        (round(drawn.lognormvariate(6.3, 0.7)) + 1, round(drawn.lognormvariate(6.3, 0.7)) + 1) for _ in range(300)
    ]
    for height, width in sizes:
        views = modeling.image_size_to_num_patches([height, width], pinpoints, 336)
        assert encoder.transform.views((height, width)) == views, (height, width)
        rows, cols = modeling.get_anyres_image_grid_shape((height, width), pinpoints, 336)
        grid = torch.empty(1, rows * 24, cols * 24)
        kept = modeling.unpad_image(grid, (height, width))
        tokens = 576 + kept.shape[1] * (kept.shape[2] + 1)
        assert model.num_tokens("image", (height, width)) == tokens, (height, width)
