"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with a mixture of experts for feed-forward."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Rule
from sensorium.convert.llama import MORE, RULES, everywhere, head_written, like_llama, window_written, written
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, said
from sensorium.nn.backbone import Backbone
from sensorium.nn.ffn import FeedForward
from sensorium.nn.moe import MixtureOfExperts

_MIXTURE = "model.layers.{}.block_sparse_moe"
_RULES = (
    *(rule for rule in RULES if ".mlp." not in rule.sides[0][0]),
    Rule(f"{_MIXTURE}.gate.weight", "blocks.{}.ffn.router.weight"),
    *(Rule(f"{_MIXTURE}.experts.{{}}.{theirs}.weight", f"blocks.{{}}.ffn.experts.{{}}.{ours}.weight")
      for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up"))),
)  # fmt: skip


def _read(settings: Settings) -> Backbone.Config:
    settings.skip("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")  # training alone
    config = everywhere(settings, like_llama(settings, kv_heads=8, eps=1e-5, theta=1_000_000.0), None)
    ffn = config.block.ffn
    mixture = MixtureOfExperts.Config(
        **{name: getattr(ffn, name) for name in FeedForward.Config.model_fields},
        experts=settings.count("num_local_experts", 8), top=settings.count("num_experts_per_tok", 2),
    )  # fmt: skip
    return config.replace(block=config.block.replace(ffn=mixture))


def _write(config: Backbone.Config) -> dict[str, Any]:
    own = {**written(config, "mixtral"), **head_written(config), "sliding_window": window_written(config)}
    ffn = config.block.ffn
    if isinstance(ffn, MixtureOfExperts.Config):
        own |= {"num_local_experts": ffn.experts, "num_experts_per_tok": ffn.top}
    return said(own, _read, config, "Mixtral")


MIXTRAL = Stack(("mixtral",), "MixtralForCausalLM", _read, _write, lambda config: _RULES, **MORE)
