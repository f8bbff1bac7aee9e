"""The same random weights give the same numbers in transformers, the reference."""

import pytest
import torch
from t5_names import t5_names

from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.backbone import bert, llama, opt, t5
from sensorium.nn.relative import RelativeBias
from sensorium.sequence import Sequence, Span

pytestmark = pytest.mark.slow


def documents(lengths, vocab):
    torch.manual_seed(0)
    place = torch.cat([torch.arange(length) for length in lengths])
    count = sum(lengths)
    zeros = torch.zeros(count, dtype=torch.long)
    return Sequence(
        ids=torch.randint(0, vocab, (count,)),
        modality=zeros.to(torch.uint8),
        position=place[:, None].expand(-1, 3).contiguous(),
        doc=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        branch=zeros,
        weight=torch.zeros(count),
    )


def strong(module):
    """Initial weights are too small to tell a wrong model from a right one."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.3)
    return module.eval()


def copy(ours, theirs, names):
    state = theirs.state_dict()
    ours.load_state_dict({mine: state[name] for mine, name in names.items()})
    return ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_llama(tied, kv_heads):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, rope_theta=500.0, rms_norm_eps=1e-6, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, attn_implementation="eager",
    )  # fmt: skip
    theirs = strong(transformers.LlamaForCausalLM(config))
    ours = llama(vocab=60, width=32, depth=2, heads=4, kv_heads=kv_heads, hidden=48, theta=500.0, eps=1e-6, tied=tied)
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not tied:
        names["head.weight"] = "lm_head.weight"
    for layer in range(2):
        mine, other = f"blocks.{layer}", f"model.layers.{layer}"
        names |= {f"{mine}.attention.{x}.weight": f"{other}.self_attn.{x}_proj.weight" for x in "qkvo"}
        names |= {f"{mine}.ffn.{x}.weight": f"{other}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        names[f"{mine}.norm1.weight"] = f"{other}.input_layernorm.weight"
        names[f"{mine}.norm2.weight"] = f"{other}.post_attention_layernorm.weight"
    model = copy(ours.build(), theirs, names)
    sequence = documents([7, 3, 11], 60)
    logits = model.logits(model(model.embed_tokens(sequence.ids), compile_layout(sequence)))
    expected = torch.cat([theirs(part.ids[None]).logits[0] for part in sequence.unpack()])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    theirs = strong(transformers.BertModel(config, add_pooling_layer=False))
    # our BERT has no second sentence: its type embedding is part of every position
    names = {"embed.weight": "embeddings.word_embeddings.weight"}
    for leaf in ("weight", "bias"):
        names[f"embed_norm.{leaf}"] = f"embeddings.LayerNorm.{leaf}"
        for layer in range(2):
            mine, other = f"blocks.{layer}", f"encoder.layer.{layer}"
            names |= {
                f"{mine}.attention.{x}.{leaf}": f"{other}.attention.self.{name}.{leaf}"
                for x, name in (("q", "query"), ("k", "key"), ("v", "value"))
            }
            names[f"{mine}.attention.o.{leaf}"] = f"{other}.attention.output.dense.{leaf}"
            names[f"{mine}.norm1.{leaf}"] = f"{other}.attention.output.LayerNorm.{leaf}"
            names[f"{mine}.ffn.up.{leaf}"] = f"{other}.intermediate.dense.{leaf}"
            names[f"{mine}.ffn.down.{leaf}"] = f"{other}.output.dense.{leaf}"
            names[f"{mine}.norm2.{leaf}"] = f"{other}.output.LayerNorm.{leaf}"
    state = theirs.state_dict()
    place = state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0]
    model = bert(vocab=60, width=32, depth=2, heads=4, hidden=48, positions=16).build().eval()
    model.load_state_dict({mine: state[name] for mine, name in names.items()} | {"place.weight": place})
    sequence = documents([7, 3, 11], 60)
    hidden = model(model.embed_tokens(sequence.ids), compile_layout(sequence, AttentionRule("full")))
    expected = torch.cat([theirs(part.ids[None]).last_hidden_state[0] for part in sequence.unpack()])
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_opt():
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=60, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    theirs = strong(transformers.OPTForCausalLM(config))
    names = {"embed.weight": "model.decoder.embed_tokens.weight"}
    for leaf in ("weight", "bias"):
        names[f"norm.{leaf}"] = f"model.decoder.final_layer_norm.{leaf}"
        for layer in range(2):
            mine, other = f"blocks.{layer}", f"model.decoder.layers.{layer}"
            names |= {f"{mine}.attention.{x}.{leaf}": f"{other}.self_attn.{x}_proj.{leaf}" for x in "qkv"}
            names[f"{mine}.attention.o.{leaf}"] = f"{other}.self_attn.out_proj.{leaf}"
            names[f"{mine}.norm1.{leaf}"] = f"{other}.self_attn_layer_norm.{leaf}"
            names[f"{mine}.ffn.up.{leaf}"] = f"{other}.fc1.{leaf}"
            names[f"{mine}.ffn.down.{leaf}"] = f"{other}.fc2.{leaf}"
            names[f"{mine}.norm2.{leaf}"] = f"{other}.final_layer_norm.{leaf}"
    state = theirs.state_dict()
    place = state["model.decoder.embed_positions.weight"][2:]
    model = opt(vocab=60, width=32, depth=2, heads=4, hidden=48, positions=16).build().eval()
    model.load_state_dict({mine: state[name] for mine, name in names.items()} | {"place.weight": place})
    sequence = documents([7, 3, 11], 60)
    logits = model.logits(model(model.embed_tokens(sequence.ids), compile_layout(sequence)))
    expected = torch.cat([theirs(part.ids[None]).logits[0] for part in sequence.unpack()])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


def t5_reference(layers=2):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=12, dropout_rate=0.0,
        tie_word_embeddings=False, attn_implementation="eager", decoder_start_token_id=0,
    )  # fmt: skip
    theirs = strong(transformers.T5ForConditionalGeneration(config))
    theirs.shared.weight.mul_(3)
    return theirs


def t5_pair(theirs, layers=2):
    """Encoder and decoder with the weights of the reference."""
    sides = []
    for side in ("encoder", "decoder"):
        config = t5(vocab=60, width=32, depth=layers, heads=4, hidden=48, head_width=8, decoder=side == "decoder")
        relative = RelativeBias.Config(buckets=8, distance=12, both=side == "encoder")
        names = t5_names(side, layers, side)
        if side == "decoder":
            names |= {"embed.weight": "shared.weight", "head.weight": "lm_head.weight"}
        sides.append(copy(config.replace(relative=relative).build(), theirs, names))
    return sides


@torch.no_grad()
def test_t5():
    theirs = t5_reference()
    encoder, decoder = t5_pair(theirs)
    source, target = documents([19, 3, 11], 60), documents([4, 25, 9], 60)
    memory = encoder(decoder.embed_tokens(source.ids), compile_layout(source, AttentionRule("full")))
    starts = (0, 4, 29)
    target.spans = [Span("text", start, n, item, "memory") for item, (start, n) in enumerate(zip(starts, (19, 3, 11)))]
    layout = compile_layout(target, AttentionRule(memory="all"))
    logits = decoder.logits(decoder(decoder.embed_tokens(target.ids), layout, memory=memory))
    ids = [part.ids[None] for part in source.unpack()]
    told = [part.ids[None] for part in documents([4, 25, 9], 60).unpack()]
    expected = torch.cat([theirs(input_ids=a, decoder_input_ids=b).logits[0] for a, b in zip(ids, told)])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
