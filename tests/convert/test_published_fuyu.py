"""Fuyu of transformers, with its own processor, opened here and written back."""

import json
import shutil

import pytest
import torch
import transformers
from pictured import picture, pieces
from published import saved
from safetensors.torch import load_file, save_file
from transformers.models.fuyu import image_processing_pil_fuyu

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError

WORDS = pieces(("<s>", "</s>", "|ENDOFTEXT|"), ("|SPEAKER|", "|NEWLINE|", "<0x04>"))
TEXT = {"model_type": "persimmon", "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25_000.0, "partial_rotary_factor": 0.5}}  # fmt: skip
ODD = {**TEXT, "vocab_size": len(WORDS) + 5, "hidden_size": 42, "intermediate_size": 51, "num_attention_heads": 3,
       "num_hidden_layers": 3, "qk_layernorm": False, "hidden_act": "gelu", "layer_norm_eps": 1e-4,
       "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.3}}  # fmt: skip
CASES = {
    "fuyu": (TEXT, {"patch_size": 6}, {"size": {"height": 36, "width": 60}}),
    "odd": (ODD, {"patch_size": 5, "tie_word_embeddings": True},
            {"size": {"height": 45, "width": 25}, "resample": 3, "padding_value": 7.0, "image_mean": [0.4, 0.5, 0.6],
             "image_std": [0.3, 0.2, 0.25]}),
}  # fmt: skip
SIZES = ((37, 101), (64, 43), (1, 30), (12, 12), (60, 36), (61, 20))


class FuyuImageProcessorPil(image_processing_pil_fuyu.FuyuImageProcessorPil):
    """The reference's, whose patches are cut from arrays alone, while its processor hands over tensors."""

    def patchify_image(self, image, patch_size=None):
        return torch.from_numpy(super().patchify_image(image.numpy(), patch_size))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    text, fields, prepared = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    config = transformers.FuyuConfig(
        text_config=text, image_token_id=WORDS.convert_tokens_to_ids("|SPEAKER|"), **fields
    )
    reference = saved(transformers.FuyuForCausalLM, config, folder)
    side = {"height": fields["patch_size"], "width": fields["patch_size"]}
    processor = transformers.FuyuProcessor(FuyuImageProcessorPil(patch_size=side, **prepared), WORDS)
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # the released folder has none
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


def asked(text, *pictures):
    return [{"role": "user", "content": [*({"type": "image", "image": one} for one in pictures),
                                         {"type": "text", "text": text}]}]  # fmt: skip


def prompts(processor, text, *pictures):
    """What the processor makes of a picture and a text; of several pictures, those of each before the first text."""
    made = [processor(images=one, text=text, return_legacy_image_output=False) for one in pictures]
    shown = [one["input_ids"][0] for one in made]
    stops = [one.tolist().index(WORDS.bos_token_id) for one in shown]
    ids = torch.cat([*(one[:stop] for one, stop in zip(shown, stops)), shown[-1][stops[-1] :]])
    return {"input_ids": ids[None], "pixel_values": torch.cat([one["pixel_values"] for one in made])}


@pytest.mark.parametrize("size", SIZES)
def test_ids_and_patches_are_the_processors(both, size):
    _, _, processor, model = both
    shown = picture(*size)
    theirs = processor(images=shown, text="What is it?", return_legacy_image_output=False)
    ids, _ = model.logits(asked("What is it?", shown))
    assert ids.tolist() == theirs["input_ids"][0].tolist()
    encoder = model.network.encoder("image")
    views = encoder.preprocess(shown)
    side = encoder.config.patch
    cut = views.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).reshape(-1, 3 * side**2)
    torch.testing.assert_close(cut, theirs["pixel_values"].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(), SIZES[:1], SIZES[1:4]], ids=["text", "one picture", "three pictures"])
def test_logits_are_the_references(both, sizes):
    _, reference, processor, model = both
    shown = [picture(*size, number) for number, size in enumerate(sizes)]
    given = prompts(processor, "Two birds?", *shown) if shown else dict(processor.tokenizer("Two birds?<0x04>"))
    given = {name: torch.as_tensor(value) for name, value in given.items() if name in ("input_ids", "pixel_values")}
    given["input_ids"] = given["input_ids"].view(1, -1)
    ids, logits = model.logits(asked("Two birds?", *shown))
    assert ids.tolist() == given["input_ids"][0].tolist()
    with torch.no_grad():
        expected = reference(**given).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_greedy_text_is_the_references(both):
    _, reference, processor, model = both
    shown = picture(50, 33, 2)
    given = prompts(processor, "Say something.", shown)
    said = reference.generate(**given, max_new_tokens=20, do_sample=False)[0, given["input_ids"].shape[1] :]
    answer = model.chat(asked("Say something.", shown), max_tokens=20)
    assert answer == processor.tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("came", [True, False], ids=["with what it came with", "from its value alone"])
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path, came):
    folder, reference, processor, _ = both
    opened, written = open_published(folder), tmp_path / "written"
    family = family_named(opened.family.name)
    write_published(written, family, opened.model, opened.tokenizer, opened.template, opened.files if came else None)
    before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.FuyuForCausalLM.from_pretrained(written)
    theirs = transformers.FuyuProcessor.from_pretrained(written)
    theirs.image_processor = FuyuImageProcessorPil.from_pretrained(written)
    given, wanted = (prompts(one, "a cat", picture(31, 47)) for one in (theirs, processor))
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, reference(**wanted).logits, rtol=0, atol=0)
    assert sensorium.load(written).logits(asked("a cat", picture(31, 47)))[0].tolist() == given["input_ids"][0].tolist()


def test_files_of_today_and_of_before_open(both, tmp_path):
    """Released files have the text's fields among the others, and names as they are in memory are read too."""
    folder, reference, _, model = both
    opened = open_published(folder)
    write_published(tmp_path / "flat", opened.family, opened.model, opened.tokenizer, opened.template, opened.files)
    path = tmp_path / "flat/config.json"
    fields = json.loads(path.read_text())
    text = fields.pop("text_config")
    rope = text.pop("rope_parameters")
    path.write_text(json.dumps({**text, **fields, "rope_theta": rope["rope_theta"]}))
    save_file(dict(reference.state_dict()) if not fields["tie_word_embeddings"] else
              {name: value for name, value in reference.state_dict().items() if name != "lm_head.weight"},
              tmp_path / "flat/model.safetensors")  # fmt: skip
    flat = open_published(tmp_path / "flat", torch.float32)
    assert flat.model.config == model.network.config
    own = model.network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in flat.model.state_dict().items())


def test_a_tokenizer_without_its_tokens_is_refused(both, tmp_path):
    broken = shutil.copytree(both[0], tmp_path / "model")
    path = broken / "tokenizer.json"
    path.write_text(path.read_text().replace("|NEWLINE|", "|NEWLINES|"))
    with pytest.raises(UserError, match=r"no \|NEWLINE\|"):
        sensorium.load(broken)
