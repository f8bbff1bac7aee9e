"""CLIP and SigLIP against transformers on random weights: embeddings, and logits of every picture with every text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual, DualOutputs
from sensorium.sequence import Item, Sequence, Span

SIZE, PATCH, WIDTH, DEPTH, HEADS, VOCAB, LENGTH = 24, 8, 32, 3, 4, 60, 9
COMMON = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}


def blocks(ours: str, theirs: str) -> dict[str, str]:
    """Names of a stack's blocks: ours -> theirs."""
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"}
    names |= {f"attention.{one}": f"self_attn.{one}_proj" for one in "qkv"} | {"attention.o": "self_attn.out_proj"}
    return {
        f"{ours}.blocks.{index}.{name}.{kind}": f"{theirs}.encoder.layers.{index}.{other}.{kind}"
        for index in range(DEPTH)
        for name, other in names.items()
        for kind in ("weight", "bias")
    }


TEXT = {
    "backbone.embed.weight": "text_model.embeddings.token_embedding.weight",
    "backbone.place.weight": "text_model.embeddings.position_embedding.weight",
    "backbone.norm.weight": "text_model.final_layer_norm.weight",
    "backbone.norm.bias": "text_model.final_layer_norm.bias",
    "head.log_scale": "logit_scale",
    **blocks("backbone", "text_model"),
}
IMAGE = {
    "encoders.image.patch.weight": "vision_model.embeddings.patch_embedding.weight",
    "encoders.image.place": "vision_model.embeddings.position_embedding.weight",
    "encoders.image.backbone.norm.weight": "vision_model.post_layernorm.weight",
    "encoders.image.backbone.norm.bias": "vision_model.post_layernorm.bias",
    **blocks("encoders.image.backbone", "vision_model"),
}
CLIP = {
    **TEXT,
    **IMAGE,
    "encoders.image.class_token": "vision_model.embeddings.class_embedding",
    "encoders.image.backbone.embed_norm.weight": "vision_model.pre_layrnorm.weight",
    "encoders.image.backbone.embed_norm.bias": "vision_model.pre_layrnorm.bias",
    "connectors.image.project.weight": "visual_projection.weight",
    "head.text.weight": "text_projection.weight",
}
POOL = "connectors.image.query"
SIGLIP = {
    **TEXT,
    **IMAGE,
    "encoders.image.patch.bias": "vision_model.embeddings.patch_embedding.bias",
    "head.text.weight": "text_model.head.weight",
    "head.text.bias": "text_model.head.bias",
    "head.bias": "logit_bias",
    f"{POOL}.query": "vision_model.head.probe",
    f"{POOL}.attention.o.weight": "vision_model.head.attention.out_proj.weight",
    f"{POOL}.attention.o.bias": "vision_model.head.attention.out_proj.bias",
    f"{POOL}.norm.weight": "vision_model.head.layernorm.weight",
    f"{POOL}.norm.bias": "vision_model.head.layernorm.bias",
    f"{POOL}.ffn.up.weight": "vision_model.head.mlp.fc1.weight",
    f"{POOL}.ffn.up.bias": "vision_model.head.mlp.fc1.bias",
    f"{POOL}.ffn.down.weight": "vision_model.head.mlp.fc2.weight",
    f"{POOL}.ffn.down.bias": "vision_model.head.mlp.fc2.bias",
}


@torch.no_grad()
def copy(model: Dual, reference: nn.Module, names: dict[str, str]) -> None:
    """Every one of our parameters from the reference's of that name; attention of the pool is stored as one there."""
    theirs = dict(reference.named_parameters())
    if "vision_model.head.probe" in theirs:
        for kind in ("weight", "bias"):
            parts = theirs[f"vision_model.head.attention.in_proj_{kind}"].chunk(3)
            theirs |= {f"pool.{one}.{kind}": part for one, part in zip("qkv", parts)}
            names = names | {f"{POOL}.attention.{one}.{kind}": f"pool.{one}.{kind}" for one in "qkv"}
    ours = dict(model.named_parameters())
    assert set(ours) == set(names)
    for name, parameter in ours.items():
        parameter.copy_(theirs[names[name]].reshape(parameter.shape))


