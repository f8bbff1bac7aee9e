"""CLIP and SigLIP of transformers, opened here and written back: the same ids, pixels, vectors, similarities, bits."""

import math

import pytest
import torch
import transformers
from dual_pairs import CASES, FLEX, TEXTS, VISION, Pair, processed
from multimodal import pictures
from published import saved
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import sensorium
from sensorium.api import picture_of
from sensorium.convert.family import family_named
from sensorium.convert.keys import pairs
from sensorium.convert.published import open_published, write_published
from sensorium.encoders.vit import patches
from sensorium.recipes import clip as clip_recipe
from sensorium.recipes import siglip as siglip_recipe
from sensorium.render import TooLong
from sensorium.sequence import Sample, Segment

ALONE = {"clip": CASES["clip, odd"][2], "siglip, cut": {**VISION, "image_size": 31}, "siglip": CASES["siglip, odd"][2],
         "siglip, no head": {**VISION, "vision_use_head": False}, "siglip2": CASES["siglip2, odd"][2],
         "siglip2, no head": {**FLEX, "vision_use_head": False}}  # fmt: skip
KINDS = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}


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
