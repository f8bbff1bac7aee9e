"""Janus of transformers, with its own processor, opened here and written back."""

import numpy as np
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
from sensorium.infer.sampling import Sampling
from sensorium.recipes.finetune import finetune
from sensorium.train.build import tokenizer_of

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
    answers = reference.generation_config
    answers.update(
        bos_token_id=WORDS.bos_token_id,
        eos_token_id=WORDS.eos_token_id,
        pad_token_id=WORDS.pad_token_id if tied else WORDS.convert_tokens_to_ids("x"),
    )
    answers.generation_kwargs = {"boi_token_id": WORDS.convert_tokens_to_ids("<boi>")}
    answers.save_pretrained(folder)
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
    again = transformers.JanusForConditionalGeneration.from_pretrained(written)
    prompt = PROMPTS["four pictures"]
    theirs = given(transformers.JanusProcessor.from_pretrained(written), prompt)
    wanted = given(processor, prompt)
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(theirs[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        torch.testing.assert_close(again(**theirs).logits, reference(**wanted).logits, rtol=0, atol=0)
    assert torch.equal(sensorium.load(written, "fp32").logits(prompt)[1], model.logits(prompt)[1])
    drawn, wanted = (drawn_there(one, processor, asked("A bird."), 5)[0] for one in (again, reference))
    assert torch.equal(drawn, wanted)


class Record:
    """A logits processor that keeps what the head says.

    Without guidance the reference does not choose between its two rows: the first is that of the words.
    """

    def __init__(self, guided):
        self.guided, self.logits = guided, []

    def __call__(self, input_ids, scores):
        self.logits.append(scores.clone())
        return scores if self.guided else scores[:1]


def drawn_there(reference, processor, messages, guidance):
    """Codes (N), and logits (N, 2, codes) of the words and of the blank prompt."""
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    theirs = processor(text=[prompt], generation_mode="image", return_tensors="pt")
    record = Record(guidance > 1)
    codes = reference.generate(
        theirs["input_ids"], attention_mask=theirs["attention_mask"], generation_mode="image", do_sample=False,
        guidance_scale=guidance, logits_processor=transformers.LogitsProcessorList([record]),
    )  # fmt: skip
    return codes[0], torch.stack(record.logits)


@pytest.mark.parametrize("guidance", [5, 1])
def test_greedy_codes_and_their_logits_are_the_references(both, guidance):
    _, reference, processor, model = both
    prompts = [asked("A red bird, drawn small."), asked("two")]
    samples = [messages_to_sample(one) for one in prompts]
    sampling = Sampling(guidance=guidance, max_tokens=1)
    together = model.engine.answered(samples, sampling, None, (1, "image"))
    for prompt, sample, request in zip(prompts, samples, together):
        codes, expected = drawn_there(reference, processor, prompt, guidance)
        assert request.drawing.drawn[0].codes.tolist() == codes.tolist()
        assert len(set(codes.tolist())) > 1
        logits = []
        hook = model.network.codes["image"].register_forward_hook(
            lambda part, given, out, kept=logits: kept.append(out)
        )
        model.engine.answered([sample], sampling, None, (1, "image"))
        hook.remove()
        said = torch.stack(logits[1 : 1 + len(codes)])  # the first is of the mark that opens it
        torch.testing.assert_close(said, expected[:, : said.shape[1]], rtol=0, atol=2e-4)
        assert said.shape[1] == (1 if guidance == 1 else 2)
        assert guidance == 1 or not torch.allclose(said[:, 0], said[:, 1], atol=1e-2)


def test_a_drawn_picture_is_the_references(both):
    _, reference, processor, model = both
    messages = asked("A red bird.")
    codes, _ = drawn_there(reference, processor, messages, 5)
    shown = model.draw(messages, temperature=0.0, guidance=5.0)
    with torch.no_grad():
        theirs = reference.decode_image_tokens(codes[None])
    codec = model.network.codec("image")
    grid = model.network.config.said("image")
    ours = codec.decode(codes.view(1, 1, grid.rows, grid.cols, 1))
    torch.testing.assert_close(ours[0, :, 0].permute(1, 2, 0), theirs[0], rtol=0, atol=1e-4)
    [whole] = processor.postprocess([theirs[0].permute(2, 0, 1)], return_tensors="PIL.Image.Image")["pixel_values"]
    assert shown.size == whole.size == (codec.config.transform.size,) * 2
    levels = torch.tensor(np.array(shown)).int() - torch.tensor(np.array(whole)).int()
    assert levels.abs().max() <= 1  # the reference cuts levels off, here they are rounded


def test_a_picture_among_words_stands_between_its_marks(both):
    model = both[3]
    sample = messages_to_sample(asked("Two birds?"))
    hot = Sampling(temperature=9.0, max_tokens=60, seed=3)
    found = model.engine.answered([sample] * 60, hot, None, (1, None))
    tokens, words = model.network.config.formats["image"], model.network.config.backbone.vocab
    seen = 0
    for request in found:
        inside = [id for id in request.ids if id >= words]
        assert len(inside) == len(request.drawing.drawn) * model.network.config.said("image").tokens
        for one in request.drawing.drawn:
            piece = request.ids[one.start : one.start + one.length]
            assert (piece[0], piece[-1]) == (tokens.open, tokens.close)
            assert [id - words for id in piece[1:-1]] == one.codes.tolist()
            seen += 1
    assert seen > 2


def test_its_tokenizer_fits_a_run_that_begins_with_it(both):
    recipe = finetune(both[0])
    assert len(tokenizer_of(recipe)) == len(WORDS)
