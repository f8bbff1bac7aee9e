"""Models whose language stack is codes: what is replaced, what is freed, what they say, and what is refused."""

import weakref

import pytest
import torch
from tiny_denoiser import config as denoiser_config
from tiny_fused import ask, config, make, renderer_of, strong
from torch import nn

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import write_published
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.kernels.quantize import QuantEmbedding, QuantLinear, QuantWeight, quantised
from sensorium.infer.kernels.quantize import quantize as quantise
from sensorium.infer.sampling import Sampling
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import llama
from sensorium.nn.lora import LoRA, add_lora
from sensorium.nn.moe import MixtureOfExperts
from sensorium.sequence import Sample
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer


def stack(**changes):
    return llama(
        **{"vocab": 259, "width": 64, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 96, "tied": True, **changes}
    )


def dequantised(model):
    """The same model with the weights that its codes stand for."""
    plain = model.config.build().eval()
    backbone, codes = plain.backbone, dict(model.backbone.named_modules())
    with torch.no_grad():
        for name, part in backbone.named_modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                part.weight.copy_(codes[name].weight.values())
            elif getattr(part, "weight", None) is not None:
                part.weight.copy_(codes[name].weight)
    plain.encoders, plain.connectors = model.encoders, model.connectors
    return plain


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_says_what_its_weights_say(kind, tied):
    model = make(backbone=stack(tied=tied))
    eye, joint = model.encoders["image"], model.connectors["image"]
    report = quantise(model, kind)
    assert quantised(model) == kind
    assert model.encoders["image"] is eye
    assert not quantised(eye)
    assert not quantised(joint)
    assert len(report.layers) == 14 + 1 + (not tied)
    assert {"backbone.embed", "backbone.blocks.0.attention.q", "backbone.blocks.1.ffn.down"} <= set(report.layers)
    assert report.after < report.before * (0.28 if kind == "int8" else 0.24)  # of float32; head and embedding in 8 bits
    assert report.rest == sum(one.nbytes for one in model.parameters())
    engines = [Engine(one, renderer_of(one)) for one in (model, dequantised(model))]
    sample = Sample(ask("What is it?", 1))
    found, exact = (engine.logits(sample)[1] for engine in engines)
    assert float((found - exact).norm() / exact.norm()) < 1e-3
    found, exact = (engine.generate([sample, Sample(ask("And?"))], Sampling(max_tokens=6)) for engine in engines)
    assert found == exact


def test_a_tied_head_reads_the_codes_of_the_embedding():
    model = make(backbone=stack())
    quantise(model, "int4")
    backbone = model.backbone
    assert isinstance(backbone.embed, QuantEmbedding)
    assert isinstance(backbone.head, QuantLinear)
    assert backbone.head.weight is backbone.embed.weight
    assert backbone.head.weight.kind == "int8"
    assert backbone.blocks[0].ffn.up.weight.kind == "int4"
    hidden = torch.randn(3, 64)
    torch.testing.assert_close(backbone.logits(hidden), hidden @ backbone.embed.weight.values().T, rtol=1e-3, atol=1e-3)
    moved = model.to("cpu")
    assert moved.backbone.head.weight.codes is moved.backbone.embed.weight.codes


def test_the_type_of_computation_stays():
    model = make(backbone=stack()).to(torch.bfloat16)
    quantise(model, "int8")
    assert model.reference().dtype == torch.bfloat16
    assert model.embed(torch.tensor([1, 2])).dtype == torch.bfloat16
    assert model.backbone.blocks[0].ffn(torch.ones(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_originals_are_freed_one_by_one(monkeypatch):
    model = make(backbone=stack())
    alive = [
        weakref.ref(part.weight) for part in model.backbone.modules() if isinstance(part, nn.Linear | nn.Embedding)
    ]
    counts = []
    plain = QuantWeight.__init__

    def counted(self, weight, kind):
        counts.append(sum(one() is not None for one in alive))
        plain(self, weight, kind)

    monkeypatch.setattr(QuantWeight, "__init__", counted)
    quantise(model, "int8")
    assert counts == list(range(15, 0, -1))
    assert not any(one() is not None for one in alive)


def test_biases_stay_and_routers_too():
    block = stack().block
    experts = MixtureOfExperts.Config(hidden=64, experts=3, top=2)
    attention = block.attention.replace(bias=True)
    model = make(backbone=stack().replace(block=block.replace(ffn=experts, attention=attention)))
    bias = model.backbone.blocks[0].attention.q.bias
    report = quantise(model, "int4")
    assert model.backbone.blocks[0].attention.q.bias is bias
    assert report.kept == {f"backbone.blocks.{index}.ffn.router": "it chooses experts" for index in range(2)}
    assert isinstance(model.backbone.blocks[0].ffn.router, nn.Linear)
    assert isinstance(model.backbone.blocks[0].ffn.experts[2].up, QuantLinear)
    assert "it chooses experts" in report.summary()
    assert Engine(model, renderer_of(model)).generate([Sample(ask("Hi"))], Sampling(max_tokens=2))


def test_adapters_are_merged_first():
    model = make(backbone=stack())
    add_lora(model, {"backbone.blocks.0.attention.q": LoRA(rank=2)})
    layer = model.backbone.blocks[0].attention.q
    nn.init.normal_(layer.lora_b)
    merged = layer.merged().detach()
    quantise(model, "int8")
    found = model.backbone.blocks[0].attention.q.weight.values()
    assert float((found - merged).norm() / merged.norm()) < 0.01


# ---- what is refused


def test_kinds_and_models_that_cannot_be_quantised():
    model = make(backbone=stack())
    with pytest.raises(UserError, match="'int3': did you mean 'int"):
        quantise(model, "int3")
    quantise(model, "int8")
    with pytest.raises(UserError, match="int8 already"):
        quantise(model, "int4")
    with pytest.raises(UserError, match="a denoiser has no language stack"):
        quantise(denoiser_config().build(), "int8")
    with pytest.raises(UserError, match="reads no text"):
        quantise(Wiring.Config(encoders={"image": config().encoders["image"]}).build(), "int8")


def test_a_quantised_model_is_not_saved(tmp_path):
    model = strong(config(encoders={}, connectors={}, backbone=stack()))
    quantise(model, "int8")
    with pytest.raises(UserError, match="for inference: save or convert"):
        model.state_dict()
    with pytest.raises(UserError, match="for inference: save or convert"):
        write_published(tmp_path / "out", family_named("llama"), model, Tokenizer.bytes(), Template())
    assert not (tmp_path / "out").exists()


def test_loading_says_what_was_quantised(tmp_path, capsys):
    model = strong(config(encoders={}, connectors={}, backbone=stack(tied=False)))
    write_published(tmp_path / "out", family_named("llama"), model, Tokenizer.bytes(), Template())
    with pytest.raises(UserError, match="int8"):
        sensorium.load(tmp_path / "out", quantize="int7")  # type: ignore[arg-type]
    loaded = sensorium.load(tmp_path / "out", quantize="int8", precision="fp32")
    assert "int8: 16 linear layers and embeddings" in capsys.readouterr().err
    assert repr(loaded).endswith("0.1 M parameters, int8)")
    assert len(loaded.generate(["Once"], max_tokens=3)) == 1
