"""CLIP's own files: older releases, what a config leaves out or contradicts, what its layout cannot say."""

import json
import shutil

import pytest
import torch
import transformers
from dual_pairs import TEXTS, Pair, changed, refused
from multimodal import pictures
from safetensors.torch import load_file, save_file

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Pair.make("clip", tmp_path_factory.mktemp("clip") / "model")


def test_files_of_older_releases_open(clip, tmp_path):
    """The end token was once given as 2, the towers twice, and positions counted in a tensor."""
    config = json.loads((clip.folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    older = changed(
        clip.folder, tmp_path / "older", text_config={"eos_token_id": 2, "hidden_size": 1},
        text_config_dict={**text, "eos_token_id": 2}, vision_config_dict=vision, projection_dim=32,
    )  # fmt: skip
    tensors = load_file(older / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, older / "model.safetensors", {"format": "pt"})
    reference = transformers.CLIPModel.from_pretrained(older)
    assert reference.config.text_config.eos_token_id == 2
    inputs = clip.inputs(TEXTS, pictures())
    with torch.no_grad():
        theirs = reference(**inputs)
    model = sensorium.load(older, precision="fp32")
    torch.testing.assert_close(model.embed(list(TEXTS)), theirs.text_embeds, rtol=0, atol=2e-4)
    opened = open_published(older)
    write_published(tmp_path / "now", opened.family, opened.model, opened.tokenizer, opened.template, opened.files)
    with torch.no_grad():
        again = transformers.CLIPModel.from_pretrained(tmp_path / "now")(**inputs)
    assert torch.equal(again.logits_per_image, theirs.logits_per_image)


def test_fields_that_a_config_leaves_out_are_those_of_the_class(clip, tmp_path):
    short = shutil.copytree(clip.folder, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    for name, known in (("text_config", ("max_position_embeddings", "hidden_act", "layer_norm_eps")),
                        ("vision_config", ("hidden_act", "layer_norm_eps", "num_channels"))):  # fmt: skip
        config[name] = {field: value for field, value in config[name].items() if field not in known}
    (short / "config.json").write_text(json.dumps(config))
    model = sensorium.load(short, precision="fp32")
    assert torch.equal(model.embed("a cat"), clip.model.embed("a cat"))
    assert torch.equal(model.embed(pictures()[0]), clip.model.embed(pictures()[0]))


def test_contradictions_of_clip_are_named(clip, tmp_path):
    refused(changed(clip.folder, tmp_path / "a", text_config={"eos_token_id": 7}), "eos_token_id is 7", "519")
    refused(changed(clip.folder, tmp_path / "b", vision_config={"image_size": 40}), "become 32", "reads 40")
    refused(changed(clip.folder, tmp_path / "c", text_config={"gated": True}), "text_config", "'gated'")
    refused(changed(clip.folder, tmp_path / "d", projection_dim=31), "visual_projection.weight", "(31, 32)")


def test_the_largest_id_must_be_the_one_that_ends_a_text(clip, tmp_path):
    folder = changed(clip.folder, tmp_path / "model", text_config={"eos_token_id": 2, "vocab_size": 521})
    clip.model.tokenizer.add_special(["<extra>"]).save(folder)
    refused(folder, "largest id", "519", "521")


@pytest.mark.parametrize(
    ("changes", "word"), [({"bias": -10.0}, "bias"), ({"text": "mean"}, "text"), ({"rule": {"kind": "full"}}, "rule")]
)
def test_what_the_layout_of_clip_cannot_say_is_named(clip, changes, word):
    with pytest.raises(UserError, match=f"cannot say this model: its (.* )?{word}"):
        family_named(clip.model.recipe.name).write(clip.model.network.config.replace(**changes))


def test_a_tower_that_drops_a_block_is_named(clip):
    tower = clip.model.network.config.encoders["image"].replace(drop_last=1)
    with pytest.raises(UserError, match="drop_last=1"):
        family_named("clip").write(clip.model.network.config.replace(encoders={"image": tower}))


def test_a_scale_above_its_ceiling_is_written_as_it_is_used(clip, tmp_path):
    opened = open_published(clip.folder)
    model = opened.model.config.replace(ceiling=100.0).build()
    model.load_state_dict(opened.model.state_dict())
    with torch.no_grad():
        model.head.log_scale.fill_(5.0)
    write_published(tmp_path / "written", opened.family, model, opened.tokenizer, opened.template)
    scale = load_file(tmp_path / "written/model.safetensors")["logit_scale"]
    assert scale.shape == ()
    assert scale.exp().item() == pytest.approx(100.0)
