"""The Q-Former: who sees whom under its three rules, and the same numbers as its reference."""

import re

import pytest
import torch

from sensorium.connectors.qformer import QFormer
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid

IN, OUT, QUERIES = 6, 10, 3
BERT = {"vocab": 40, "width": 16, "depth": 3, "heads": 4, "hidden": 24, "positions": 12}


def make(instructed=False):
    connector = QFormer.Config(queries=QUERIES, instructed=instructed, **BERT).build(IN, OUT)
    return strong(connector)


def strong(module):
    """Initial weights are too small to tell a wrong model from a right one."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.3)
    return module.eval()


def pictures(*cells, seed=0):
    grids = [Grid(1, count) for count in cells]
    values = torch.randn(sum(cells), IN, generator=torch.Generator().manual_seed(seed))
    return Features(values, grids)


def words(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 40, (length,), generator=generator) for length in lengths]


def names(layers, every, prefix=""):
    """Our parameter -> the reference's."""
    table = {}
    for leaf in ("weight", "bias"):
        table[f"stack.embed_norm.{leaf}"] = f"{prefix}layernorm.{leaf}"
        for layer in range(layers):
            mine, other = f"stack.blocks.{layer}", f"encoder.layer.{layer}"
            pairs = [("attention", "norm1", "attention")]
            if layer % every == 0:
                pairs.append(("cross.attention", "cross.norm", "crossattention"))
            for ours, norm, theirs in pairs:
                for x, name in (("q", "query"), ("k", "key"), ("v", "value")):
                    table[f"{mine}.{ours}.{x}.{leaf}"] = f"{other}.{theirs}.attention.{name}.{leaf}"
                table[f"{mine}.{ours}.o.{leaf}"] = f"{other}.{theirs}.output.dense.{leaf}"
                table[f"{mine}.{norm}.{leaf}"] = f"{other}.{theirs}.output.LayerNorm.{leaf}"
            for ours, ending in ((mine, ""), (f"{mine}.routes.1", "_query")):
                table[f"{ours}.ffn.up.{leaf}"] = f"{other}.intermediate{ending}.dense.{leaf}"
                table[f"{ours}.ffn.down.{leaf}"] = f"{other}.output{ending}.dense.{leaf}"
                table[f"{ours}.norm2.{leaf}"] = f"{other}.output{ending}.LayerNorm.{leaf}"
    return table


def reference_config():
    return {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 12, "encoder_hidden_size": IN, "cross_attention_frequency": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager",
    }  # fmt: skip


def fill(model, state, table, embeddings):
    tensors = {mine: state[name] for mine, name in table.items()}
    tensors["stack.embed.weight"] = embeddings["word_embeddings.weight"]
    tensors["stack.place.weight"] = embeddings["position_embeddings.weight"]
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert set(missing) == {"queries", "out.weight", "out.bias"}


