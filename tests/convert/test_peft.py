"""Adapters in PEFT's layout, read and written; a published checkpoint fine-tuned and handed on."""

import json

import peft
import pytest
import torch
import transformers
from multimodal import Both, conversation, pictures
from published import saved
from safetensors.torch import load_file, save_file
from test_llava import llava
from test_published import GPT2, SIZE, TEXTS

import sensorium
from sensorium.cli import main
from sensorium.convert.adapters import WEIGHTS, open_adapter, write_adapter
from sensorium.convert.published import open_published
from sensorium.errors import UserError
from sensorium.nn.lora import LoRA, LoRALinear, add_lora
from sensorium.sequence import Sample, Segment


def adapted(folder, base, **options):
    """A reference with an adapter whose matrices are both random, written by PEFT."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def command(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def logits_of(model, text):
    ids, logits = model.engine.logits(Sample((Segment("text", text),)), generate=True)
    return ids, logits


@pytest.fixture
def llama(tmp_path):
    return saved(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZE), tmp_path / "base"), tmp_path


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 7}}, {"target_modules": "all-linear"},
], ids=str)  # fmt: skip
def test_an_adapter_of_peft_gives_its_numbers(llama, options):
    base, place = llama
    reference = adapted(place / "adapter", base, **options)
    config = json.loads((place / "adapter/adapter_config.json").read_text())
    (place / "adapter/adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(place / "base")})
    )
    model = sensorium.load(place / "adapter", "fp32")
    assert any(isinstance(part, LoRALinear) for part in model.network.modules())
    for text in TEXTS:
        ids, logits = logits_of(model, text)
        with torch.no_grad():
            expected = reference(ids[None]).logits[0]
            plain = reference.base_model.model
            with reference.disable_adapter():
                without = plain(ids[None]).logits[0]
        assert (expected - without).abs().max() > 0.1
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_a_merged_adapter_is_a_model_of_transformers(llama):
    base, place = llama
    reference = adapted(place / "adapter", base)
    config = json.loads((place / "adapter/adapter_config.json").read_text())
    (place / "adapter/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    command(["convert", str(place / "adapter"), str(place / "merged"), "--to", "hf"])
    merged = transformers.AutoModelForCausalLM.from_pretrained(place / "merged")
    ids = torch.tensor([[256, *b"a cat"]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, reference(ids).logits, rtol=0, atol=2e-4)


def test_an_adapter_is_written_as_peft_reads_it(llama):
    base, place = llama
    opened = open_published(place / "base", torch.float32)
    settings = LoRA(rank=3, alpha=9.0)
    add_lora(opened.model, {"backbone.blocks.*.attention.[qo]": settings, "*.ffn.up": settings})
    for part in opened.model.modules():
        if isinstance(part, LoRALinear):
            torch.nn.init.normal_(part.lora_b, std=0.2)
    write_adapter(place / "written", opened.family, opened.model, str(place / "base"))
    theirs = peft.PeftModel.from_pretrained(base, place / "written").eval()
    ours = sensorium.load(place / "written", "fp32")
    again = open_adapter(place / "written", torch.float32).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in opened.model.state_dict().items())
    for text in TEXTS:
        ids, logits = logits_of(ours, text)
        with torch.no_grad():
            torch.testing.assert_close(logits, theirs(ids[None]).logits[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("change", "words"), [
    ({"use_dora": True}, ("use_dora", "False")), ({"bias": "all"}, ("bias", "'none'")),
    ({"modules_to_save": ["lm_head"]}, ("modules_to_save",)), ({"peft_type": "IA3"}, ("peft_type", "LORA")),
    ({"base_model_name_or_path": "nowhere"}, ("nowhere", "no published folder")), ({"surprise": 1}, ("surprise",)),
], ids=str)  # fmt: skip
def test_adapters_that_cannot_be_said_are_refused(llama, change, words):
    base, place = llama
    adapted(place / "adapter", base)
    path = place / "adapter/adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(place / "base"), **change})
    )
    with pytest.raises(UserError) as error:
        open_adapter(place / "adapter")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_tensors_of_no_layer_are_refused(llama):
    base, place = llama
    adapted(place / "adapter", base)
    path = place / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(place / "base")}))
    tensors = load_file(place / "adapter" / WEIGHTS)
    save_file({name.replace("layers.1", "layers.9"): one for name, one in tensors.items()}, place / "adapter" / WEIGHTS)
    with pytest.raises(UserError, match=r"layers\.9.* is of no linear layer"):
        open_adapter(place / "adapter")


def test_an_adapter_on_a_fused_layer_is_refused(tmp_path):
    saved(transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2), tmp_path / "base")
    opened = open_published(tmp_path / "base")
    add_lora(opened.model, {"*.attention.q": LoRA(rank=2)})
    with pytest.raises(UserError, match="stores as one"):
        write_adapter(tmp_path / "out", opened.family, opened.model, str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_published_model_is_fine_tuned_on_own_pictures_and_handed_on(tmp_path, monkeypatch):
    """Open, fine-tune with LoRA, evaluate, export: the adapter alone, and the whole model."""
    both = Both.make(tmp_path / "base", *llava())
    shown = tmp_path / "data"
    shown.mkdir()
    rows = []
    for number, picture in enumerate(pictures()):
        picture.save(shown / f"{number}.png")
        asked = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "Which?"}]
        turn = {"role": "user", "content": asked}
        rows.append({"messages": [turn, {"role": "assistant", "content": "abcd"[number]}]})
    (shown / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    words = ["train", str(tmp_path / "base"), "--data", str(shown / "data.jsonl"), "--steps", "20", "--out", str(run)]
    command([*words, "--set", "stages.finetune.lr=5e-3", "--set", "stages.finetune.precision=fp32"])
    before, after = both.model.network.state_dict(), sensorium.load(run, "fp32").network.state_dict()
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert kept == list(before)  # only adapters learned
    command(["convert", str(run), str(tmp_path / "adapter"), "--to", "peft"])
    command(["convert", str(run), str(tmp_path / "whole"), "--to", "hf"])
    monkeypatch.chdir(tmp_path)  # an adapter names its model as it was asked for, here by a relative path
    command(["train", "base", "--data", str(shown / "data.jsonl"), "--steps", "2", "--out", "again"])
    command(["convert", "again", "named", "--to", "peft"])
    assert json.loads((tmp_path / "named/adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    asked = conversation("Which?", pictures()[2])
    torch.testing.assert_close(
        sensorium.load("named", "fp32").logits(asked)[1], sensorium.load("again", "fp32").logits(asked)[1],
        rtol=0, atol=0.2,
    )  # fmt: skip
    (tmp_path / "base").rename(tmp_path / "moved")
    command(["convert", "again", "without"])  # what it began with is needed no more
    assert transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "without")
    (tmp_path / "moved").rename(tmp_path / "base")
    messages = conversation("Which?", pictures()[1])
    _, tuned = sensorium.load(run, "fp32").logits(messages)
    _, original = both.model.logits(messages)
    assert (tuned - original).abs().max() > 0.01
    prompt = both.theirs(messages)
    for theirs in (
        transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole"),
        peft.PeftModel.from_pretrained(both.reference, tmp_path / "adapter"),
    ):
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()(**prompt).logits[0], tuned, rtol=0, atol=2e-3)
