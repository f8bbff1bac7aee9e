"""What a LLaVA sees with, as llama.cpp's projector file: keys, tensors, and what is refused.

How llama.cpp itself answers is in test_llamacpp.py.
"""

import json

import gguf
import numpy as np
import pytest
import torch
from test_convert_command import run

from sensorium.connectors.mlp import MLP
from sensorium.convert.gguf import GGUF, open_gguf
from sensorium.convert.gguf_write import write_gguf
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import CLIP_TRANSFORM, ViT, stack
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.catalog import find
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import build_model
from sensorium.train.checkpoint import save_checkpoint

CLIP = ViT.Config(
    backbone=stack(48, 3, 4, activation="quick_gelu", eps=1e-5, embed_norm=True), patch=8, patch_bias=False,
    drop_last=1, transform=CLIP_TRANSFORM.replace(size=32, resize="pad"),
)  # fmt: skip


def llava(encoder=CLIP, connector=MLP.Config(), **more) -> Fused:  # noqa: B008
    """A LLaVA of small parts, with weights that matter."""
    torch.manual_seed(0)
    backbone = llama(vocab=259, width=64, depth=2, heads=4, hidden=96)
    model = Fused.Config(encoders={"image": encoder}, connectors={"image": connector}, backbone=backbone, **more)
    network = model.build().eval()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3 / max(1, parameter.shape[-1]) ** 0.25)
    return network


