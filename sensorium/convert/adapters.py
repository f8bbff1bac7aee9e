"""Low-rank adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors beside a base model's name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sensorium.convert.hubs import published_folder
from sensorium.convert.keys import SAME, Transposed, pairs
from sensorium.convert.layout import Family
from sensorium.convert.published import Opened, open_published, today
from sensorium.convert.settings import Settings
from sensorium.errors import UserError
from sensorium.models.wiring import Wiring
from sensorium.nn.lora import LoRA, LoRALinear, add_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROOT = "base_model.model."
_IDLE = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "exclude_modules",
    "target_modules", "init_lora_weights", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size",
    "fan_in_fan_out", "ensure_weight_tying", "base_model_name_or_path",
)  # fmt: skip
"""What says how adapters were begun or named: which layers have one is read from the tensors."""
_ABSENT = (
    "modules_to_save", "trainable_token_indices", "velora_config", "alora_invocation_tokens", "monteclora_config",
    "layer_replication", "target_parameters", "use_bdlora", "arrow_config", "kasa_config",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def open_adapter(folder: Path, dtype: torch.dtype | None = None) -> Opened:
    """The base model that an adapter names, with the adapter beside its layers (not merged).

    Raises UserError for a base that cannot be opened, kinds of adapters that cannot be said here, or tensors that do
    not fit.
    """
    settings = Settings.load(folder / CONFIG)
    settings.only("peft_type", "LORA")
    name = settings.take("base_model_name_or_path", str)
    beside = folder / name  # a path may be relative to the adapter's own folder
    base = published_folder(beside if beside.is_dir() else name)
    if base is None:
        raise settings.error(f"its base model is {name!r}, which is no published folder: correct the path")
    alphas = _alphas(settings)
    opened = open_published(base, dtype)
    modules = {theirs: ours for ours, theirs in _modules(opened.family, opened.model).items()}
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        matched = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", key)
        layer = modules.get(today(f"{matched[1]}.", opened.family.older).removesuffix(".")) if matched else None
        if matched is None or layer is None:
            raise UserError(f"{folder / WEIGHTS}: {key} is of no linear layer of {name}")
        found.setdefault(layer, {})[matched[2]] = tensor
    for layer, pair in found.items():
        _add(opened.model, layer, pair, alphas(layer, pair["A"].shape[0]), settings.take("lora_dropout", float, 0.0))
    return opened


def _alphas(settings: Settings) -> Any:
    """(layer here, rank) -> alpha, of an adapter whose every setting can be said here."""
    settings.skip(*_IDLE)
    for name in _ABSENT:
        settings.only(name, None)
    for name in ("use_dora", "lora_bias", "use_qalora"):
        settings.only(name, False)
    settings.only("bias", "none")
    settings.only("alpha_pattern", {}, None)
    settings.take("rank_pattern", dict, {})  # the tensors say it
    settings.take("r", int, 8)
    settings.take("lora_dropout", float, 0.0)
    alpha, rooted = settings.take("lora_alpha", float, 8.0), settings.take("use_rslora", bool, False)
    settings.done(idle=())
    return lambda layer, rank: alpha * rank**0.5 if rooted else alpha  # rsLoRA divides by the root of the rank


def _add(model: Wiring, layer: str, pair: dict[str, torch.Tensor], alpha: float, dropout: float) -> None:
    if set(pair) != {"A", "B"}:
        raise UserError(f"the adapter of {layer} has only lora_{'A' if 'A' in pair else 'B'}")
    add_lora(model, {layer: LoRA(rank=pair["A"].shape[0], alpha=alpha, dropout=dropout)})
    linear = model.get_submodule(layer)
    assert isinstance(linear, LoRALinear)
    for own, tensor in ((linear.lora_a, pair["A"]), (linear.lora_b, pair["B"])):
        if own.shape != tensor.shape:
            raise UserError(f"the adapter of {layer} has {tuple(tensor.shape)}, its layer needs {tuple(own.shape)}")
        own.data.copy_(tensor)


def _modules(family: Family, model: Wiring) -> dict[str, str]:
    """Linear layers here -> those in the files of the family. Fused ones, which hold several of ours, are left out."""
    found = {}
    for pair in pairs(family.rules(model.config), _plain(model)):
        plain = len(pair.ours) == len(pair.theirs) == 1 and (pair.fit is SAME or isinstance(pair.fit, Transposed))
        if plain and pair.ours[0].endswith(".weight"):
            found[pair.ours[0].removesuffix(".weight")] = pair.theirs[0].removesuffix(".weight")
    return found


def write_adapter(folder: Path, family: Family, model: Wiring, base: str) -> None:
    """Write the adapters of a model as PEFT reads them; the folder is complete or absent.

    base  the published model under them, as a path or an id of the hub
    Raises UserError for a model without adapters, or an adapter on a layer that the published model has fused.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: give a folder that is not")
    layers = {name: part for name, part in model.named_modules() if isinstance(part, LoRALinear)}
    if not layers:
        raise UserError("this model has no adapters: train it with some, or write all of it (--to hf)")
    modules = _modules(family, model)
    fused = sorted(set(layers) - set(modules))
    if fused:
        raise UserError(f"{len(fused)} adapters (of {fused[0]}, ...) are on layers that {family.name} stores as one: "
                        "PEFT cannot say them; merge them (--to hf)")  # fmt: skip
    first = next(iter(layers.values())).config
    settings = sorted({(part.config.alpha, part.config.dropout) for part in layers.values()})
    if len(settings) > 1:
        raise UserError(f"PEFT's layout has one alpha and one dropout, this model's adapters have {settings}")
    tensors, names, ranks = {}, [], {}
    for ours, part in layers.items():
        name = today(modules[ours] + ".", family.modules).removesuffix(".")
        names.append(name)
        ranks[name] = part.config.rank
        tensors[f"{_ROOT}{name}.lora_A.weight"] = part.lora_a.detach().cpu().contiguous()
        tensors[f"{_ROOT}{name}.lora_B.weight"] = part.lora_b.detach().cpu().contiguous()
    transposed = any(isinstance(pair.fit, Transposed) for pair in pairs(family.rules(model.config), _plain(model)))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": first.rank,
        "lora_alpha": first.alpha, "lora_dropout": first.dropout, "target_modules": names, "bias": "none",
        "fan_in_fan_out": transposed, "inference_mode": True, "init_lora_weights": True,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != first.rank},
    }  # fmt: skip
    draft = folder.with_name(f".writing_{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
    (draft / CONFIG).write_text(json.dumps(config, indent=2), "utf-8")
    draft.replace(folder)


def _plain(model: Wiring) -> list[str]:
    return [name for name in model.state_dict() if not name.rpartition(".")[2].startswith("lora_")]
