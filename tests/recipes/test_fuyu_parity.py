"""Fuyu, shrunk, gives the same numbers as transformers' own Fuyu with the same random weights."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sensorium.connectors.rows import Rows
from sensorium.encoders.patch import Patch
from sensorium.encoders.transform import ImageTransform
from sensorium.models.fused import Fused
from sensorium.nn.norm import Norm
from sensorium.recipes.fuyu import persimmon
from sensorium.sequence import Item, Sequence, Span

pytestmark = pytest.mark.slow
WIDTH, HEADS, SIDE, IMAGE, NEWLINE = 32, 2, 4, 97, 98


def reference():
    transformers = pytest.importorskip("transformers")
    text = {
        "model_type": "persimmon", "vocab_size": 99, "hidden_size": WIDTH, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "hidden_act": "relu2", "layer_norm_eps": 1e-5,
        "qk_layernorm": True, "hidden_dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25_000.0, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    config = transformers.FuyuConfig(text_config=text, patch_size=SIDE, image_token_id=IMAGE)
    torch.manual_seed(0)
    model = transformers.FuyuForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.3)
    return model


def ours_of(theirs) -> Fused:
    backbone = persimmon(width=WIDTH, depth=2, heads=HEADS, hidden=64, vocab=99, norm=Norm.Config(kind="layer"),
                         tied=False)  # fmt: skip
    transform = ImageTransform(size=16, resize="keep", multiple=SIDE)
    model: Fused = Fused.Config(
        encoders={"image": Patch.Config(transform=transform, patch=SIDE, dim=WIDTH)},
        connectors={"image": Rows.Config()}, backbone=backbone,
    ).build()  # fmt: skip
    state = theirs.state_dict()
    text = "model.language_model."
    # their patches are pixel by pixel, ours channel by channel
    linear = state["model.vision_embed_tokens.weight"].view(WIDTH, SIDE, SIDE, 3).permute(0, 3, 1, 2).flatten(1)
    made = {
        "encoders.image.linear.weight": linear,
        "encoders.image.linear.bias": state["model.vision_embed_tokens.bias"],
        "connectors.image.newline": state[f"{text}embed_tokens.weight"][NEWLINE],
        "backbone.embed.weight": state[f"{text}embed_tokens.weight"],
        "backbone.head.weight": state["lm_head.weight"],
    }
    names = {
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention.q_norm": "self_attn.q_layernorm",
        "attention.k_norm": "self_attn.k_layernorm", "attention.o": "self_attn.dense",
        "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h",
    }  # fmt: skip
    for leaf in ("weight", "bias"):
        made[f"backbone.norm.{leaf}"] = state[f"{text}final_layernorm.{leaf}"]
        for block in range(2):
            mine, other = f"backbone.blocks.{block}.", f"{text}layers.{block}."
            made |= {f"{mine}{ours}.{leaf}": state[f"{other}{named}.{leaf}"] for ours, named in names.items()}
            joined = state[f"{other}self_attn.query_key_value.{leaf}"].view(HEADS, 3, WIDTH // HEADS, -1)
            for index, name in enumerate("qkv"):
                part = joined[:, index].flatten(0, 1)
                made[f"{mine}attention.{name}.{leaf}"] = part if leaf == "weight" else part[:, 0]
    model.load_state_dict(made)
    return model.eval()


@pytest.mark.parametrize("size", [(12, 8), (7, 15), (16, 4)])
def test_fuyu_is_transformers_fuyu_for_pictures_of_any_size(size):
    """size: (height, width). The tokens: a word, the picture row by row with newlines, three words."""
    theirs = reference()
    ours = ours_of(theirs)
    encoder = ours.encoder("image")
    picture = Image.effect_noise((size[1], size[0]), 90).convert("RGB")
    item = Item(encoder.preprocess(picture), size)
    grid = encoder.config.grid(size)
    count = grid.rows * (grid.cols + 1)
    row = [IMAGE] * grid.cols + [NEWLINE]
    ids = torch.tensor([5, *row * grid.rows, 7, 8, 9])
    zeros = torch.zeros(len(ids), dtype=torch.long)
    position = torch.arange(len(ids))[:, None].expand(-1, 3)
    sequence = Sequence(ids, zeros.to(torch.uint8), position, zeros, zeros, torch.zeros(len(ids)),
                        [Span("image", 1, count, 0)], {"image": [item]})  # fmt: skip
    data = item.data
    assert data is not None
    cut = data.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE).permute(0, 2, 3, 4, 5, 1).reshape(1, -1, 3 * SIDE**2)
    with torch.no_grad():
        expected = theirs(input_ids=ids[None], image_patches=cut).logits[0]
        found = ours(sequence).logits(torch.arange(len(ids)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
