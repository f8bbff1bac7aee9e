"""Emu3 of transformers, with its own processor, opened here and written back."""

import pytest
import torch
import transformers
from pictured import picture
from published import saved
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import sensorium
from sensorium.codecs.base import to_pictures
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.tokenizer import byte_symbols

CODES = 16
NAMED = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
         "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}  # fmt: skip
NAMES = [f"<|visual token {code:06d}|>" for code in range(CODES)]
CHAT = (
    "You are a helpful assistant. {% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}{% endif %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(codes):
    backend = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in byte_symbols().items()}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|extra_203|>", "<|extra_204|>", "<|endoftext|>", *NAMED.values(), "<|extra_200|>", *codes]
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|extra_203|>", eos_token="<|extra_204|>", pad_token="<|endoftext|>",
        chat_template=CHAT, extra_special_tokens=NAMED,
    )  # fmt: skip


PLAIN, MIXED = tokenizer(NAMES), tokenizer([*NAMES[5:], *NAMES[:5]])
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
CODEC = {"codebook_size": CODES, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
         "hidden_size": 32, "attn_resolutions": [1]}  # fmt: skip
CASES = {
    "emu3": (PLAIN, TEXT, CODEC, {}),
    "odd": (
        MIXED, {**TEXT, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 3,
                "intermediate_size": 51},
        {**CODEC, "channel_multiplier": [1, 2, 2], "num_res_blocks": 2, "hidden_size": 64, "embed_dim": 3,
         "latent_channels": 3, "attn_resolutions": [1, 2], "temporal_downsample_factor": 2},
        {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]},
    ),
}  # fmt: skip
SIZES = ((37, 101), (640, 427), (8, 24), (33, 30))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    words, text, codec, prepared = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    config = transformers.Emu3Config(
        text_config={**text, "vocab_size": len(words) + 3}, vq_config=codec, vocabulary_map=words.get_vocab(),
        tie_word_embeddings=request.param == "odd",
    )  # fmt: skip
    reference = saved(transformers.Emu3ForConditionalGeneration, config, folder)
    for name, buffer in reference.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape))
    reference.save_pretrained(folder)
    factor = 2 ** (len(codec["channel_multiplier"]) - 1)
    pictures = transformers.Emu3ImageProcessor(
        min_pixels=10 * factor**2, max_pixels=24 * factor**2, spatial_factor=factor, **prepared
    )
    processor = transformers.Emu3Processor(pictures, words, chat_template=CHAT)
    processor.downsample_ratio = factor
    processor.save_pretrained(folder)
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


def asked(text, *pictures):
    return [{"role": "user", "content": [*({"type": "image", "image": one} for one in pictures),
                                         {"type": "text", "text": text}]}]  # fmt: skip


def given(processor, messages):
    made = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes") if name in made}


def encoded(reference, theirs):
    """The reference's ids, once its codec has said what the pictures are."""
    ids = theirs["input_ids"][0].clone()
    if "pixel_values" in theirs:
        sizes = torch.as_tensor(theirs["image_sizes"])
        with torch.no_grad():
            ids[ids == reference.config.image_token_id] = reference.model.get_image_tokens(
                theirs["pixel_values"], sizes
            ).long()
    return ids


PROMPTS = {
    "text": asked("Two birds?"),
    "one picture": asked("What is it?", picture(*SIZES[0])),
    "three pictures": asked("Which?", *(picture(60, 40, number) for number in range(3))),
}
"""The reference pads pictures of a batch to one size, and its codes then depend on that: several are of one size."""


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_processors(both, size):
    _, _, processor, model = both
    theirs = processor.image_processor(picture(*size), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.network.codec("image").preprocess(picture(*size)), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_codes_and_logits_are_the_references(both, prompt):
    _, reference, processor, model = both
    theirs = given(processor, PROMPTS[prompt])
    ids, logits = model.logits(PROMPTS[prompt])
    wanted = encoded(reference, theirs)
    assert ids.tolist() == wanted.tolist()
    with torch.no_grad():
        expected = reference(**theirs).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.1
    codes = set(reference.model.vocabulary_mapping.image_tokens)
    assert len(set(ids.tolist()) & codes) > 2 or prompt == "text"


def test_greedy_text_is_the_references(both):
    _, reference, processor, model = both
    tokens = model.network.config.tokens["image"]
    for prompt in PROMPTS.values():
        theirs = given(processor, prompt)
        said = reference.generate(**theirs, max_new_tokens=20, do_sample=False, suppress_tokens=list(tokens.ids))
        answer = model.chat(prompt, max_tokens=20)
        assert answer == processor.tokenizer.decode(said[0, theirs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_codes_become_the_references_pictures(both):
    """Pictures, and clips, whose frames become several times as many."""
    _, reference, _, model = both
    codec, theirs = model.network.codec("image"), reference.model.vqmodel
    codes = torch.randint(0, CODES, (2, 3, 5))
    with torch.no_grad():
        torch.testing.assert_close(
            codec.decode(codes[:, None, :, :, None])[:, :, 0], theirs.decode(codes), rtol=0, atol=2e-4
        )
        frames = 2 * codec.config.temporal
        clip = torch.randn(1, frames, 3, 3 * codec.config.spatial, 5 * codec.config.spatial)
        sizes = torch.tensor([clip.shape[-2:]])
        made = theirs.encode(clip, sizes).image_tokens[0]
        ours = codec.encode(clip.transpose(1, 2))
        assert torch.equal(ours[0, ..., 0], made)
        again = codec.decode(ours, frames)
        torch.testing.assert_close(again.transpose(1, 2), theirs.decode(made[None]), rtol=0, atol=2e-4)
    assert len(to_pictures(again[0], codec.config.transform)) == frames


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
    again = transformers.Emu3ForConditionalGeneration.from_pretrained(written)
    other = transformers.Emu3Processor.from_pretrained(written)
    other.downsample_ratio = processor.downsample_ratio
    prompt = PROMPTS["three pictures"]
    theirs, wanted = given(other, prompt), given(processor, prompt)
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(torch.as_tensor(theirs[name]), torch.as_tensor(wanted[name])) for name in wanted)
    with torch.no_grad():
        torch.testing.assert_close(again(**theirs).logits, reference(**wanted).logits, rtol=0, atol=0)
    assert torch.equal(sensorium.load(written, "fp32").logits(prompt)[1], model.logits(prompt)[1])
