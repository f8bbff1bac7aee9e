"""SigLIP's and SigLIP 2's own files: what they contradict, sizes of pictures, lower case, what a layout cannot say."""

import json
import shutil

import pytest
import torch
import transformers
from dual_pairs import Pair, changed, refused
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

import sensorium
from sensorium.convert.family import family_named
from sensorium.encoders.transform import most_cells
from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return Pair.make("siglip, odd", tmp_path_factory.mktemp("siglip") / "model")


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    return Pair.make("siglip2, odd", tmp_path_factory.mktemp("siglip2") / "model")


def test_contradictions_of_siglip_are_named(siglip, siglip2, tmp_path):
    refused(changed(siglip.folder, tmp_path / "e", text_config={"projection_size": 42}), "projection_size is 42", "60")
    refused(changed(siglip.folder, tmp_path / "f", vision_config={"vision_use_head": False}), "vision_use_head")
    refused(changed(siglip.folder, tmp_path / "g", vision_config={"windows": 2}), "vision_config", "'windows'")
    for name, value in (("pad_token", None), ("padding_side", "left"),
                        ("model_input_names", ["input_ids", "attention_mask"])):  # fmt: skip
        folder = shutil.copytree(siglip.folder, tmp_path / name)
        words = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**words, name: value}))
        refused(folder, "padding token" if value is None else name, repr(value))
    flexible = shutil.copytree(siglip2.folder, tmp_path / "flexible")
    said = json.loads((flexible / "processor_config.json").read_text())
    said["image_processor"]["patch_size"] = 7
    (flexible / "processor_config.json").write_text(json.dumps(said))
    refused(flexible, "patches of 7", "reads 6")
    refused(changed(siglip2.folder, tmp_path / "i", vision_config={"num_patches": 26}), "num_patches is 26", "square")


def test_the_size_of_a_picture_is_the_references():
    shapes = [(1, 300), (300, 1), (2000, 7), *((37 * number % 997 + 1, 89 * number % 1021 + 1) for number in range(60))]
    for shape in shapes:
        for side, most in ((16, 256), (6, 20), (14, 1024)):
            rows, cols = most_cells(shape, side, most)
            assert (rows * side, cols * side) == get_image_size_for_max_num_patches(*shape, side, most)


def test_siglip_2_reads_lower_case_whatever_its_file_says(siglip2, tmp_path):
    folder = shutil.copytree(siglip2.folder, tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["normalizer"] = next(one for one in words["normalizer"]["normalizers"] if one["type"] == "Replace")
    (folder / "tokenizer.json").write_text(json.dumps(words))
    model = sensorium.load(folder, precision="fp32")
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)("A Cat", padding="max_length", max_length=50)
    assert model.engine.renderer.render(Sample((Segment("text", "A Cat"),))).ids.tolist() == theirs.input_ids
    assert torch.equal(model.embed("A Cat"), siglip2.model.embed("a cat"))


@pytest.mark.parametrize(("changes", "word"), [({"bias": None}, "bias"), ({"text_bias": False}, "text_bias")])
def test_what_the_layout_of_siglip_cannot_say_is_named(siglip, changes, word):
    with pytest.raises(UserError, match=f"cannot say this model: its (.* )?{word}"):
        family_named(siglip.model.recipe.name).write(siglip.model.network.config.replace(**changes))