@torch.no_grad()
def test_the_q_former_of_blip_2():
    transformers = pytest.importorskip("transformers")
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

    config = transformers.Blip2QFormerConfig(**reference_config(), use_qformer_text_input=True)
    theirs, embeddings = strong(Blip2QFormerModel(config)), strong(Blip2TextEmbeddings(config))
    ours = make()
    fill(ours, theirs.state_dict(), names(3, 2), embeddings.state_dict())
    features, texts = pictures(5, 2, 7), words(4, 1, 6)
    alone, none = ours.read(features)
    assert none.shape == (0, 16)
    both, told = ours.read(features, texts)
    _, text = ours.read(None, texts)
    told, text = told.split([4, 1, 6]), text.split([4, 1, 6])
    for item, values in enumerate(features.values.split(features.lengths)):
        seen = {"encoder_hidden_states": values[None], "encoder_attention_mask": torch.ones(1, len(values))}
        place = slice(item * QUERIES, (item + 1) * QUERIES)
        expected = theirs(query_embeds=ours.queries[None], **seen).last_hidden_state[0]
        torch.testing.assert_close(alone[place], expected, atol=1e-4, rtol=1e-4)
        embeds = embeddings(input_ids=texts[item][None], query_embeds=ours.queries[None])
        expected = theirs(query_embeds=embeds, query_length=QUERIES, **seen).last_hidden_state[0]
        torch.testing.assert_close(both[place], expected[:QUERIES], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(told[item], expected[QUERIES:], atol=1e-4, rtol=1e-4)
        expected = theirs(query_embeds=embeddings(input_ids=texts[item][None]), query_length=0).last_hidden_state[0]
        torch.testing.assert_close(text[item], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_q_former_of_instructblip():
    transformers = pytest.importorskip("transformers")
    from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

    theirs = strong(InstructBlipQFormerModel(transformers.InstructBlipQFormerConfig(**reference_config())))
    ours = make(instructed=True)
    state = theirs.state_dict()
    embeddings = {name.removeprefix("embeddings."): value for name, value in state.items() if "embeddings." in name}
    fill(ours, state, names(3, 2, "embeddings."), embeddings)
    features, texts = pictures(5, 2, 7), words(4, 1, 6)
    features.texts = [*texts]
    tokens = ours(features)
    for item, values in enumerate(features.values.split(features.lengths)):
        expected = theirs(
            input_ids=texts[item][None], query_embeds=ours.queries[None], encoder_hidden_states=values[None],
            encoder_attention_mask=torch.ones(1, len(values)), attention_mask=torch.ones(1, QUERIES + len(texts[item])),
        ).last_hidden_state[0, :QUERIES]  # fmt: skip
        place = slice(item * QUERIES, (item + 1) * QUERIES)
        torch.testing.assert_close(tokens[place], ours.out(expected), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "prefix"])
def test_packing_changes_nothing(kind):
    model, features, texts = make(), pictures(5, 2, 7), words(4, 1, 6)
    queries, told = model.read(features, texts, kind)
    parts = zip(features.values.split(features.lengths), features.grids, texts)
    apart = [model.read(Features(values, [grid]), [text], kind) for values, grid, text in parts]
    torch.testing.assert_close(queries, torch.cat([one[0] for one in apart]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told, torch.cat([one[1] for one in apart]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_language_modelling_words_see_the_queries_and_earlier_words_and_queries_see_no_word():
    model, features, texts = make(), pictures(5), words(6)
    queries, told = model.read(features, texts, "prefix")
    torch.testing.assert_close(queries, model.read(features)[0], atol=1e-6, rtol=1e-6)
    for place in range(6):
        changed = texts[0].clone()
        changed[place] = (changed[place] + 1) % 40
        again, other = model.read(features, [changed], "prefix")
        assert torch.equal(again, queries)
        assert torch.equal(other[:place], told[:place])
        assert (other[place:] != told[place:]).any(1).all()
    _, other = model.read(pictures(5, seed=1), texts, "prefix")
    assert (other != told).any(1).all()


@torch.no_grad()
def test_in_matching_all_see_all():
    model, features, texts = make(), pictures(5), words(6)
    queries, told = model.read(features, texts)
    changed = texts[0].clone()
    changed[5] = (changed[5] + 1) % 40
    again, other = model.read(features, [changed])
    assert (again != queries).any(1).all()
    assert (other != told).any(1).all()


@torch.no_grad()
def test_words_do_not_read_the_picture_themselves():
    """They hear of it from the queries alone, a block later."""
    shallow = strong(QFormer.Config(queries=QUERIES, **{**BERT, "depth": 1}).build(IN, OUT))
    texts = words(6)
    (one, told), (two, other) = (shallow.read(pictures(5, seed=seed), texts) for seed in (0, 1))
    assert (one != two).any(1).all()
    assert torch.equal(told, other)


@torch.no_grad()
def test_the_tokens_of_a_picture_change_with_the_instruction_only_where_they_should():
    features = pictures(5, 5)
    features.texts = words(4, 4)
    told, deaf = make(instructed=True), make()
    before, unheard = told(features), deaf(features)
    features.texts = [features.texts[0], words(4, seed=5)[0]]
    after = told(features)
    assert torch.equal(before[:QUERIES], after[:QUERIES])
    assert (before[QUERIES:] != after[QUERIES:]).any(1).all()
    assert torch.equal(deaf(features), unheard)


def test_the_feed_forwards_of_the_queries_start_as_those_of_the_text():
    stack = QFormer.Config(queries=QUERIES, **BERT).build(IN, OUT).stack
    for block in stack.blocks:
        assert torch.equal(block.routes["1"]["ffn"].up.weight, block.ffn.up.weight)


def test_published_size():
    with torch.device("meta"):
        model = QFormer.Config().build(1408, 2560)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == pytest.approx(188e6, rel=0.02)
    assert sum(size for name, size in sizes.items() if ".cross." in name) == 20_081_664
    assert sum(size for name, size in sizes.items() if ".routes.1." in name) == 56_687_616
    assert sum(".cross.attention.q.weight" in name for name in sizes) == 6


def test_what_it_cannot_read_is_said():
    with pytest.raises(UserError, match="13 tokens stands beside the queries, the Q-Former has 12"):
        make().read(pictures(5), words(13))
    with pytest.raises(ValueError, match="2 items and 1 texts"):
        make().read(pictures(5, 2), words(3))
    with pytest.raises(ValueError, match="neither"):
        make().read(None)


@torch.no_grad()
@pytest.mark.parametrize("text_ffn", [True, False])
def test_without_a_vocabulary_the_queries_do_what_they_did_before(text_ffn):
    whole, sizes = make(), {**BERT, "vocab": 0}
    bare = QFormer.Config(queries=QUERIES, text_ffn=text_ffn, **sizes).build(IN, OUT).eval()
    moved = {
        name if text_ffn else name.replace("routes.1.", ""): tensor for name, tensor in whole.state_dict().items()
        if text_ffn or not re.search(r"blocks\.\d+\.(ffn|norm2)", name)
    }  # fmt: skip
    bare.load_state_dict(
        {name: tensor for name, tensor in moved.items() if not re.search(r"stack\.(embed|place)\.", name)}
    )
    assert torch.equal(bare(pictures(5, 2)), whole(pictures(5, 2)))
    assert bare(Features(torch.zeros(0, IN), [])).shape == (0, OUT)
    with pytest.raises(UserError, match="this Q-Former reads no words"):
        bare.read(pictures(5), words(3))


def test_words_need_what_reads_them():
    with pytest.raises(ValueError, match="need a vocabulary"):
        QFormer.Config(vocab=0, instructed=True)
    with pytest.raises(ValueError, match="feed-forwards of their own"):
        QFormer.Config(text_ffn=False)


@torch.no_grad()
def test_activation_and_epsilon_are_the_stacks():
    for change in ({"activation": "relu"}, {"eps": 1.0}):
        other = QFormer.Config(queries=QUERIES, **BERT, **change).build(IN, OUT)
        other.load_state_dict(make().state_dict())
        assert (other(pictures(5)) - make()(pictures(5))).abs().max() > 1e-3