def written(tmp_path, network, **options):
    exported = write_gguf(tmp_path / "model.gguf", network, Tokenizer.bytes(), Template(), **options)
    assert exported.files == [tmp_path / "model.gguf", tmp_path / "mmproj-model.gguf"]
    reader = gguf.GGUFReader(tmp_path / "mmproj-model.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {one.name: one for one in reader.tensors}, exported.notes


def test_clip_and_two_layers(tmp_path):
    """LLaVA-1.5: a CLIP ViT read one block before its last, two linear layers."""
    network = llava()
    keys, tensors, notes = written(tmp_path, network)
    assert keys["general.architecture"] == "clip"
    assert (keys["clip.projector_type"], keys["clip.has_vision_encoder"]) == ("mlp", True)
    own = {name.removeprefix("clip.vision."): value for name, value in keys.items() if name.startswith("clip.vision.")}
    assert own.pop("image_mean") == pytest.approx(CLIP_TRANSFORM.mean)
    assert own.pop("image_std") == pytest.approx(CLIP_TRANSFORM.std)
    assert own.pop("attention.layer_norm_epsilon") == pytest.approx(1e-5)
    assert own == {
        "image_size": 32, "patch_size": 8, "embedding_length": 48, "feed_forward_length": 192, "projection_dim": 64,
        "attention.head_count": 4, "block_count": 2, "feature_layer": [2],
    }  # fmt: skip
    assert "clip.use_gelu" not in keys  # that is: quick
    encoder, connector = network.encoders["image"], network.connectors["image"]
    names = {"v.patch_embd.weight", "v.position_embd.weight", "v.class_embd", "v.pre_ln.weight", "v.pre_ln.bias"}
    names |= {f"mm.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}
    inside = ("ln1", "ln2", "attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")
    names |= {f"v.blk.{at}.{part}.{kind}" for at in (0, 1) for part in inside for kind in ("weight", "bias")}
    assert tensors.keys() == names
    for name, tensor in (
        ("v.patch_embd.weight", encoder.patch.weight.view(48, 3, 8, 8)),
        ("v.position_embd.weight", encoder.place),
        ("v.class_embd", encoder.class_token),
        ("v.pre_ln.bias", encoder.backbone.embed_norm.bias),
        ("v.blk.1.attn_out.weight", encoder.backbone.blocks[1].attention.o.weight),
        ("v.blk.0.ffn_down.bias", encoder.backbone.blocks[0].ffn.down.bias),
        ("mm.0.weight", connector.layers[0].weight),
        ("mm.2.bias", connector.layers[1].bias),
    ):
        assert np.array_equal(tensors[name].data, tensor.detach().numpy()), name
    assert len(notes) == 2
    assert "pads it with (122, 116, 104) and resizes it" in notes[0]
    assert "issue 25814" in notes[1]


def test_the_last_block_before_its_norm(tmp_path):
    """As published LLaVAs with vision_feature_layer -1 read it."""
    keys, tensors, _ = written(tmp_path, llava(CLIP.replace(drop_last=0, normed=False)))
    assert (keys["clip.vision.block_count"], keys["clip.vision.feature_layer"]) == (3, [3])
    assert not [name for name in tensors if name.startswith("v.post_ln")]


def test_siglip_and_yi(tmp_path):
    """No class token, the last block with its norm, fixed positions; a LayerNorm behind each linear layer."""
    encoder = ViT.Config(backbone=stack(32, 2, 2, activation="gelu_tanh", eps=1e-5), patch=8, class_token=False,
                         positions="sincos2d", transform=ImageTransform(size=24, resize="squash"))  # fmt: skip
    network = llava(encoder, MLP.Config(norm=True))
    keys, tensors, notes = written(tmp_path, network, numbers="f16")
    assert (keys["clip.use_gelu"], keys["clip.vision.block_count"]) == (True, 2)
    assert {name for name in tensors if name.startswith("mm.")} == {
        f"mm.{place}.{kind}" for place in (0, 1, 3, 4) for kind in ("weight", "bias")
    }
    built = network.encoders["image"]
    assert np.array_equal(tensors["v.position_embd.weight"].data, built.table().numpy())
    assert np.array_equal(tensors["v.post_ln.weight"].data, built.backbone.norm.weight.detach().numpy())
    assert np.array_equal(tensors["mm.4.bias"].data, network.connectors["image"].norms[1].bias.detach().numpy())
    kinds = {name: one.tensor_type.name for name, one in tensors.items()}
    halves = {name for name, kind in kinds.items() if kind == "F16"}
    assert halves == {name for name in kinds if name.endswith("weight") and (".blk." in name or name.startswith("mm."))
                      and "ln" not in name} - {"mm.1.weight", "mm.4.weight"}  # fmt: skip
    assert set(kinds.values()) == {"F16", "F32"}
    assert len(notes) == 1
    assert "squashes it" in notes[0]


def test_the_tiny_recipe_is_one_of_them(tmp_path):
    recipe = find("llava-1.5", "tiny")
    exported = write_gguf(tmp_path / "model.gguf", build_model(recipe), Tokenizer.bytes(), recipe.template)
    assert len(exported.files) == 2
    assert exported.notes == [
        "llama.cpp resizes a picture that is not square and pads it with (122, 116, 104); this model pads it with "
        "(127, 127, 127) and resizes it: the numbers are the same for square pictures"
    ]


def test_a_run_is_exported_by_the_command(tmp_path, capsys):
    recipe = find("llava-1.5", "tiny")
    state = dict.fromkeys(("stage", "wiring", "stage_step", "position", "step"), 0)
    state |= {"finished": True, "results": [], "phases": {}, "adapters": []}
    network = build_model(recipe)
    save_checkpoint(tmp_path / "run", 1, recipe, network, Tokenizer.bytes(), state)
    out = tmp_path / "mine.gguf"
    assert run("convert", tmp_path / "run", out, "--to", "gguf", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == [str(out), str(tmp_path / "mmproj-mine.gguf")]
    assert len(said["notes"]) == 1
    before, after = network.backbone.state_dict(), open_gguf(out)[0].backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with GGUF(out) as file:
        assert file.context() == max(stage.tokens for stage in recipe.stages)
        assert "\\u003c" not in file.metadata["tokenizer.chat_template"]
        assert "<__media__>\\n" in file.metadata["tokenizer.chat_template"]


SMALL = stack(32, 2, 2, eps=1e-5)


@pytest.mark.parametrize(
    ("encoder", "connector", "reason"),
    [
        (CLIP, MLP.Config(depth=1), "two linear layers with biases behind its ViT"),
        (CLIP, MLP.Config(bias=False), "bias: false"),
        (CLIP, MLP.Config(entry=SMALL.block.norm), "entry:"),
        (CLIP.replace(transform=CLIP.transform.replace(size=33), cut=True), MLP.Config(), "cut"),
        (CLIP.replace(backbone=CLIP.backbone.replace(block=SMALL.block.replace(norm=SMALL.block.norm.replace(eps=1e-6)))),
         MLP.Config(norm=True), "epsilon"),
        (CLIP.replace(class_feature=True), MLP.Config(), "class_feature"),
        (CLIP.replace(levels=(1,)), MLP.Config(), "levels"),
        (CLIP.replace(transform=ImageTransform(size=32, resize="squash", split=True)), MLP.Config(), "tiles"),
        (CLIP.replace(transform=ImageTransform(size=32, resize="squash", first=60)), MLP.Config(), "first: pictures"),
        (CLIP.replace(transform=CLIP.transform.replace(tiles=((64, 32),))), MLP.Config(), "tiles"),
        (CLIP.replace(out_norm=True, drop_last=0), MLP.Config(), "out_norm"),
        (CLIP.replace(backbone=stack(48, 3, 4, activation="relu")), MLP.Config(), "this one relu"),
        (CLIP.replace(backbone=CLIP.backbone.replace(block=CLIP.backbone.block.replace(place="post"))), MLP.Config(),
         "plain pre-norm blocks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_eyes_that_llama_cpp_does_not_have(encoder, connector, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        write_gguf(tmp_path / "model.gguf", llava(encoder, connector), Tokenizer.bytes(), Template())
    assert list(tmp_path.iterdir()) == []


def test_neither_file_is_written_where_one_cannot_be(tmp_path):
    network = llava()
    network.backbone.embed.weight.data[3, 4] = 1e6  # the projector's file comes first and fits, this does not
    with pytest.raises(UserError, match="float16 cannot hold"):
        write_gguf(tmp_path / "model.gguf", network, Tokenizer.bytes(), Template(), numbers="f16")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mmproj-model.gguf").touch()
    with pytest.raises(UserError, match=r"mmproj-model\.gguf is there already"):
        write_gguf(tmp_path / "model.gguf", network, Tokenizer.bytes(), Template())
    assert len(list(tmp_path.iterdir())) == 1
