"""Language models of transformers, opened here and written back: the same numbers, the same text, the same bits."""

import pytest
import torch
import transformers
from published import WORDS, saved, tokenizer
from safetensors.torch import load_file

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.convert.stored import Stored, write
from sensorium.sequence import Sample, Segment

SIZE = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
ODD = {**SIZE, "vocab_size": WORDS + 7, "hidden_size": 60, "intermediate_size": 101, "num_attention_heads": 6,
       "num_key_value_heads": 3, "head_dim": 14, "rms_norm_eps": 1e-5, "num_hidden_layers": 3}  # fmt: skip
GPT2 = {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 90, "bos_token_id": 256,
        "eos_token_id": 257}  # fmt: skip
OPT = {**SIZE, "ffn_dim": 96, "max_position_embeddings": 90, "word_embed_proj_dim": 64}
BLOOM = {"vocab_size": WORDS, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 256, "eos_token_id": 257}
NO_HEAD_DIM = {name: value for name, value in ODD.items() if name != "head_dim"}
WINDOW = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama": ("Llama", SIZE, {}),
    "llama, odd": ("Llama", ODD, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
                                  "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "llama, longer": ("Llama", {**SIZE, "hidden_size": 128}, {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "llama, linear": ("Llama", SIZE, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("Mistral", SIZE, {"sliding_window": None, "num_key_value_heads": 2}),
    "mistral, odd": ("Mistral", ODD, {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SIZE, {"num_key_value_heads": 2}),
    "qwen2, odd": ("Qwen2", NO_HEAD_DIM, {"tie_word_embeddings": True}),
    "mistral, window": ("Mistral", SIZE, {"sliding_window": 5, "num_key_value_heads": 2}),
    "qwen2, window": ("Qwen2", {**NO_HEAD_DIM, "num_hidden_layers": 4}, {
        "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "qwen2, yarn": ("Qwen2", SIZE, {"rope_parameters": YARN, "num_key_value_heads": 2}),
    "llama, yarn": ("Llama", SIZE, {"rope_parameters": {**YARN, "attention_factor": 1.1, "beta_fast": 8.0,
                                                         "beta_slow": 2.0, "truncate": False}}),
    "mixtral": ("Mixtral", {**SIZE, "num_key_value_heads": 2}, {"num_local_experts": 4}),
    "mixtral, odd": ("Mixtral", {**ODD, "intermediate_size": 100}, {
        "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 6, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZE, "head_dim": 16}, {"num_key_value_heads": 2}),
    "qwen3, odd": ("Qwen3", ODD, {"attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True,
                                  "sliding_window": 4, "layer_types": WINDOW}),
    "gemma": ("Gemma", {**SIZE, "head_dim": 16, "num_key_value_heads": 1}, {}),
    "gemma, odd": ("Gemma", ODD, {"attention_bias": True, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2", {**SIZE, "head_dim": 32, "num_key_value_heads": 2}, {"sliding_window": 6}),
    "gemma2, odd": ("Gemma2", ODD, {
        "sliding_window": 4, "layer_types": WINDOW[:2] * 2, "num_hidden_layers": 4, "query_pre_attn_scalar": 23,
        "attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5, "attention_bias": True,
        "tie_word_embeddings": False}),
    "gemma2, no caps": ("Gemma2", {**SIZE, "head_dim": 16, "num_key_value_heads": 4}, {
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 2}),
    "gemma3": ("Gemma3Text", {**SIZE, "head_dim": 16, "num_key_value_heads": 2, "num_hidden_layers": 7},
               {"sliding_window": 6, "query_pre_attn_scalar": 16}),
    "gemma3, odd": ("Gemma3Text", ODD, {
        "sliding_window": 3, "layer_types": WINDOW, "query_pre_attn_scalar": 20, "final_logit_softcapping": 2.0,
        "attention_bias": True, "tie_word_embeddings": False, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
    "gpt2": ("GPT2", GPT2, {}),
    "gpt2, odd": ("GPT2", {**GPT2, "n_embd": 42, "n_head": 3}, {"n_inner": 55, "activation_function": "relu",
                                                                "tie_word_embeddings": False}),
    "opt": ("OPT", OPT, {}),
    "opt, odd": ("OPT", {**OPT, "hidden_size": 42, "word_embed_proj_dim": 42, "num_attention_heads": 3},
                 {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"}),
    "bloom": ("Bloom", BLOOM, {}),
    "bloom, odd": ("Bloom", {**BLOOM, "hidden_size": 60, "n_head": 6}, {"tie_word_embeddings": False, "n_layer": 3}),
    "persimmon": ("Persimmon", SIZE, {}),
    "persimmon, odd": ("Persimmon", {**SIZE, "hidden_size": 60, "num_attention_heads": 6, "num_hidden_layers": 3}, {
        "qk_layernorm": False, "hidden_act": "gelu", "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 0.4}}),
}  # fmt: skip
TEXTS = ("a cat", "Two birds sit on a wire, and one of them sings.", "é")


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    name, size, changes = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    size = {key: value for key, value in size.items() if name != "OPT" or key != "intermediate_size"}
    config = getattr(transformers, f"{name}Config")(**{**size, **changes})
    classes = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    reference = saved(getattr(transformers, classes.get(name, f"{name}ForCausalLM")), config, folder)
    return folder, reference, sensorium.load(folder, precision="fp32")


@pytest.mark.parametrize("text", TEXTS)
def test_logits_are_the_references(both, text):
    folder, reference, model = both
    ids, logits = model.engine.logits(Sample((Segment("text", text),)), generate=True)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert ids.tolist() == theirs
    with torch.no_grad():
        expected = reference(torch.tensor([theirs])).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_greedy_text_is_the_references(both):
    folder, reference, model = both
    messages = [{"role": "user", "content": "Say something."}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = reference.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = model.chat(messages, max_tokens=20)
    assert answer == theirs.decode(said, skip_special_tokens=True)


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, _ = both
    written = tmp_path / "written"
    opened = open_published(folder)
    write_published(written, opened.family, opened.model, opened.tokenizer, opened.template, opened.files)
    before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(written)
    assert type(again) is type(reference)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.tensor([[256, *b"a cat"]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, reference(ids).logits, rtol=0, atol=0)


def test_a_model_that_never_was_published_is_written_from_its_value_alone(both, tmp_path):
    folder, reference, _ = both
    opened = open_published(folder)
    written = tmp_path / "written"
    write_published(written, family_named(opened.family.name), opened.model, opened.tokenizer, opened.template)
    again = transformers.AutoModelForCausalLM.from_pretrained(written)
    ids = torch.tensor([[256, *b"two birds"]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, reference(ids).logits, rtol=0, atol=0)


def test_shards_are_read_as_one_file_is(both, tmp_path):
    _, reference, model = both
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = open_published(tmp_path, torch.float32).model.state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in model.network.state_dict().items())


def test_a_file_of_the_stack_alone_leaves_out_what_its_names_begin_with(tmp_path):
    reference = saved(transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2), tmp_path / "whole")
    reference.transformer.save_pretrained(tmp_path / "stack")
    tokenizer().save_pretrained(tmp_path / "stack")
    assert "wte.weight" in load_file(tmp_path / "stack/model.safetensors")
    whole = sensorium.load(tmp_path / "whole", "fp32").network.state_dict()
    alone = sensorium.load(tmp_path / "stack", "fp32").network.state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in alone.items())
    assert whole.keys() == alone.keys()


def test_a_large_model_is_written_in_shards_that_both_sides_read(tmp_path):
    tensors = {f"part.{number}.weight": torch.randn(number + 1, 100) for number in range(5)}
    write(tmp_path, iter(tensors.items()), shard_bytes=1300)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [*(f"model-{at:05d}-of-00004.safetensors" for at in range(1, 5)), "model.safetensors.index.json"]
    with Stored(tmp_path) as stored:
        assert stored.where.keys() == tensors.keys()
        assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())
