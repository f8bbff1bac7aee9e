"""The one Block, modulated, is diffusers' DiT block on the same weights."""

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch.testing import assert_close

from sensorium.mask import Layout
from sensorium.nn.backbone import dit
from sensorium.nn.modulation import Conditions

WIDTH, HEADS, LABELS = 48, 4, 10
NAMES = {
    "modulation.linear": "norm1.linear", "attention.q": "attn1.to_q", "attention.k": "attn1.to_k",
    "attention.v": "attn1.to_v", "attention.o": "attn1.to_out.0", "ffn.up": "ff.net.0.proj", "ffn.down": "ff.net.2",
}  # fmt: skip


def layout(count, length):
    rows = torch.arange(count * length).view(count, length)
    return Layout(rows, None, None, False, torch.zeros(count * length, 3, dtype=torch.long), lengths=[length] * count)


def test_dit_block():
    torch.manual_seed(0)
    theirs = BasicTransformerBlock(
        WIDTH, HEADS, WIDTH // HEADS, norm_type="ada_norm_zero", num_embeds_ada_norm=LABELS, attention_bias=True,
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = dit(width=WIDTH, depth=1, heads=HEADS).block.build(WIDTH).eval()
    state = theirs.state_dict()
    for mine, other in NAMES.items():
        for kind in ("weight", "bias"):
            ours.get_parameter(f"{mine}.{kind}").data.copy_(state[f"{other}.{kind}"])
    assert len(list(ours.parameters())) == 2 * len(NAMES)
    count, length = 3, 16
    x = torch.randn(count, length, WIDTH)
    time, label = torch.tensor([3, 500, 999]), torch.tensor([1, 0, 7])
    with torch.no_grad():
        wanted = theirs(x, timestep=time, class_labels=label)
        condition = theirs.norm1.emb(time, label, hidden_dtype=torch.float32)
        index = torch.arange(count).repeat_interleave(length)
        found = ours(x.flatten(0, 1), layout(count, length), conditions=Conditions(condition, index))
    assert_close(found.view_as(wanted), wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def test_a_new_block_changes_nothing():
    stack = dit(width=WIDTH, depth=3, heads=HEADS).build()
    x = torch.randn(8, WIDTH)
    conditions = Conditions(torch.randn(2, WIDTH), torch.tensor([0] * 4 + [1] * 4))
    same = stack.blocks[0](x, layout(2, 4), conditions=conditions)
    assert_close(same, x, rtol=0, atol=0)
    normed = torch.nn.functional.layer_norm(x, (WIDTH,), eps=1e-6)
    assert_close(stack(x, layout(2, 4), conditions=conditions), normed)
