"""LoRA: starts as nothing, is (alpha / rank) B A, folds into the weight."""

import pytest
import torch
from torch import nn

from sensorium.errors import UserError
from sensorium.nn.lora import LoRA, LoRALinear, add_lora, merge_lora


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(6, 5), "second": nn.Sequential(nn.Linear(5, 4, bias=False))})


def out(model, x):
    return model["second"](model["first"](x))


def test_an_adapter_starts_as_nothing_and_keeps_names(model):
    x = torch.randn(3, 6)
    before, names = out(model, x), set(model.state_dict())
    assert add_lora(model, {"*": LoRA(rank=2)}) == ["first", "second.0"]
    assert torch.equal(out(model, x), before)
    assert names < set(model.state_dict())
    assert add_lora(model, {"first": LoRA(rank=2)}) == []  # it has one already


def test_the_update_is_its_formula_and_merging_keeps_the_function(model):
    add_lora(model, {"first": LoRA(rank=2, alpha=6.0)})
    layer = model["first"]
    assert isinstance(layer, LoRALinear)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 6)
    expected = x @ (layer.weight + 3.0 * layer.lora_b @ layer.lora_a).T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    before = out(model, x)
    assert merge_lora(model) == ["first"]
    assert type(model["first"]) is nn.Linear
    torch.testing.assert_close(out(model, x), before)


def test_dropout_is_for_training_only(model):
    add_lora(model, {"first": LoRA(rank=4, dropout=0.5)})
    nn.init.normal_(model["first"].lora_b)
    x = torch.randn(3, 6)
    assert not torch.equal(model["first"](x), model["first"](x))
    model.eval()
    assert torch.equal(model["first"](x), model["first"](x))


def test_a_glob_that_matches_nothing_is_an_error(model):
    with pytest.raises(UserError, match=r"'third\.\*' matches no linear layer"):
        add_lora(model, {"third.*": LoRA()})
