"""BERT, RoBERTa and DistilBERT of transformers, opened and written back: the same states and logits, the same bits."""

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
from sensorium.mask import AttentionRule
from sensorium.nn.pooler import Pooler
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import byte_symbols

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,?'",
          *(f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz"), "the", "cat", "bird", "##ing", "wire")  # fmt: skip
BYTES = sorted(byte_symbols().values())
WORDS, CODES = len(PIECES), 5 + len(BYTES)
TEXTS = ("a cat", "Two birds sit on the wire,\nand one of them sings?", "É ☃", "paris is the [MASK] of france.")
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ODD = {"hidden_size": 42, "intermediate_size": 55, "num_hidden_layers": 3, "num_attention_heads": 3,
       "hidden_act": "relu", "layer_norm_eps": 1e-5, "max_position_embeddings": 91, "type_vocab_size": 5}  # fmt: skip
BERT, ROBERTA = {**SIZE, "vocab_size": WORDS}, {**SIZE, "vocab_size": CODES, "type_vocab_size": 1}
MORE = {**ODD, "vocab_size": CODES + 3, "type_vocab_size": 2, "pad_token_id": 1}
SMALL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": WORDS}
LESS = {"dim": 42, "hidden_dim": 55, "n_layers": 3, "n_heads": 3, "vocab_size": WORDS + 7, "activation": "relu",
        "max_position_embeddings": 91, "sinusoidal_pos_embds": True}  # fmt: skip
CASES = {
    "bert": ("BertModel", BERT, {}),
    "bert, odd": ("BertModel", {**ODD, "vocab_size": WORDS + 7}, {"add_pooling_layer": False}),
    "bert, masked": ("BertForMaskedLM", BERT, {}),
    "bert, masked, odd": ("BertForMaskedLM", {**ODD, "vocab_size": WORDS + 7, "tie_word_embeddings": False}, {}),
    "bert, all": ("BertForPreTraining", BERT, {}),
    "bert, all, odd": ("BertForPreTraining", {**ODD, "vocab_size": WORDS + 7}, {}),
    "roberta": ("RobertaModel", ROBERTA, {}),
    "roberta, masked": ("RobertaForMaskedLM", ROBERTA, {}),
    "distilbert": ("DistilBertModel", SMALL, {}),
    "distilbert, masked": ("DistilBertForMaskedLM", SMALL, {}),
    "distilbert, masked, odd": ("DistilBertForMaskedLM", {**LESS, "tie_word_embeddings": False}, {}),
    "roberta, masked, odd": ("RobertaForMaskedLM", {**MORE, "tie_word_embeddings": False}, {}),
}  # fmt: skip


def saved(folder, case, seed=0):
    name, size, options = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name.partition('For')[0].removesuffix('Model')}Config")(**size)
    model = strengthened(getattr(transformers, name)(config, **options).eval())
    with torch.no_grad():
        for bias, matrix in (("cls.predictions.bias", "cls.predictions.decoder"), ("lm_head.bias", "lm_head.decoder")):
            if bias in dict(model.named_parameters()):  # where the head is its own the class holds its bias twice
                model.get_parameter(bias).copy_(model.get_parameter(f"{matrix}.bias"))
    model.save_pretrained(folder)
    if not name.startswith("Roberta"):
        words = transformers.BertTokenizer(vocab={piece: id for id, piece in enumerate(PIECES)})
    else:
        special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        words = transformers.RobertaTokenizer(vocab={one: id for id, one in enumerate((*special, *BYTES))}, merges=[])
    words.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    reference = saved(folder, request.param)
    return folder, reference, sensorium.load(folder, precision="fp32")


def document(ids):
    zeros = torch.zeros(len(ids), dtype=torch.long)
    position = torch.arange(len(ids))[:, None].expand(-1, 3)
    return Sequence(torch.tensor(ids), zeros.to(torch.uint8), position, zeros, zeros, zeros.float())


