"""A checkpoint is a folder that is complete or absent.

    run/step_000500/  recipe.json   model/<part>.safetensors   tokenizer/   optim/state.safetensors   state.json
    run/latest        the name of the newest complete checkpoint

It is written beside its place and renamed, `latest` last, so a kill at any moment leaves the previous one usable.
Weights of parts that did not change since the previous checkpoint are hard-linked, not written again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sensorium.config import from_json
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.lora import add_lora
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import load_part
from sensorium.train.recipe import Recipe


def parts_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter names by part: `encoders.image`, `connectors.image`, `backbone`; adapters apart, as `<part>.lora`."""
    parts: dict[str, list[str]] = {}
    for name in names:
        pieces = name.split(".")
        part = ".".join(pieces[:2]) if pieces[0] in ("encoders", "connectors") else pieces[0]
        if ".lora_" in name:
            part += ".lora"
        parts.setdefault(part, []).append(name)
    return parts


def save_checkpoint(
    run: Path,
    step: int,
    recipe: Recipe,
    model: nn.Module,
    tokenizer: Tokenizer,
    state: dict[str, Any],
    optim: dict[str, Tensor] | None = None,
    unchanged: set[str] = frozenset(),  # type: ignore[assignment]
    keep: int = 1,
) -> Path:
    """Write `run/step_<step>`, then point `latest` at it; older ones beyond `keep` are removed.

    unchanged  parts whose tensors are those of the previous checkpoint
    """
    target = run / f"step_{step:06d}"
    draft = run / f".writing_{step:06d}"
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "model").mkdir(parents=True)
    previous = latest(run)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for part, names in parts_of(tensors).items():
        place = draft / "model" / f"{part}.safetensors"
        before = previous / "model" / place.name if previous is not None else None
        if part in unchanged and before is not None and before.exists():
            _link(before, place)
        else:
            save_file({name: tensors[name].contiguous() for name in names}, place)
    (draft / "recipe.json").write_text(recipe.to_json())
    tokenizer.save(draft / "tokenizer")
    if optim is not None:
        (draft / "optim").mkdir()
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in optim.items()},
            draft / "optim/state.safetensors",
        )
    (draft / "state.json").write_text(json.dumps(state, indent=1))
    _sync(draft)
    if target.exists():
        shutil.rmtree(target)
    os.replace(draft, target)
    point(run, target)
    for old in sorted(run.glob("step_*"))[:-keep] if keep else []:
        if old != target:
            shutil.rmtree(old)
    return target


def point(run: Path, target: Path) -> None:
    """Make `latest` name `target`, atomically."""
    draft = run / ".latest"
    draft.write_text(target.name + "\n")
    os.replace(draft, run / "latest")


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    pointer = run / "latest"
    if not pointer.exists():
        return None
    target = run / pointer.read_text().strip()
    return target if (target / "state.json").exists() else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def read_recipe(checkpoint: Path) -> Recipe:
    return from_json((checkpoint / "recipe.json").read_text(), Recipe)


def read_optim(checkpoint: Path) -> dict[str, Tensor]:
    """Optimizer state by name. Raises UserError when the checkpoint was saved without it."""
    path = checkpoint / "optim" / "state.safetensors"
    if not path.exists():
        raise UserError(
            f"{checkpoint} holds no optimizer state, so its stage cannot be resumed: start a new run from it"
        )
    return dict(_tensors(path))


def load_checkpoint(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[Recipe, Fused, Tokenizer]:
    """Open a run or one of its checkpoints: (recipe, model in evaluation mode, tokenizer).

    dtype  None keeps the stored one. Raises UserError that says what is missing.
    """
    folder = Path(folder)
    checkpoint = folder if (folder / "recipe.json").exists() else latest(folder)
    if checkpoint is None:
        raise UserError(
            f"{folder} holds no finished checkpoint: expected a run folder with a file 'latest', or a step_* folder"
        )
    recipe = read_recipe(checkpoint)
    with torch.device("meta"):
        model = recipe.model.build()
    load_weights(model, checkpoint, recipe, read_state(checkpoint).get("adapters", []), dtype)
    return recipe, model.eval(), Tokenizer.load(checkpoint / "tokenizer")


def load_weights(
    model: nn.Module, checkpoint: Path, recipe: Recipe, adapted: list[str], dtype: torch.dtype | None = None
) -> None:
    """Fill a model from a checkpoint; adapters of the stages named in `adapted` are added first."""
    for stage in recipe.stages:
        if stage.name in adapted:
            add_lora(model, stage.adapters)
    paths = sorted((checkpoint / "model").glob("*.safetensors"))
    stored = {name: tensor for path in paths for name, tensor in _tensors(path)}
    for name, tensor in stored.items():
        if dtype is not None and tensor.is_floating_point():
            stored[name] = tensor.to(dtype)
    _materialise(model, stored)
    report = load_part(model, stored.items())
    if report.missing or report.unexpected:
        raise UserError(f"{checkpoint} does not hold this recipe's model: {report}")


def _materialise(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Give meta tensors memory, in the stored types; tensors that are not stored keep theirs (rebuilt buffers)."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        holder = model.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        if name in stored and (tensor.is_meta or tensor.dtype != stored[name].dtype):
            empty = torch.empty_like(stored[name])
            if isinstance(tensor, nn.Parameter):
                setattr(holder, leaf, nn.Parameter(empty, requires_grad=tensor.requires_grad))
            else:
                holder.register_buffer(leaf, empty)
        elif tensor.is_meta:
            raise UserError(f"the checkpoint lacks {name!r}")


def _tensors(path: Path) -> Iterable[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _sync(folder: Path) -> None:
    """Force a folder's files to disk before it is renamed into place."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
