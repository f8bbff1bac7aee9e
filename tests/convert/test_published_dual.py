"""CLIP and SigLIP of transformers, opened here and written back: the same ids, pixels, vectors, similarities, bits."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from multimodal import pictures
from published import saved
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch.nn import functional as F
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

import sensorium
from sensorium.api import picture_of
from sensorium.convert.family import family_named
from sensorium.convert.keys import pairs
from sensorium.convert.published import open_published, write_published
from sensorium.encoders.transform import most_cells
from sensorium.encoders.vit import patches
from sensorium.errors import UserError
from sensorium.recipes import clip as clip_recipe
from sensorium.recipes import siglip as siglip_recipe
from sensorium.render import TooLong
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import byte_symbols

MERGES = [("c", "a"), ("ca", "t</w>"), ("a", "n"), ("an", "d</w>"), ("i", "n"), ("in", "g</w>")]


def clip_tokenizer():
    """CLIP's own pipeline over bytes, those that end a word, and a few merges."""
    symbols = list(byte_symbols().values())
    words = [*symbols, *(f"{one}</w>" for one in symbols), *map("".join, MERGES), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: id for id, word in enumerate(words)}, merges=MERGES)


def gemma_tokenizer():
    """SigLIP 2's: lower case, words that begin with a mark, bytes for the rest, an end token, padding on the right."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)),
             "▁", *"abcdefghijklmnopqrstuvwxyz.,", "ca", "cat", "▁cat"]  # fmt: skip
    made = transformers.Siglip2Tokenizer(
        vocab={word: id for id, word in enumerate(words)}, merges=[("c", "a"), ("ca", "t"), ("▁", "cat")],
        padding_side="right", model_input_names=["input_ids"],
    )  # fmt: skip
    end = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    made.backend_tokenizer.post_processor = end
    return made


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 77}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
FLEX = {**{name: value for name, value in VISION.items() if name != "image_size"}, "num_patches": 16}
CASES = {
    "clip": ("CLIP", TEXT, VISION, {"projection_dim": 32}),
    "clip, odd": ("CLIP", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                           "hidden_act": "gelu", "layer_norm_eps": 1e-3, "max_position_embeddings": 61},
                  {**VISION, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "image_size": 30,
                   "patch_size": 10, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 37},
                  {"projection_dim": 23, "logit_scale_init_value": 5.5}),
    "siglip": ("Siglip", {**TEXT, "max_position_embeddings": 64}, VISION, {}),
    "siglip, odd": ("Siglip", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                               "hidden_act": "relu", "max_position_embeddings": 50, "projection_size": 60},
                    {**VISION, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "image_size": 30,
                     "patch_size": 10, "hidden_act": "quick_gelu", "intermediate_size": 37, "layer_norm_eps": 1e-3},
                    {}),
    "siglip2": ("Siglip2", {**TEXT, "max_position_embeddings": 64}, FLEX, {}),
    "siglip2, odd": ("Siglip2", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                                 "max_position_embeddings": 50, "projection_size": 60, "layer_norm_eps": 1e-3},
                     {**FLEX, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "patch_size": 6,
                      "num_patches": 25, "hidden_act": "relu", "intermediate_size": 37}, {}),
}  # fmt: skip
TEXTS = ("a photo of a cat", "Two birds sit\n on a  wire, and one is singing.", "É")
ALONE = {"clip": CASES["clip, odd"][2], "siglip, cut": {**VISION, "image_size": 31}, "siglip": CASES["siglip, odd"][2],
         "siglip, no head": {**VISION, "vision_use_head": False}, "siglip2": CASES["siglip2, odd"][2],
         "siglip2, no head": {**FLEX, "vision_use_head": False}}  # fmt: skip
KINDS = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}


def processed(kind, vision):
    """The reference's way of preparing pictures."""
    if kind == "Siglip2":  # more patches than positions were learned for, in one of the cases fewer
        return Siglip2ImageProcessorPil(patch_size=vision["patch_size"], max_num_patches=20)
    side = vision["image_size"]
    square = {"height": side, "width": side}
    if kind == "CLIP":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