def hidden_of(reference, ids):
    stack = reference.base_model
    return stack(torch.tensor([ids])).last_hidden_state[0]


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_states_and_logits_are_the_references(both, text):
    folder, reference, model = both
    words = transformers.AutoTokenizer.from_pretrained(folder)
    plain = words(text, split_special_tokens=True).input_ids  # what a person typed becomes no special token
    sequence = model.engine.renderer.render(Sample((Segment("text", text),)))
    assert sequence.ids.tolist() == plain
    ids = words(text).input_ids  # here [MASK] is one
    outputs = model.engine.outputs([document(ids)])
    expected = hidden_of(reference, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(outputs.hidden, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(model.embed(text), hidden_of(reference, plain).mean(0), rtol=0, atol=2e-4)
    if not model.recipe.model.says:
        with pytest.raises(UserError, match="does not answer in words: use embed"):
            model.logits(text)
        return
    said = reference(torch.tensor([ids]))
    expected = said.logits[0] if hasattr(said, "logits") else said.prediction_logits[0]
    torch.testing.assert_close(outputs.logits(torch.arange(len(ids))), expected, rtol=0, atol=2e-4)
    own, logits = model.logits(text)
    said = reference(torch.tensor([plain]))
    expected = said.logits[0] if hasattr(said, "logits") else said.prediction_logits[0]
    assert own.tolist() == plain
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


@torch.no_grad()
def test_several_texts_are_embedded_as_each_alone_and_pooled_as_the_reference_does(both):
    folder, reference, model = both
    words = transformers.AutoTokenizer.from_pretrained(folder)
    together = model.embed(list(TEXTS[:3]))
    torch.testing.assert_close(together, torch.stack([model.embed(text) for text in TEXTS[:3]]), rtol=0, atol=1e-5)
    if getattr(reference.base_model, "pooler", None) is None:
        with pytest.raises(UserError, match="no pooler"):
            model.embed(TEXTS[0], pooled=True)
        return
    ids = [torch.tensor([words(text).input_ids]) for text in TEXTS[:3]]
    expected = torch.cat([reference.base_model(one).pooler_output for one in ids])
    torch.testing.assert_close(model.embed(list(TEXTS[:3]), pooled=True), expected, rtol=0, atol=2e-4)
    if hasattr(reference, "cls"):
        first = torch.cat([reference.bert(one).last_hidden_state[:, 0] for one in ids])
        expected = torch.cat([reference(one).seq_relationship_logits for one in ids])
        torch.testing.assert_close(model.network.backbone.pooler.logits(first), expected, rtol=0, atol=2e-4)


def test_it_continues_nothing(both):
    _, _, model = both
    for ask in (lambda: model.chat([{"role": "user", "content": "a"}]), lambda: model.generate(["a"])):
        with pytest.raises(UserError, match="does not answer in words: use embed"):
            ask()
    with pytest.raises(UserError, match="this model holds no conversations: it reads plain text"):
        model.embed([{"role": "user", "content": "a"}])


def test_a_text_beyond_its_positions_is_refused(both):
    _, _, model = both
    most = model.recipe.model.backbone.positions
    with pytest.raises(UserError, match=f"at most {most} are allowed"):
        model.embed("a " * most)


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, _ = both
    opened = open_published(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for name, came in (("published", opened.files), ("made here", None)):
        written = tmp_path / name
        write_published(
            written, family_named(opened.family.name), opened.model, opened.tokenizer, opened.template, came
        )
        before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
        [architecture] = json.loads((written / "config.json").read_text())["architectures"]
        assert architecture == type(reference).__name__
        options = {"add_pooling_layer": False} if getattr(reference, "pooler", 0) is None else {}
        again = type(reference).from_pretrained(written, **options)
        for tensor, value in reference.state_dict().items():
            assert torch.equal(again.state_dict()[tensor], value), tensor
        ids = torch.tensor([words(TEXTS[1]).input_ids])
        with torch.no_grad():
            torch.testing.assert_close(again(ids)[0], reference(ids)[0], rtol=0, atol=0)
        assert not (written / "generation_config.json").exists()
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path / "published")
    assert type(kept) is type(words)
    assert kept.mask_token == words.mask_token
    assert json.loads((tmp_path / "published/config.json").read_text())["pad_token_id"] == reference.config.pad_token_id


def test_files_of_old_releases_have_other_names(tmp_path):
    """Norms had gamma and beta, a table of positions was kept, and the tied head was stored a second time."""
    saved(tmp_path, "bert, all")
    new = sensorium.load(tmp_path, "fp32").network.state_dict()
    path = tmp_path / "model.safetensors"
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, tensor in load_file(path).items():
        ending = next((one for one in names if name.endswith(one)), "")
        old[name.removesuffix(ending) + names.get(ending, "")] = tensor
    assert any(name.endswith("gamma") for name in old)
    old["bert.embeddings.position_ids"] = torch.arange(512)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    rewritten(path, old)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config = {name: value for name, value in config.items() if not name.endswith("_token")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = sensorium.load(tmp_path, "fp32")
    assert all(torch.equal(new[name], tensor) for name, tensor in model.network.state_dict().items())
    assert model.engine.renderer.render(Sample((Segment("text", "a"),))).ids.tolist() == [2, 5, 3]


def test_what_no_class_holds_is_refused(tmp_path):
    saved(tmp_path, "bert, masked")
    config = sensorium.load(tmp_path).network.config
    with pytest.raises(UserError, match="every token sees all others"):
        family_named("bert").write(config.replace(rule=AttentionRule("causal")))
    with pytest.raises(UserError, match="llama holds a language model alone"):
        family_named("llama").write(config)
    pooled = config.replace(backbone=config.backbone.replace(pooler=Pooler.Config(classes=3)))
    with pytest.raises(UserError, match="no published class of Bert has a pooler with 3 classes beside a head"):
        family_named("bert").write(pooled)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "position_embedding_type": "relative_key"}))
    with pytest.raises(UserError, match="position_embedding_type is 'relative_key'"):
        sensorium.load(tmp_path)
