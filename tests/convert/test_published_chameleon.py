"""Chameleon of transformers, with its own processor, opened here and written back."""

import json
import shutil

import pytest
import torch
import transformers
from pictured import picture, pieces
from published import saved
from safetensors.torch import load_file

import sensorium
from sensorium.api import messages_to_sample
from sensorium.convert.chameleon import name_of
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError

CODES = 24
NAMES = [name_of(code) for code in range(CODES)]
"""In the vocabulary they stand in another order."""
WORDS = pieces(("<s>", "<racm3:break>", "<eoss>", "<image>", "<reserved08706>", *NAMES[9:], *NAMES[:9], "</s>"), ())
WORDS = transformers.PreTrainedTokenizerFast(
    tokenizer_object=WORDS._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
    sep_token="<reserved08706>",
)  # fmt: skip
SIZE = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 30,
        "vocabulary_map": {**WORDS.get_vocab()}}  # fmt: skip
CODEC = {"embed_dim": 12, "num_embeddings": CODES, "latent_channels": 16, "base_channels": 32, "resolution": 32,
         "channel_multiplier": [1, 2], "num_res_blocks": 1}  # fmt: skip
CASES = {
    "chameleon": (SIZE, CODEC, {}, 32),
    "odd": (
        {**SIZE, "vocab_size": len(WORDS) + 3, "num_key_value_heads": 3, "swin_norm": True, "hidden_size": 60,
         "num_attention_heads": 6, "intermediate_size": 51, "attention_bias": True, "mlp_bias": True,
         "num_hidden_layers": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-4},
        {**CODEC, "channel_multiplier": [1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [12, 6], "resolution": 24,
         "attn_type": "vanilla"},
        {"resample": 3, "rescale_factor": 1 / 255, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}, 24,
    ),
    "plain": ({**SIZE, "model_parallel_size": 4}, {**CODEC, "attn_type": "none", "attn_resolutions": [32]}, {}, 32),
}  # fmt: skip
SIZES = ((37, 101), (640, 427), (32, 32), (33, 300))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    text, codec, prepared, side = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    config = transformers.ChameleonConfig(**text, vq_config=codec)
    reference = saved(transformers.ChameleonForConditionalGeneration, config, folder)
    pictures = transformers.ChameleonImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **prepared
    )
    length = (side // 2 ** (len(codec["channel_multiplier"]) - 1)) ** 2
    processor = transformers.ChameleonProcessor(pictures, WORDS, image_seq_length=length)
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # the released folder has none
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


def asked(*parts):
    """Words and pictures in their order."""
    return [{"role": "user", "content": [{"type": "text", "text": one} if isinstance(one, str) else
                                         {"type": "image", "image": one} for one in parts]}]  # fmt: skip


def given(processor, *parts):
    text = "".join(one if isinstance(one, str) else "<image>" for one in parts)
    pictures = [one for one in parts if not isinstance(one, str)]
    made = processor(images=pictures or None, text=text, return_tensors="pt")
    return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in made}


PROMPTS = {
    "text": ("Two birds?",),
    "one picture": (picture(*SIZES[0]), "What is it?"),
    "three pictures": ("This", picture(*SIZES[1], 1), picture(*SIZES[2], 2), "or that?", picture(*SIZES[3], 3)),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_and_pixels_are_the_processors(both, prompt):
    _, _, processor, model = both
    theirs = given(processor, *PROMPTS[prompt])
    sequence = model.engine.renderer.render(messages_to_sample(asked(*PROMPTS[prompt])), generate=True)
    assert sequence.ids.tolist() == theirs["input_ids"][0].tolist()
    pixels = [item.data[0] for item in sequence.items.get("image", [])]
    if pixels:
        torch.testing.assert_close(torch.stack(pixels), theirs["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_codes_and_logits_are_the_references(both, prompt):
    _, reference, processor, model = both
    theirs = given(processor, *PROMPTS[prompt])
    ids, logits = model.logits(asked(*PROMPTS[prompt]))
    with torch.no_grad():
        expected = reference(**theirs).logits[0]
        if "pixel_values" in theirs:
            codes = reference.get_image_tokens(theirs["pixel_values"]).flatten()
            assert ids[theirs["input_ids"][0] == processor.image_token_id].tolist() == codes.tolist()
            assert len(codes.unique()) > 3
    words = expected[0] > torch.finfo(expected.dtype).min  # it never says codes
    assert words.sum() == expected.shape[1] - CODES
    torch.testing.assert_close(logits[:, words], expected[:, words], rtol=0, atol=2e-4)
    assert expected[:, words].std() > 0.1


def test_greedy_text_is_the_references(both):
    _, reference, processor, model = both
    for prompt in PROMPTS.values():
        theirs = given(processor, *prompt)
        said = reference.generate(**theirs, max_new_tokens=20, do_sample=False)[0, theirs["input_ids"].shape[1] :]
        answer = model.chat(asked(*prompt), max_tokens=20)
        assert answer == processor.tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("came", [True, False], ids=["with what it came with", "from its value alone"])
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path, came):
    folder, reference, processor, model = both
    opened, written = open_published(folder), tmp_path / "written"
    family = family_named(opened.family.name)
    write_published(written, family, opened.model, opened.tokenizer, opened.template, opened.files if came else None)
    before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.ChameleonForConditionalGeneration.from_pretrained(written)
    prompt = PROMPTS["three pictures"]
    theirs, wanted = (
        given(one, *prompt) for one in (transformers.ChameleonProcessor.from_pretrained(written), processor)
    )
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(theirs[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        torch.testing.assert_close(again(**theirs).logits, reference(**wanted).logits, rtol=0, atol=0)
    assert torch.equal(sensorium.load(written, "fp32").logits(asked(*prompt))[1], model.logits(asked(*prompt))[1])


def test_a_codec_without_a_decoder_says_so(both):
    model = both[3]
    with pytest.raises(UserError, match="no decoder"):
        model.draw("a cat")


def test_a_vocabulary_without_its_codes_is_refused(both, tmp_path):
    broken = shutil.copytree(both[0], tmp_path / "model")
    path = broken / "config.json"
    fields = json.loads(path.read_text())
    del fields["vocabulary_map"][NAMES[3]]
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="names 23 codes"):
        sensorium.load(broken)
