"""LoRA across stages and precisions (its formula is tested in test_adapters)."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sensorium.errors import UserError
from sensorium.nn.backbone import llama
from sensorium.nn.lora import LoRA, add_lora, merge_lora


def test_the_same_adapter_again_is_kept_and_another_is_an_error():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    add_lora(model, {"a": LoRA(rank=2)})
    adapter = model["a"].lora_a
    assert add_lora(model, {"*": LoRA(rank=2)}) == ["b"]
    assert model["a"].lora_a is adapter
    with pytest.raises(UserError, match=r"rank 3, alpha 32, dropout 0.*'a'.*rank 2"):
        add_lora(model, {"a": LoRA(rank=3)})


def test_a_glob_that_fails_leaves_no_half_of_its_own():
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    with pytest.raises(UserError, match="matches no linear layer"):
        add_lora(model, {"b": LoRA(), "a": LoRA()})
    assert type(model["a"]) is nn.Linear


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": -1}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        LoRA(**wrong)


def test_adapters_take_the_dtype_and_the_weight_of_their_layer():
    layer = nn.Linear(4, 3, dtype=torch.bfloat16)
    weight, bias = layer.weight, layer.bias
    model = nn.ModuleDict({"a": layer})
    add_lora(model, {"a": LoRA(rank=2)})
    assert model["a"].weight is weight
    assert model["a"].bias is bias
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    before = set(model.state_dict())
    merge_lora(model)
    assert before - set(model.state_dict()) == {"a.lora_a", "a.lora_b"}
    assert model["a"].weight.dtype == torch.bfloat16


def test_merged_is_the_unmerged_backbone():
    torch.manual_seed(0)
    backbone = llama(vocab=20, width=16, depth=2, heads=2, hidden=32, tied=True).build()
    add_lora(backbone, {"blocks.*.attention.*": LoRA(rank=4), "blocks.*.ffn.*": LoRA(rank=2, alpha=4)})
    for name, parameter in backbone.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.1)
    from sensorium.mask import Layout

    x = torch.randn(6, 16)
    position = torch.arange(6)[:, None].expand(-1, 3)
    layout = Layout(torch.arange(6)[None], None, None, True, position, lengths=[6])
    before = backbone(x, layout)
    assert len(merge_lora(backbone)) == 2 * 7
    torch.testing.assert_close(backbone(x, layout), before, rtol=1e-5, atol=1e-6)
