"""Published folders that are damaged, contradict themselves or ask for code: one clear error, and nothing is loaded."""

import json
import shutil
import struct

import pytest
import torch
import transformers
from published import saved
from test_published import SIZE

import sensorium
from sensorium.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    saved(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZE), folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        sensorium.load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


def shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[0]


def test_the_folder_is_whole_before_it_is_broken(folder):
    assert "Model('llama'" in repr(sensorium.load(folder))


def test_a_file_that_was_cut_short(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, path.name, "not a whole safetensors file")


def test_a_shard_that_is_missing(folder):
    path = shard(folder)
    path.unlink()
    refused(folder, path.name, "not there")


@pytest.mark.parametrize("header", [
    struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 4) + b"{{{{", struct.pack("<Q", 0),
    struct.pack("<Q", 71) + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}'[:71],
], ids=["endless", "no JSON", "empty", "a tensor beyond the end"])  # fmt: skip
def test_a_hostile_header(folder, header):
    shard(folder).write_bytes(header)
    refused(folder, shard(folder).name, "not a whole safetensors file")


def test_an_index_that_leaves_the_folder(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    refused(folder, "../secret.safetensors", "own folder")


def test_an_index_of_another_version(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = shard(folder).name
    path.write_text(json.dumps(index))
    refused(folder, "model.extra.weight", "different versions")


def test_a_field_that_nobody_knows(folder):
    changed(folder, attention_temper=3)
    refused(folder, "attention_temper", "unknown field")


def test_a_field_of_the_wrong_kind_and_one_that_is_missing(folder):
    changed(folder, hidden_size="64")
    refused(folder, "hidden_size", "expected int")
    changed(folder, hidden_size=None)
    refused(folder, "hidden_size", "needs one")


def test_what_cannot_be_said_here(folder):
    changed(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    refused(folder, "rope_type", "dynamic")


def test_a_config_that_contradicts_the_files(folder):
    changed(folder, intermediate_size=95)
    refused(folder, "(96, 64)", "(95, 64)")
    changed(folder, intermediate_size=96, num_hidden_layers=3)
    refused(folder, "missing: 9", "model.layers.2")
    changed(folder, num_hidden_layers=1)
    refused(folder, "unexpected: 9", "model.layers.1")


def test_a_head_that_is_said_to_be_the_embedding_and_is_not(folder):
    changed(folder, tie_word_embeddings=True)
    refused(folder, "lm_head.weight", "differ")


def test_a_tokenizer_of_another_model(folder):
    changed(folder, vocab_size=100)
    refused(folder, "tokenizer", "vocabulary of 100")


def test_pickle_is_never_opened(folder):
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"model.norm.weight": torch.ones(64)}, folder / "pytorch_model.bin")
    refused(folder, "pickle", "pytorch_model.bin")


def test_code_of_its_own_is_never_run(folder):
    changed(folder, auto_map={"AutoModel": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('it ran')")
    refused(folder, "code of its own", "modeling_mine.Mine")


def test_a_family_that_is_not_known(folder):
    changed(folder, model_type="lama")
    refused(folder, "'lama'", "did you mean 'llama'?")


def test_no_weights_and_no_json(folder):
    for path in folder.glob("model*"):
        path.unlink()
    refused(folder, "no weights")
    (folder / "config.json").write_text("{")
    refused(folder, "not JSON")
