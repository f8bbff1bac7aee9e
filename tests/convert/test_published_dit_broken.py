"""Pipeline folders that are damaged, or cannot be said here: one clear error, and nothing is loaded."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published_dit import FILE, changed, pipeline, saved

import sensorium
from sensorium.convert.dit import DIT
from sensorium.convert.published import open_published
from sensorium.diffusion.sampler import DDIM, DDPM, Euler
from sensorium.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(pipeline("as published"), tmp_path_factory.mktemp("published") / "dit")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "dit")


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        sensorium.load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_release_of_the_paper_names_an_older_class(folder):
    older = {"_class_name": "Transformer2DModel", "norm_num_groups": 32, "cross_attention_dim": None, "dropout": 0.0,
             "num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False}  # fmt: skip
    opened = sensorium.load(folder, "fp32").network.state_dict()
    new = {name: tensor.clone() for name, tensor in opened.items()}  # the file is written over
    changed(folder / "transformer/config.json", **older)
    changed(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    file = folder / "transformer" / FILE
    save_file({**load_file(file), "pos_embed.pos_embed": torch.zeros(1, 16, 32)}, file)
    old = sensorium.load(folder, "fp32").network.state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in new.items())


@pytest.mark.parametrize(("file", "changes", "words"), [
    ("model_index", {"_class_name": "DitPipeline"}, ("'DitPipeline'", "did you mean 'DiTPipeline'?")),
    ("model_index", {"vae": [None, None]}, ("has the parts transformer, vae, scheduler", "scheduler, transformer")),
    ("model_index", {"safety": ["diffusers", "Safety"]}, ("names the part 'safety'", "is not there")),
    ("model_index", {"../vae": ["diffusers", "Safety"]}, ("names the part '../vae'", "is not there")),
    ("model_index", {"transformer": ["mine", "MyDiT"]}, ("'MyDiT'", "code of its own")),
    ("model_index", {"id2label": {"1000": "nothing"}}, ("'1000'", "classes 0 to 999")),
    ("model_index", {"colour": "blue"}, ("unknown field 'colour'",)),
    ("transformer/config", {"_class_name": "PixArtTransformer2DModel"}, ("PixArtTransformer2DModel",)),
    ("transformer/config", {"norm_type": "ada_norm_single"}, ("norm_type", "ada_norm_single")),
    ("transformer/config", {"in_channels": 5}, ("in_channels is 5", "have 4")),
    ("transformer/config", {"out_channels": 12}, ("out_channels is 12", "expected 4", "8")),
    ("transformer/config", {"sample_size": 9}, ("sample_size 9", "patch_size 2")),
    ("transformer/config", {"activation_fn": "gelu_approximate"}, ("did you mean 'gelu-approximate'?",)),
    ("transformer/config", {"num_layers": 4}, ("missing: 19", "transformer_blocks.3")),
    ("transformer/config", {"depthwise": True}, ("unknown field 'depthwise'",)),
    ("vae/config", {"_class_name": "VQModel"}, ("VQModel",)),
    ("vae/config", {"shift_factor": 0.1}, ("shift_factor of 0.1",)),
    ("scheduler/scheduler_config", {"_class_name": "PNDMScheduler"}, ("PNDMScheduler", "cannot be said")),
    ("scheduler/scheduler_config", {"clip_sample": True}, ("clip_sample is true",)),
    ("scheduler/scheduler_config", {"beta_schedule": "sigmoid"}, ("beta_schedule", "sigmoid")),
])  # fmt: skip
def test_pipelines_that_cannot_be_said_are_refused(folder, file, changes, words):
    changed(folder / f"{file}.json", **changes)
    refused(folder, *words)


def test_a_part_that_is_missing_or_damaged(folder):
    (folder / "vae" / FILE).write_bytes((folder / "vae" / FILE).read_bytes()[:-50])
    refused(folder, f"vae/{FILE}", "not a whole safetensors file")
    (folder / "vae" / FILE).unlink()
    refused(folder, "vae has no weights", FILE)
    shutil.rmtree(folder / "vae")
    refused(folder, "names the part 'vae'", "vae/config.json is not there")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    refused(folder, "it names no part")


def test_a_label_that_is_no_class(folder):
    model = sensorium.load(folder, "fp32")
    with pytest.raises(UserError, match="no word for 'goldfish'"):
        model.paint(["goldfish"], sampler=DDIM(steps=2))
    with pytest.raises(UserError, match="does not answer in words"):
        model.chat([{"role": "user", "content": "hello"}])


def test_models_that_the_layout_cannot_say_are_refused(folder):
    model = open_published(folder).model.config
    block = model.backbone.block
    changed_norm = model.backbone.replace(block=block.replace(norm=block.norm2))
    for changes, words in (
        ({"closed": False}, "its closed is False"),
        ({"stretch": 0}, "its stretch is 0"),
        ({"backbone": changed_norm}, "its backbone.block.norm.eps is 1e-05"),
        ({"sampler": Euler(steps=3)}, "cannot say the sampler"),
        ({"share": {"video": "image"}}, "holds a denoiser of pictures"),
    ):
        with pytest.raises(UserError, match=words):
            DIT.write(model.replace(**changes))
    written = DIT.write(model.replace(sampler=DDPM(steps=20, spacing="leading", large=True, clip=2.0)))
    scheduler = diffusers.DDPMScheduler.from_config(written.parts["scheduler"])
    assert (scheduler.config.variance_type, scheduler.config.clip_sample_range) == ("fixed_large", 2.0)
