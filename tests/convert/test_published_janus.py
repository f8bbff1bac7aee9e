"""Janus of transformers, with its own processor, opened here and written back."""

import pytest
import torch
import transformers
from pictured import picture
from published import saved
from published import tokenizer as small
from safetensors.torch import load_file

import sensorium
from sensorium.api import messages_to_sample
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError

PARTS = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tokenizer():
    made = small()
    backend = made.backend_tokenizer
    backend.add_special_tokens(["<boi>", "<eoi>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=PARTS,
        extra_special_tokens={"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )  # fmt: skip


WORDS = tokenizer()
TEXT = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 256, "eos_token_id": 257,
        "pad_token_id": 258}  # fmt: skip
VISION = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 24, "patch_size": 8,
          "projection_dim": 32, "mlp_ratio": 2.0, "num_image_tokens": 9}  # fmt: skip
CODEC = {"embed_dim": 5, "num_embeddings": 16, "latent_channels": 12, "base_channels": 32, "channel_multiplier": [1, 2],
         "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32}  # fmt: skip
CASES = {
    "janus": (TEXT, VISION, CODEC, {}, True),
    "odd": (
        {**TEXT, "vocab_size": len(WORDS) + 3, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3,
         "num_hidden_layers": 3},
        {**VISION, "hidden_size": 30, "num_attention_heads": 3, "image_size": 30, "patch_size": 7, "projection_dim": 60,
         "depth": 3, "attention_bias": False, "hidden_act": "gelu", "num_image_tokens": 16, "layer_norm_eps": 1e-5},
        {**CODEC, "channel_multiplier": [1, 1, 2], "num_res_blocks": 2, "projection_dim": 60, "num_hidden_layers": 1,
         "image_token_embed_dim": 60},
        {"resample": 2, "min_size": 5, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}, False,
    ),
}  # fmt: skip
SIZES = ((37, 101), (640, 427), (24, 24), (1, 300))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    text, vision, codec, prepared, tied = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    config = transformers.JanusConfig(
        text_config={**text, "tie_word_embeddings": tied}, vision_config=vision, vq_config=codec,
        image_token_id=WORDS.convert_tokens_to_ids("<image>"), tie_word_embeddings=tied,
    )  # fmt: skip
    reference = saved(transformers.JanusForConditionalGeneration, config, folder)
    size = vision["image_size"]
    pictures = transformers.JanusImageProcessorPil(size={"height": size, "width": size}, **prepared)
    processor = transformers.JanusProcessor(
        pictures, WORDS, chat_template=PARTS, num_image_tokens=vision["num_image_tokens"]
    )
    processor.save_pretrained(folder)
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


def asked(text, *pictures):
    return [{"role": "user", "content": [*({"type": "image", "image": one} for one in pictures),
                                         {"type": "text", "text": text}]}]  # fmt: skip


def given(processor, messages):
    made = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in made}


PROMPTS = {
    "text": asked("Two birds?"),
    "one picture": asked("What is it?", picture(*SIZES[0])),
    "four pictures": asked("Which?", *(picture(*size, number) for number, size in enumerate(SIZES))),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_pixels_and_logits_are_the_references(both, prompt):
    _, reference, processor, model = both
    theirs = given(processor, PROMPTS[prompt])
    sequence = model.engine.renderer.render(messages_to_sample(PROMPTS[prompt]), generate=True)
    assert sequence.ids.tolist() == theirs["input_ids"][0].tolist()
    pixels = [item.data[0] for item in sequence.items.get("image", [])]
    if pixels:
        torch.testing.assert_close(torch.stack(pixels), theirs["pixel_values"], rtol=0, atol=1e-5)
    with torch.no_grad():
        expected = reference(**theirs).logits[0]
    torch.testing.assert_close(model.logits(PROMPTS[prompt])[1], expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.1


def test_greedy_text_is_the_references(both):
    _, reference, processor, model = both
    for prompt in PROMPTS.values():
        theirs = given(processor, prompt)
        said = reference.generate(**theirs, max_new_tokens=20, do_sample=False)[0, theirs["input_ids"].shape[1] :]
        assert model.chat(prompt, max_tokens=20) == processor.tokenizer.decode(said, skip_special_tokens=True)


def test_codes_are_made_read_said_and_shown_as_in_the_reference(both):
    _, reference, _, model = both
    codec, head, theirs = model.network.codec("image"), model.network.codes["image"], reference.model
    grid = codec.config.grid((10, 10))
    codes = torch.randint(0, 16, (2, grid.tokens))
    hidden = torch.randn(7, reference.config.text_config.hidden_size)
    pixels = torch.randn(2, 3, codec.config.transform.size, codec.config.transform.size)
    with torch.no_grad():
        torch.testing.assert_close(
            head.embed(codes), reference.prepare_embeddings_for_image_generation(codes), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(head(hidden), theirs.generation_head(hidden), rtol=0, atol=1e-5)
        made = theirs.vqmodel.encode(pixels, return_dict=True).image_tokens
        assert codec.encode(pixels[:, :, None]).flatten().tolist() == made.flatten().tolist()
        assert len(made.unique()) > 2
        shown = codec.decode(codes.view(2, 1, grid.rows, grid.cols, 1))[:, :, 0]
        torch.testing.assert_close(shown, theirs.vqmodel.decode(codes), rtol=0, atol=2e-4)


@pytest.mark.parametrize("came", [True, False], ids=["with what it came with", "from its value alone"])
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path, came):
    folder, reference, processor, model = both
    opened, written = open_published(folder), tmp_path / "written"
    family = family_named(opened.family.name)
    write_published(written, family, opened.model, opened.tokenizer, opened.template, opened.files if came else None)
    before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.JanusForConditionalGeneration.from_pretrained(written)
    prompt = PROMPTS["four pictures"]
    theirs = given(transformers.JanusProcessor.from_pretrained(written), prompt)
    wanted = given(processor, prompt)
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(theirs[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        torch.testing.assert_close(again(**theirs).logits, reference(**wanted).logits, rtol=0, atol=0)
    assert torch.equal(sensorium.load(written, "fp32").logits(prompt)[1], model.logits(prompt)[1])


def test_it_says_no_pictures_yet(both):
    with pytest.raises(UserError, match="says no image"):
        both[3].draw("a cat")
