"""T5 and Flan-T5 of transformers, opened here and written back: the same numbers, the same text, the same bits."""

import json

import pytest
import torch
import transformers
from published import rewritten, strengthened
from safetensors.torch import load_file

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?'é"
PIECES = (("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.5), *((one, -4.0) for one in LETTERS), ("▁the", -2.0),
          ("▁a", -2.2), ("ing", -3.0), ("at", -3.2), ("▁cat", -3.1), ("▁wire", -5.0), ("on", -3.5),
          *((f"<extra_id_{place}>", 0.0) for place in (2, 1, 0)))  # fmt: skip
WORDS = len(PIECES)
GREEDY = {"max_new_tokens": 20, "do_sample": False, "use_cache": False}
"""The reference's cache has as many layers as its encoder, too few for a deeper decoder."""
TEXTS = ("translate English to German: a cat", "Two birds  sit on a wire,\nand one of them sings?", "é☃")
SIZE = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
ODD = {**SIZE, "vocab_size": WORDS + 9, "d_model": 30, "d_kv": 7, "d_ff": 41, "num_heads": 3, "num_layers": 1,
       "num_decoder_layers": 3, "relative_attention_num_buckets": 14, "relative_attention_max_distance": 21,
       "layer_norm_epsilon": 1e-5}  # fmt: skip
CASES = {
    "1.0": ({**SIZE, "feed_forward_proj": "relu"}, False),
    "1.1": ({**SIZE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "1.0, odd": ({**ODD, "feed_forward_proj": "relu"}, False),
    "1.1, odd": ({**ODD, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False}, True),
    "a head of its own, scaled": ({**ODD, "feed_forward_proj": "gelu"}, True),
    "one matrix, not scaled": ({**SIZE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, False),
}


def saved(folder, case, seed=0):
    """The reference with a head of its own or not; its class keeps one that differs from the embeddings."""
    config, own_head = CASES[case]
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config)).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    strengthened(model)
    with torch.no_grad():
        model.shared.weight.mul_(3)  # T5's embeddings are large: its head is scaled for that
        for name, parameter in model.named_parameters():
            parameter.mul_(8 if "relative_attention_bias" in name else 1)
    model.save_pretrained(folder)
    transformers.T5Tokenizer(vocab=list(PIECES), extra_ids=3).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    reference = saved(folder, request.param)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == CASES[request.param][1]
    return folder, reference, sensorium.load(folder, precision="fp32")


@pytest.mark.parametrize("text", TEXTS)
def test_logits_are_the_references(both, text):
    folder, reference, model = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    source, said = tokenizer(text).input_ids, tokenizer("the cat sings.").input_ids
    sample = Sample((Segment("text", text), Segment("text", "the cat sings.")))
    [item] = model.engine.renderer.render(sample).items["text"]
    assert item.source.ids.tolist() == source
    ids, logits = model.engine.logits(sample)
    assert ids.tolist() == [0, *said]
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([source]), decoder_input_ids=ids[None]).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_greedy_text_is_the_references(both):
    folder, reference, model = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        prompt = tokenizer(text, return_tensors="pt").input_ids
        [said] = reference.generate(prompt, **GREEDY)
        expected.append(tokenizer.decode(said, skip_special_tokens=True))
    assert max(map(len, expected)) > 5
    assert model.generate(TEXTS, max_tokens=20) == expected
    assert [model.chat([{"role": "user", "content": text}], max_tokens=20) for text in TEXTS] == expected


def test_a_prompt_is_one_text(both):
    _, _, model = both
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(UserError, match="a T5 answers one prompt"):
        model.chat(turns)


@pytest.mark.slow
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, _ = both
    opened = open_published(folder)
    for name, came in (("published", opened.files), ("made here", None)):
        written = tmp_path / name
        family = family_named(opened.family.name)
        write_published(written, family, opened.model, opened.tokenizer, opened.template, came)
        before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
        again = transformers.AutoModelForSeq2SeqLM.from_pretrained(written)
        assert type(again) is type(reference)
        for tensor, value in reference.state_dict().items():
            assert torch.equal(again.state_dict()[tensor], value), tensor
        prompt = transformers.AutoTokenizer.from_pretrained(written)(TEXTS[0], return_tensors="pt").input_ids
        assert torch.equal(again.generate(prompt, **GREEDY), reference.generate(prompt, **GREEDY))


def changed(folder, **fields):
    path = folder / "config.json"
    said = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


@pytest.mark.parametrize("case", ["1.0", "1.1"])
def test_folders_of_older_releases_say_it_otherwise(case, tmp_path):
    """`tie_word_embeddings` alone told the releases apart, and the embeddings were stored for each side."""
    saved(tmp_path, case)
    new = sensorium.load(tmp_path, "fp32").network
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors |= {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 4)
    rewritten(path, tensors)
    fields = ("scale_decoder_outputs", "dense_act_fn", "is_gated_act", "num_decoder_layers", "tie_word_embeddings")
    changed(tmp_path, **{**dict.fromkeys(fields), "n_positions": 512, "output_past": True})
    if case == "1.1":
        changed(tmp_path, tie_word_embeddings=False)
    old = sensorium.load(tmp_path, "fp32").network
    assert old.config == new.config
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in new.state_dict().items())
    tensors["encoder.embed_tokens.weight"][0, 0] += 1
    rewritten(path, tensors)
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight is shared.weight, and in the files they differ"):
        sensorium.load(tmp_path)


def test_what_contradicts_itself_is_refused(tmp_path):
    saved(tmp_path, "1.0")
    changed(tmp_path, is_gated_act=True)
    with pytest.raises(UserError, match="is_gated_act is True"):
        sensorium.load(tmp_path)
    changed(tmp_path, is_gated_act=False, tie_word_embeddings=False, scale_decoder_outputs=None)
    with pytest.raises(UserError, match=r"missing: 1 \(lm_head.weight\)"):
        sensorium.load(tmp_path)
    changed(tmp_path, tie_word_embeddings=True, decoder_start_token_id=None)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match="decoder_start_token_id is None"):
        sensorium.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "</s>", "type_id": 0}})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="its tokenizer writes '</s>' before a text"):
        sensorium.load(tmp_path)


def test_models_that_are_no_t5_are_refused(tmp_path):
    saved(tmp_path, "1.0")
    config = sensorium.load(tmp_path).network.config
    cases = (
        ({"backbone": config.backbone.replace(embed_norm=True)}, "decoder, cannot say this model: its embed_norm"),
        ({"source": config.source.replace(embed_norm=True)}, "encoder, cannot say this model: its embed_norm"),
        ({"source": None}, "without a source"),
    )
    for changes, reason in cases:
        with pytest.raises(UserError, match=reason):
            family_named("t5").write(config.replace(**changes))
