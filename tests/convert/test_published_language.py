"""Language models whose configs are written as their publishers wrote them, and what layouts cannot say."""

import json

import pytest
import torch
import transformers
from published import WORDS, saved

import sensorium
from sensorium.convert.language import GEMMA2, GEMMA3, LANGUAGE, LLAMA, MISTRAL, MIXTRAL, QWEN2
from sensorium.convert.settings import Settings
from sensorium.errors import UserError
from sensorium.nn.moe import MixtureOfExperts
from sensorium.sequence import Sample, Segment

IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "vocab_size": WORDS, "torch_dtype": "float32",
       "transformers_version": "4.38.0", "use_cache": True, "initializer_range": 0.02}  # fmt: skip
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}  # fmt: skip
GEMMA = {**IDS, **SHAPE, "rms_norm_eps": 1e-6, "attention_bias": False, "attention_dropout": 0.0,
         "head_dim": 16, "num_key_value_heads": 2,
         "max_position_embeddings": 8192, "rope_theta": 10000.0}  # fmt: skip
OLD = {
    "gemma 1": {**GEMMA, "model_type": "gemma", "hidden_act": "gelu", "rope_scaling": None},
    "gemma 1.1": {**GEMMA, "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh",
                  "hidden_activation": "gelu_pytorch_tanh"},
    "gemma 2": {**GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 144, "sliding_window": 9,
                "sliding_window_size": 4096},
    "gemma 2, silent": {**IDS, **SHAPE, "model_type": "gemma2", "num_attention_heads": 8},
    "gemma 3, 1B": {**GEMMA, "model_type": "gemma3_text", "attn_logit_softcapping": None, "num_hidden_layers": 7,
                    "cache_implementation": "hybrid", "final_logit_softcapping": None,
                    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_theta": 1000000,
                    "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window": 8,
                    "sliding_window_pattern": 3},
    "gemma 3, 4B": {**IDS, "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 48,
                    "num_hidden_layers": 6, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 10},
    "mistral": {**IDS, **SHAPE, "model_type": "mistral", "hidden_act": "silu", "num_key_value_heads": 2,
                "max_position_embeddings": 32768, "rope_theta": 10000.0, "sliding_window": 12},
    "mistral, silent": {**IDS, **SHAPE, "model_type": "mistral", "num_attention_heads": 8},
    "mixtral": {**IDS, **SHAPE, "model_type": "mixtral", "hidden_act": "silu", "num_key_value_heads": 2,
                "max_position_embeddings": 32768, "num_experts_per_tok": 2, "num_local_experts": 8,
                "output_router_logits": False, "rope_theta": 1e6, "router_aux_loss_coef": 0.02,
                "sliding_window": None, "attention_dropout": 0.0},
    "mixtral, silent": {**IDS, **SHAPE, "model_type": "mixtral", "num_attention_heads": 8},
    "qwen 2": {**IDS, **SHAPE, "model_type": "qwen2", "num_attention_heads": 32, "hidden_size": 64},
    "qwen 2.5": {**IDS, **SHAPE, "model_type": "qwen2", "hidden_act": "silu", "max_position_embeddings": 32768,
                 "max_window_layers": 1, "num_key_value_heads": 2, "rope_theta": 1e6, "sliding_window": 7,
                 "use_mrope": False, "use_sliding_window": False},
    "qwen 2.5, longer": {**IDS, **SHAPE, "model_type": "qwen2", "num_key_value_heads": 2, "rope_theta": 1e6,
                         "max_position_embeddings": 128, "max_window_layers": 1, "sliding_window": 7,
                         "use_sliding_window": True, "rope_scaling": {
                             "factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"}},
    "qwen 3": {**IDS, **SHAPE, "model_type": "qwen3", "attention_bias": False, "head_dim": 16, "hidden_act": "silu",
               "max_position_embeddings": 40960, "max_window_layers": 36, "num_key_value_heads": 2,
               "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False},
}  # fmt: skip
TEXT = "Two birds sit on a wire, and one of them sings."


@pytest.mark.parametrize("name", OLD)
def test_a_config_of_an_older_release_is_read_as_the_reference_reads_it(name, tmp_path):
    given = OLD[name]
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    stack = next(one for one in LANGUAGE if given["model_type"] in one.types)
    reference = saved(getattr(transformers, stack.architecture), config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(given))
    ids, logits = sensorium.load(tmp_path, "fp32").engine.logits(Sample((Segment("text", TEXT),)), generate=True)
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def config_of(stack, name, **changes):
    return stack.read(Settings({**OLD[name], **changes}))


def test_each_model_has_one_layout_that_says_it():
    """A Gemma 2 is no Llama: what its own layout writes says it, and every other names what it cannot say."""
    model = config_of(GEMMA2, "gemma 2")
    assert GEMMA2.read(Settings(GEMMA2.write(model))) == model
    with pytest.raises(UserError, match="Llama cannot say this model: its "):
        LLAMA.write(model)
    dense, mixed = config_of(MISTRAL, "mistral"), config_of(MIXTRAL, "mixtral")
    assert isinstance(mixed.block.ffn, MixtureOfExperts.Config)
    with pytest.raises(UserError, match=r"block\.ffn"):
        MISTRAL.write(mixed)
    with pytest.raises(UserError, match=r"block\.ffn"):
        MIXTRAL.write(dense)
    with pytest.raises(UserError, match=r"its local\."):
        LLAMA.write(dense)


def test_a_scale_between_whole_numbers_cannot_be_said():
    model = config_of(GEMMA2, "gemma 2")
    attention = model.block.attention.replace(scale_width=12.5)
    with pytest.raises(UserError, match=r"scale_width is 12\.5"):
        GEMMA2.write(model.replace(block=model.block.replace(attention=attention)))


@pytest.mark.parametrize(("stack", "name", "changes", "words"), [
    (GEMMA2, "gemma 2", {"layer_types": ["full_attention"]}, "expected 2 words"),
    (GEMMA2, "gemma 2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    (GEMMA2, "gemma 2", {"sliding_window": None}, "sliding_window is null"),
    (GEMMA2, "gemma 2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    (GEMMA3, "gemma 3, 1B", {"rope_parameters": {"chunked_attention": {}}}, "chunked_attention"),
    (QWEN2, "qwen 2.5", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is null"),
    (QWEN2, "qwen 2.5, longer", {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}}, "mscale is 1.0"),
    (MIXTRAL, "mixtral", {"num_experts_per_tok": 9}, "cannot take 9 of 8 experts"),
])  # fmt: skip
def test_a_config_that_contradicts_itself_or_cannot_be_said(stack, name, changes, words):
    with pytest.raises((UserError, ValueError), match=words):
        config_of(stack, name, **changes)


def test_windows_of_any_blocks_are_written_as_they_are():
    model = config_of(QWEN2, "qwen 2.5, longer", num_hidden_layers=4, layer_types=[
        "sliding_attention", "full_attention", "full_attention", "sliding_attention"])  # fmt: skip
    assert model.local.layers == (0, 3)
    said = QWEN2.write(model)
    assert (said["use_sliding_window"], said["sliding_window"], said["max_window_layers"]) == (True, 7, 0)
    assert QWEN2.read(Settings(said)) == model
    plain = QWEN2.write(model.replace(local=None))
    assert (plain["use_sliding_window"], plain["max_window_layers"]) == (False, 4)