def randomise(reference: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in reference.named_parameters():
        if name not in ("logit_scale", "logit_bias"):
            nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)


def ask(model: Dual, ids: Tensor, pixels: Tensor) -> DualOutputs:
    """ids (N, L), pixels (I, 3, H, W): a text a document; picture i beside document i."""
    count, length = ids.shape
    flat = ids.flatten()
    place = torch.arange(length).repeat(count)[:, None].expand(-1, 3).contiguous()
    zeros = torch.zeros(len(flat), dtype=torch.long)
    spans = [Span("image", row * length, 1, row, mode="memory") for row in range(len(pixels))]
    items = {"image": [Item(one[None], (SIZE, SIZE)) for one in pixels]}
    doc = torch.arange(count).repeat_interleave(length)
    return model(Sequence(flat, zeros.to(torch.uint8), place, doc, zeros, torch.ones(len(flat)), spans, items))


def compare(model: Dual, reference: nn.Module, ids: Tensor) -> None:
    pixels = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = ask(model, ids, pixels)
        theirs = reference(input_ids=ids, pixel_values=pixels)
        logits = ours.scale * ours.image[:, 0] @ ours.text.T
        if ours.bias is not None:
            logits = logits + ours.bias
    torch.testing.assert_close(ours.image[:, 0], theirs.image_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.text, theirs.text_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-4, rtol=0)
    assert theirs.logits_per_image.std() > 0.5  # not all alike


def towers(activation, eps: float, **vision):
    text = stack(WIDTH, DEPTH, HEADS, hidden=64, activation=activation, eps=eps)
    transform = ImageTransform(size=SIZE)
    blocks = stack(WIDTH, DEPTH, HEADS, hidden=64, activation=activation, eps=eps, embed_norm=vision.pop("embed_norm"))
    eye = ViT.Config(transform=transform, backbone=blocks, patch=PATCH, **vision)
    return eye, text.replace(vocab=VOCAB, positions=LENGTH)


def test_clip_is_transformers_clip():
    transformers = pytest.importorskip("transformers")
    text = {**COMMON, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "eos_token_id": VOCAB - 1}
    vision = {**COMMON, "image_size": SIZE, "patch_size": PATCH}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    reference = transformers.CLIPModel(config).eval()
    randomise(reference)
    eye, words = towers("quick_gelu", 1e-5, embed_norm=True, patch_bias=False, class_feature=True)
    pool = GlobalPool.Config(by="class")
    model = Dual.Config(encoders={"image": eye}, connectors={"image": pool}, backbone=words, width=16).build().eval()
    copy(model, reference, CLIP)
    ids = torch.randint(0, VOCAB - 1, (5, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = VOCAB - 1  # the token that ends a text stands for it
    compare(model, reference, ids)


def test_siglip_is_transformers_siglip():
    transformers = pytest.importorskip("transformers")
    text = {**COMMON, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "projection_size": WIDTH}
    vision = {**COMMON, "image_size": SIZE, "patch_size": PATCH}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    reference = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        reference.logit_scale.fill_(2.0)
        reference.logit_bias.fill_(-3.0)
    randomise(reference)
    eye, words = towers("gelu_tanh", 1e-6, embed_norm=False, class_token=False)
    pool = GlobalPool.Config(by="attention", heads=HEADS, hidden=64, project=False)
    model = Dual.Config(
        encoders={"image": eye}, connectors={"image": pool}, backbone=words, width=WIDTH, text_bias=True, bias=-10.0,
        ceiling=None, rule=AttentionRule("full"),
    ).build().eval()  # fmt: skip
    copy(model, reference, SIGLIP)
    compare(model, reference, torch.randint(0, VOCAB, (5, LENGTH), generator=torch.Generator().manual_seed(3)))
