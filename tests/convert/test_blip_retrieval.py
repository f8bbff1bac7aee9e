"""BLIP's retrieval model of transformers, opened here and written back: cosines, and scores of pairs."""

import shutil

import pytest
import torch
import transformers
from multimodal import pictures
from safetensors.torch import load_file, save_file
from test_blip import CASES, published

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError

TEXTS = ("two cats", "a photo of a dog", "", "a")


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    space = {} if request.param == "plain" else {"image_text_hidden_size": 23}
    folder = tmp_path_factory.mktemp("published") / "model"
    return published(transformers.BlipForImageTextRetrieval, request.param, folder, **space)


def scored(reference, processor, picture, text, judged):
    made = processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
        return reference(**made, use_itm_head=judged).itm_score[0]


def test_cosines_are_the_references(both):
    _, reference, processor, model = both
    seen = pictures()[:4]
    wanted = torch.stack([scored(reference, processor, one, text, False) for one in seen for text in TEXTS]).view(4, -1)
    found = model.embed(seen) @ model.embed(list(TEXTS)).T
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    assert wanted.std() > 0.01


def test_scores_of_pairs_are_the_references(both):
    _, reference, processor, model = both
    pairs = [(one, text) for one in pictures()[:4] for text in TEXTS]
    wanted = torch.stack([scored(reference, processor, *pair, True) for pair in pairs])
    torch.testing.assert_close(model.match(pairs), wanted, rtol=0, atol=2e-4)
    assert wanted.view(4, len(TEXTS), 2).std(0).min() > 1e-3  # a text's score depends on the picture
    torch.testing.assert_close(model.match(pairs[5:6]), wanted[5:6], rtol=0, atol=2e-4)
    assert model.match([]).shape == (0, 2)


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, processor, model = both
    opened, picture = open_published(folder), pictures()[0]
    for came in (opened.files, None):
        written = tmp_path / f"written_{came is None}"
        write_published(written, family_named("blip"), opened.model, opened.tokenizer, opened.template, came)
        before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        again = transformers.BlipForImageTextRetrieval.from_pretrained(written)
        assert again.config.architectures == ["BlipForImageTextRetrieval"]
        assert came is None or again.config.text_config.bos_token_id == reference.config.text_config.bos_token_id
        other = transformers.BlipProcessor.from_pretrained(written)
        for judged in (True, False):
            mine = scored(again, other, picture, "two cats", judged)
            theirs = scored(reference, processor, picture, "two cats", judged)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)  # weights in a map are aligned otherwise
        assert torch.equal(sensorium.load(written, "fp32").match([(picture, "a")]), model.match([(picture, "a")]))


def test_what_no_layout_can_say_is_not_written_and_what_judges_nothing_says_so(both, tmp_path):
    config, family = open_published(both[0]).model.config, family_named("blip")
    for other, message in (
        (config.replace(grounded=False), "holds a ViT and a text stack of its own"),
        (config.replace(text="last"), "its text is 'last', and 'first' is what would be read"),
        (config.replace(scale=10.0), "its scale is 10.0, and None"),
        (config.replace(encoders={"image": config.encoders["image"].replace(drop_last=1)}), "reads the last state"),
    ):
        with pytest.raises(UserError, match=message):
            family.write(other)
    with pytest.raises(UserError, match="with a learned scale"):
        family_named("clip").write(config)
    with pytest.raises(UserError, match="does not answer in words"):
        both[3].chat([{"role": "user", "content": "two cats"}])
    bare = shutil.copytree(both[0], tmp_path / "bare")
    tensors = {name: one for name, one in load_file(bare / "model.safetensors").items() if name != "text_proj.bias"}
    (bare / "model.safetensors").unlink()
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: 1 \(text_proj.bias\)"):
        sensorium.load(bare)