@dataclass
class Pair:
    folder: Path
    reference: torch.nn.Module
    processor: Any
    model: sensorium.api.Model

    @classmethod
    def make(cls, case, folder):
        kind, text, vision, more = CASES[case]
        words = clip_tokenizer() if kind == "CLIP" else gemma_tokenizer()
        ids = {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        if kind != "CLIP":
            text = {"projection_size": vision["hidden_size"], **text}
        config = getattr(transformers, f"{kind}Config")(text_config={**text, **ids}, vision_config=vision, **more)
        reference = saved(getattr(transformers, f"{kind}Model"), config, folder)
        if kind != "CLIP":  # as published models have them, not as random ones
            torch.nn.init.constant_(reference.logit_scale, 4.7)
            torch.nn.init.constant_(reference.logit_bias, -16.5)
            reference.save_pretrained(folder)
        processor = getattr(transformers, f"{kind}Processor")(processed(kind, vision), words)
        processor.save_pretrained(folder)
        return cls(folder, reference, processor, sensorium.load(folder, precision="fp32"))

    @property
    def fills(self):
        """To how many tokens texts are filled, as SigLIP's are; 0: only to the longest, and it is not seen."""
        own = self.reference.config
        return 0 if own.model_type == "clip" else own.text_config.max_position_embeddings

    def inputs(self, texts, images, processor=None):
        filled = {"padding": "max_length", "max_length": self.fills} if self.fills else {"padding": True}
        if self.reference.config.model_type == "siglip2":  # this processor leaves the settings of its folder aside
            eyes = self.processor.image_processor
            filled |= {"patch_size": eyes.patch_size, "max_num_patches": eyes.max_num_patches}
        return (processor or self.processor)(text=list(texts), images=images, return_tensors="pt", **filled)

    def ids(self, text):
        return self.model.engine.renderer.render(Sample((Segment("text", text),))).ids.tolist()


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    return Pair.make(request.param, tmp_path_factory.mktemp("dual") / "model")


def test_ids_and_pixels_are_the_references(both):
    inputs = both.inputs(TEXTS, pictures())
    assert ("attention_mask" in inputs) != bool(both.fills)
    for index, text in enumerate(TEXTS):
        theirs = inputs["input_ids"][index]
        if not both.fills:
            theirs = theirs[inputs["attention_mask"][index].bool()]
        assert both.ids(text) == theirs.tolist()
    assert both.fills in (0, len(theirs))
    for picture, theirs in zip(pictures(), inputs["pixel_values"], strict=True):
        views = both.model.network.encoder("image").preprocess(picture)
        if theirs.ndim == 2:  # patches, colours last, filled to the most there may be
            cut = patches(views, both.reference.config.vision_config.patch_size)[0]
            views = [F.pad(cut.unflatten(1, (3, -1)).transpose(1, 2).flatten(1), (0, 0, 0, len(theirs) - len(cut)))]
        torch.testing.assert_close(views[0], theirs, rtol=0, atol=1e-5)


def test_vectors_and_similarities_are_the_references(both):
    with torch.no_grad():
        theirs = both.reference(**both.inputs(TEXTS, pictures()))
    image, text = both.model.embed(pictures()), both.model.embed(list(TEXTS))
    torch.testing.assert_close(image, theirs.image_embeds, rtol=0, atol=2e-4)
    torch.testing.assert_close(text, theirs.text_embeds, rtol=0, atol=2e-4)
    with torch.no_grad():
        scale, bias = both.model.network.head.terms()
    own = {name: tensor.item() for name, tensor in both.reference.named_parameters() if name.startswith("logit_")}
    assert scale.item() == pytest.approx(math.exp(own["logit_scale"]))
    assert (None if bias is None else bias.item()) == own.get("logit_bias")
    assert theirs.logits_per_image.std() > 0.3
    logits = scale * image @ text.T + own.get("logit_bias", 0.0)
    torch.testing.assert_close(logits, theirs.logits_per_image, rtol=0, atol=2e-4)


def test_a_pair_in_one_document_gives_the_same_vectors(both):
    pair = Sample((Segment("image", picture_of(pictures()[0])), Segment("text", TEXTS[0])))
    with torch.inference_mode():
        outputs = both.model.engine.outputs([both.model.engine.renderer.render(pair)])
    assert outputs.pairs.tolist() == [[0, 0]]
    torch.testing.assert_close(outputs.text[0], both.model.embed(TEXTS[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.image[0, 0], both.model.embed(pictures()[0]), rtol=0, atol=1e-5)


def test_what_a_person_types_does_not_end_a_text(both):
    end = both.model.tokenizer.eos
    typed = both.ids("<|endoftext|> <eos> cat")
    assert typed.count(end) == 1
    assert both.processor.tokenizer("<|endoftext|> <eos> cat").input_ids.count(end) == 2


def test_a_text_that_is_too_long_is_refused(both):
    with pytest.raises(TooLong, match="tokens"):
        both.model.embed("cat " * 90)


@pytest.mark.parametrize("from_files", [True, False], ids=["came from files", "from its value alone"])
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path, from_files):
    opened = open_published(both.folder)
    written = tmp_path / "written"
    family = family_named(opened.family.name)
    write_published(written, family, opened.model, opened.tokenizer, opened.template,
                    opened.files if from_files else None)  # fmt: skip
    before, after = load_file(both.folder / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].shape == after[name].shape for name in before)
    again = transformers.AutoModel.from_pretrained(written)
    assert type(again) is type(both.reference)
    inputs = both.inputs(TEXTS, pictures())
    with torch.no_grad():
        theirs, now = both.reference(**inputs), again(**inputs)
    assert torch.equal(theirs.logits_per_image, now.logits_per_image)
    processor = type(both.processor).from_pretrained(written)
    once_more = both.inputs(TEXTS, pictures(), processor)
    assert torch.equal(once_more["input_ids"], inputs["input_ids"])
    assert once_more.keys() == inputs.keys()
    torch.testing.assert_close(once_more["pixel_values"], inputs["pixel_values"], rtol=0, atol=1e-6)
    sensorium.load(written, precision="fp32")


def changed(folder, target, **fields):
    """A copy of a folder whose config.json has other fields in one of its parts."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        if isinstance(value, dict):
            config[name] = {**config.get(name, {}), **value}
        else:
            config[name] = value
    path.write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Pair.make("clip", tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return Pair.make("siglip, odd", tmp_path_factory.mktemp("siglip") / "model")


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


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        sensorium.load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    return Pair.make("siglip2, odd", tmp_path_factory.mktemp("siglip2") / "model")


def test_contradictions_are_named(clip, siglip, siglip2, tmp_path):
    refused(changed(clip.folder, tmp_path / "a", text_config={"eos_token_id": 7}), "eos_token_id is 7", "519")
    refused(changed(clip.folder, tmp_path / "b", vision_config={"image_size": 40}), "become 32", "reads 40")
    refused(changed(clip.folder, tmp_path / "c", text_config={"gated": True}), "text_config", "'gated'")
    refused(changed(clip.folder, tmp_path / "d", projection_dim=31), "visual_projection.weight", "(31, 32)")
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


def test_the_largest_id_must_be_the_one_that_ends_a_text(clip, tmp_path):
    folder = changed(clip.folder, tmp_path / "model", text_config={"eos_token_id": 2, "vocab_size": 521})
    clip.model.tokenizer.add_special(["<extra>"]).save(folder)
    refused(folder, "largest id", "519", "521")


@pytest.mark.parametrize(("recipe", "name"), [(clip_recipe.clip, "clip"), (siglip_recipe.siglip, "siglip")])
def test_published_sizes_are_written_and_read_as_the_same_value(recipe, name):
    """The recipes at paper size are the released models, but that CLIP's scale has a ceiling while it learns."""
    model = recipe("paper").model
    said = family_named(name).write(model)
    with torch.device("meta"):
        kind = transformers.AutoConfig.for_model(**said.config)
        reference = transformers.AutoModel.from_config(kind)
        own = model.build()
    plan = pairs(family_named(name).rules(model), own.state_dict())
    shapes = {one: tuple(tensor.shape) for one, tensor in reference.state_dict().items()}
    assert {one for pair in plan for one in pair.theirs} == shapes.keys()
    assert sum(tensor.numel() for tensor in own.state_dict().values()) == sum(map(math.prod, shapes.values()))


def test_what_a_layout_cannot_say_is_named(clip, siglip):
    for pair, changes, word in (
        (clip, {"bias": -10.0}, "bias"), (clip, {"text": "mean"}, "text"), (clip, {"rule": {"kind": "full"}}, "rule"),
        (siglip, {"bias": None}, "bias"), (siglip, {"text_bias": False}, "text_bias"),
    ):  # fmt: skip
        model = pair.model.network.config.replace(**changes)
        with pytest.raises(UserError, match=f"cannot say this model: its (.* )?{word}"):
            family_named(pair.model.recipe.name).write(model)
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


@pytest.mark.parametrize("case", ALONE)
def test_a_vision_tower_alone(case, tmp_path):
    kind, vision = KINDS[case.partition(",")[0]], ALONE[case]
    config = getattr(transformers, f"{kind}VisionConfig")(**vision)
    folder = tmp_path / "model"
    reference = saved(getattr(transformers, f"{kind}VisionModel"), config, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    eyes = processed(kind, vision)
    eyes.save_pretrained(folder)
    model = sensorium.load(folder, precision="fp32")
    with torch.no_grad():
        theirs = reference(**eyes(pictures(), return_tensors="pt"))
    for index, picture in enumerate(pictures()):
        features = model.features(picture)
        states = theirs.last_hidden_state[index]
        assert kind == "Siglip2" or len(features) == len(states)
        torch.testing.assert_close(features, states[: len(features)], rtol=0, atol=2e-4)
    assert theirs.last_hidden_state.std() > 0.1
    if kind != "CLIP" and "head" not in case:
        item = model._load("image", picture_of(pictures()[0]))
        with torch.no_grad():
            pooled = model.network.connectors["image"](model.network.encoder("image")([item]))
        torch.testing.assert_close(pooled[0], theirs.pooler_output[0], rtol=0, atol=2e-4)
    opened = open_published(folder)
    write_published(tmp_path / "written", opened.family, opened.model, None, opened.template, opened.files)
    again = getattr(transformers, f"{kind}VisionModel").from_pretrained(tmp_path / "written")
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    older = {f"vision_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(older, folder / "model.safetensors", {"format": "pt"})
    renamed = sensorium.load(folder, precision="fp32")
    assert torch.equal(renamed.features(pictures()[0]), model.features(pictures()[0]))
