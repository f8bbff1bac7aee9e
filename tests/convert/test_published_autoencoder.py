"""AutoencoderKL of diffusers, opened here and written back: the same latents, the same pictures, the same bits."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffused import strong
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file, save_file

import sensorium
from sensorium.convert.autoencoder import AUTOENCODER
from sensorium.convert.published import open_published, write_published
from sensorium.data.emoji import EmojiPicture
from sensorium.errors import UserError
from sensorium.models.wiring import Wiring

FILE = "diffusion_pytorch_model.safetensors"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
CASES = {
    "as published": {
        "block_out_channels": (16, 32, 64, 64), "down_block_types": (DOWN,) * 4, "up_block_types": (UP,) * 4,
        "layers_per_block": 2, "norm_num_groups": 16, "sample_size": 128},
    "odd": {
        "block_out_channels": (24, 40), "down_block_types": (DOWN,) * 2, "up_block_types": (UP,) * 2,
        "layers_per_block": 3, "norm_num_groups": 8, "latent_channels": 16, "scaling_factor": 1.5305,
        "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": [96, 128]},
    "without attention": {
        "block_out_channels": (12, 18, 30), "down_block_types": (DOWN,) * 3, "up_block_types": (UP,) * 3,
        "norm_num_groups": 6, "mid_block_add_attention": False, "use_quant_conv": False, "sample_size": 128},
}  # fmt: skip
PICTURES = (("1F436", (72, 40)), ("1F34E", (24, 104)))
"""Emoji, and (width, height) in pixels."""


def picture(key, size):
    return EmojiPicture(key, "twitter").load().resize(size)


def reference(fields, seed=0):
    torch.manual_seed(seed)
    return strong(diffusers.AutoencoderKL(**fields))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "vae"
    model = reference(CASES[request.param])
    model.save_pretrained(folder)
    return folder, model, sensorium.load(folder, precision="fp32")


@pytest.mark.parametrize(("key", "size"), PICTURES)
def test_pixels_and_latents_are_the_references(both, key, size):
    _, theirs, ours = both
    image, codec = picture(key, size), ours.network.codec("image")
    pixels = VaeImageProcessor().preprocess(image)
    torch.testing.assert_close(codec.preprocess(image), pixels, rtol=0, atol=1e-6)
    with torch.no_grad():
        wanted = theirs.encode(pixels).latent_dist
        mean, log_variance = (part[:, 0].permute(0, 3, 1, 2) for part in codec.moments(pixels[:, :, None]))
    assert wanted.mean.std() > 0.1
    assert wanted.logvar.std() > 0.1
    torch.testing.assert_close(mean, wanted.mean, rtol=0, atol=2e-4)
    torch.testing.assert_close(log_variance, wanted.logvar, rtol=0, atol=2e-4)
    scaled = (wanted.mean - (theirs.config.shift_factor or 0.0)) * theirs.config.scaling_factor
    torch.testing.assert_close(ours.features(image), scaled[0].flatten(1).T, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("key", "size"), PICTURES)
def test_decoded_pictures_are_the_references(both, key, size):
    _, theirs, ours = both
    image, codec = picture(key, size), ours.network.codec("image")
    grid = codec.config.grid((image.height, image.width))
    scaled = torch.randn(1, codec.config.channels, grid.rows, grid.cols) * theirs.config.scaling_factor
    with torch.no_grad():
        latents = scaled / theirs.config.scaling_factor + (theirs.config.shift_factor or 0.0)
        wanted = theirs.decode(latents).sample
        found = codec.decode(scaled.permute(0, 2, 3, 1)[:, None])[:, :, 0]
    assert tuple(wanted.shape[2:]) == (image.height, image.width)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    [drawn] = codec.pictures(scaled[0].flatten(1).T, grid)
    [theirs_drawn] = VaeImageProcessor().postprocess(wanted)
    assert np.abs(np.asarray(drawn, int) - np.asarray(theirs_drawn, int)).max() <= 1  # of 255: a rounding apart


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, theirs, _ = both
    opened = open_published(folder)
    write_published(tmp_path / "came", opened.family, opened.model, None, opened.template, opened.files)
    write_published(tmp_path / "own", AUTOENCODER, opened.model, None, opened.template)
    before = load_file(folder / FILE)
    for written in (tmp_path / "came", tmp_path / "own"):
        after = load_file(written / FILE)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        again = diffusers.AutoencoderKL.from_pretrained(written)
        pixels = torch.randn(1, 3, 16, 24)
        with torch.no_grad():
            torch.testing.assert_close(again(pixels).sample, theirs(pixels).sample, rtol=0, atol=0)
            assert again.config.scaling_factor == theirs.config.scaling_factor
            assert again.config.shift_factor == theirs.config.shift_factor
    assert json.loads((tmp_path / "came/config.json").read_text())["sample_size"] == 128  # the longer side


def test_shards_are_read_as_one_file_is(both, tmp_path):
    _, theirs, model = both
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = open_published(tmp_path, torch.float32).model.state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in model.network.state_dict().items())


def test_names_of_older_files_are_known(tmp_path):
    theirs = reference(CASES["as published"])
    theirs.save_pretrained(tmp_path)
    opened = sensorium.load(tmp_path, "fp32").network.state_dict()
    new = {name: tensor.clone() for name, tensor in opened.items()}  # the file is written over
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def before(name):
        for today, older in names.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{older}.")
        return name

    tensors = {before(name): tensor for name, tensor in load_file(tmp_path / FILE).items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, tmp_path / FILE)
    old = sensorium.load(tmp_path, "fp32").network.state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in new.items())


@pytest.fixture
def folder(tmp_path):
    reference(CASES["odd"]).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize(("changes", "words"), [
    ({"_class_name": "AutoencoderKLK"}, ("'AutoencoderKLK'", "did you mean 'AutoencoderKL'?")),
    ({"down_block_types": [DOWN, "AttnDownEncoderBlock2D"]}, ("down_block_types", "AttnDownEncoderBlock2D")),
    ({"norm_num_groups": 7}, ("norm_num_groups 7", "[24, 40]")),
    ({"latents_mean": [0.0] * 16}, ("latents_mean",)),
    ({"in_channels": 4}, ("in_channels is 4",)),
    ({"latent_channels": 8}, ("(16", "(32")),
    ({"use_quant_conv": True}, ("missing: 2", "quant_conv")),
    ({"block_out_channels": [24, "40"]}, ("block_out_channels", "expected sizes")),
    ({"sharpness": 2}, ("unknown field 'sharpness'",)),
])  # fmt: skip
def test_configs_that_cannot_be_said_are_refused(folder, changes, words):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError) as error:
        sensorium.load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_weights_that_are_missing_or_pickle_are_named(folder):
    shutil.move(folder / FILE, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"no weights: it needs {FILE}"):
        sensorium.load(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pickle \(diffusion_pytorch_model.bin\)"):
        sensorium.load(folder)


def test_models_that_the_layout_cannot_say_are_refused(folder, tmp_path):
    opened = open_published(folder)
    codec = opened.model.config.codecs["image"]
    for changed, words in (
        (codec.replace(conv=codec.conv.replace(halving="both")), "its conv.halving is 'both'"),
        (codec.replace(conv=codec.conv.replace(patch=2)), "its conv.patch is 2"),
        (codec.replace(conv=codec.conv.replace(groups=7)), "norm_num_groups 7"),
    ):
        with pytest.raises(UserError, match=words):
            AUTOENCODER.write(Wiring.Config(codecs={"image": changed}))
    with pytest.raises(UserError, match="holds a VAE of pictures alone"):
        AUTOENCODER.write(Wiring.Config(codecs={"video": codec}))
