"""BLIP-2 and InstructBLIP before Flan-T5: the encoder reads queries and words, the decoder answers."""

import json

import pytest
import torch
import transformers
from multimodal import conversation, pictures
from published import strengthened
from safetensors.torch import load_file
from test_blip2 import BERT, ODD_BERT, ODD_TOWER, TOWER, asker, eyes
from test_published_t5 import GREEDY, ODD, PIECES, SIZE, WORDS

import sensorium
from sensorium.api import messages_to_sample
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published

IMAGE = WORDS
"""<image>, which the processor adds behind the tokenizer's last."""
T5 = {**SIZE, "model_type": "t5", "vocab_size": WORDS + 4, "feed_forward_proj": "gated-gelu",
      "tie_word_embeddings": False}  # fmt: skip
ODD_T5 = {**ODD, "model_type": "t5", "feed_forward_proj": "gated-silu", "tie_word_embeddings": False}
CASES = {
    "blip-2": ("Blip2", TOWER, BERT, T5, 6),
    "blip-2, odd": ("Blip2", ODD_TOWER, ODD_BERT, ODD_T5, 5),
    "instructblip": ("InstructBlip", TOWER, BERT, T5, 3),
}


def words():
    return transformers.T5Tokenizer(vocab=list(PIECES), extra_ids=3)


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    name, tower, bert, t5, queries = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(
        vision_config=tower, qformer_config=bert, text_config=t5, num_query_tokens=queries, image_token_index=IMAGE
    )
    torch.manual_seed(0)
    reference = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    language = reference.language_model
    language.lm_head.weight = torch.nn.Parameter(torch.empty_like(language.shared.weight))
    strengthened(reference)
    with torch.no_grad():
        language.shared.weight.mul_(3)
    reference.save_pretrained(folder)
    readers = [asker()] if name == "InstructBlip" else []
    processor = getattr(transformers, f"{name}Processor")(eyes(tower["image_size"]), words(), *readers, queries)
    processor.save_pretrained(folder)
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


PROMPTS = [("Question: what is it? Answer:", (0,)), ("a cat", (1,)), ("the cat on the wire", (2,)), ("which", (0, 3))]


def asked(processor, text, images):
    """The processor has one picture a text; the model reads several."""
    made = processor(images=images, text=text, return_tensors="pt")
    more = torch.full((1, (len(images) - 1) * processor.num_query_tokens), IMAGE)
    made["input_ids"] = torch.cat([more, made["input_ids"]], dim=1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    for name in ("qformer_input_ids", "qformer_attention_mask"):
        if name in made:
            made[name] = made[name].expand(len(images), -1)
    return made


@pytest.mark.parametrize(("text", "numbers"), PROMPTS)
def test_ids_pixels_and_logits_are_the_references(both, text, numbers):
    _, reference, processor, model = both
    images = [pictures()[number] for number in numbers]
    theirs = asked(processor, text, images)
    messages = [*conversation(text, *images), {"role": "assistant", "content": "the cat sings."}]
    [item] = model.engine.renderer.render(messages_to_sample(messages)).items["text"]
    ids = item.source.ids.clone()
    for span in item.source.spans:
        ids[span.start : span.start + span.length] = IMAGE
    assert ids.tolist() == theirs["input_ids"][0].tolist()
    assert ids[-1] == 1
    pixels = torch.cat([one.data for one in item.source.items["image"]])
    torch.testing.assert_close(pixels, theirs["pixel_values"], rtol=0, atol=1e-5)
    said, logits = model.logits(messages)
    assert said.tolist() == [0, *words()("the cat sings.").input_ids]
    with torch.no_grad():
        expected = reference(**theirs, decoder_input_ids=said[None]).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("text", "numbers"), PROMPTS)
def test_greedy_answers_are_the_references(both, text, numbers):
    _, reference, processor, model = both
    images = [pictures()[number] for number in numbers]
    [said] = reference.generate(**asked(processor, text, images), **GREEDY)
    answer = model.chat(conversation(text, *images), max_tokens=20)
    assert answer == processor.tokenizer.decode(said, skip_special_tokens=True)
    assert len(answer) > 3


@pytest.mark.slow
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, processor, _ = both
    opened = open_published(folder)
    prompt = asked(processor, "a cat", pictures()[:1])
    for name, came in (("published", opened.files), ("made here", None)):
        written = tmp_path / name
        write_published(
            written, family_named(opened.family.name), opened.model, opened.tokenizer, opened.template, came
        )
        before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
        assert json.loads((written / "config.json").read_text())["text_config"]["decoder_start_token_id"] == 0
        again = type(reference).from_pretrained(written)
        other = asked(type(processor).from_pretrained(written), "a cat", pictures()[:1])
        assert prompt.keys() == other.keys()
        assert all(torch.equal(prompt[one], other[one]) for one in prompt)
        assert torch.equal(again.generate(**other, **GREEDY), reference.generate(**prompt, **GREEDY))
