"""`sensorium convert`: a published folder, a run, and what no layout says."""

import json

import pytest
import torch
import transformers
from multimodal import conversation, pictures
from published import saved
from test_published import SIZE

import sensorium
from sensorium.api import messages_to_sample
from sensorium.cli import main
from sensorium.recipes.catalog import find
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import build_model
from sensorium.train.checkpoint import save_checkpoint


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(map(str, arguments)))
    return int(done.value.code or 0)


def test_a_published_folder_is_written_again_with_all_that_its_config_said(tmp_path, capsys):
    config = transformers.LlamaConfig(**SIZE, max_position_embeddings=77)
    reference = saved(transformers.LlamaForCausalLM, config, tmp_path / "model")
    assert run("convert", tmp_path / "model", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llama"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.max_position_embeddings == 77
    ids = torch.tensor([[256, 65, 66]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, reference(ids).logits)
    assert run("convert", tmp_path / "model", tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err
    assert run("convert", tmp_path / "model", tmp_path / "other", "--to", "hff") == 2
    assert "did you mean 'hf'?" in capsys.readouterr().err
    assert run("convert", tmp_path / "model", tmp_path / "other", "--family", "mistral") == 0
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "other")).__name__ == "MistralForCausalLM"


def test_what_no_layout_says_is_refused_with_the_reasons(tmp_path, capsys):
    recipe = find("clip", "tiny")
    state = dict.fromkeys(("stage", "wiring", "stage_step", "position", "step"), 0)
    state |= {"finished": True, "results": [], "phases": {}, "adapters": []}
    save_checkpoint(tmp_path, 1, recipe, build_model(recipe), Tokenizer.bytes(), state)
    assert run("convert", tmp_path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "of other kinds of models: llama" in said
    assert not (tmp_path / "out").exists()


def test_a_language_model_alone_answers_from_embeddings_of_pictures(tmp_path, capsys):
    """Where no layout has a model's eyes, its language model has one, and reads what they give it."""
    recipe = find("llava", "tiny")
    state = dict.fromkeys(("stage", "wiring", "stage_step", "position", "step"), 0)
    state |= {"finished": True, "results": [], "phases": {}, "adapters": []}
    save_checkpoint(tmp_path / "run", 1, recipe, build_model(recipe), Tokenizer.bytes(), state)
    assert run("convert", tmp_path / "run", tmp_path / "out") == 2
    assert "--language" in capsys.readouterr().err
    assert run("convert", tmp_path / "run", tmp_path / "out", "--language") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = sensorium.load(tmp_path / "run", "fp32")
    messages = conversation("What is this?", pictures()[0])
    sequence = ours.engine.renderer.render(messages_to_sample(messages), generate=True)
    with torch.no_grad():
        stream, _, _ = ours.network.stream(sequence)
        logits = theirs(inputs_embeds=stream[None]).logits[0]
    torch.testing.assert_close(ours.logits(messages)[1], logits, rtol=0, atol=2e-4)


def test_a_published_encoder_is_shown_and_has_nothing_to_train(tmp_path, capsys):
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                                    image_size=32, patch_size=8)  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    assert run("show", tmp_path / "vit", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["stages"] == []
    assert "encoders.image" in json.dumps(described)
    assert run("show", tmp_path / "vit") == 0
    assert "ViT: 32 px" in capsys.readouterr().out
    assert run("train", tmp_path / "vit", "--out", tmp_path / "out") == 2
    assert "answers nothing in words" in capsys.readouterr().err
