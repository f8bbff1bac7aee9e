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
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.nn.lora import add_lora
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import Loaded, load_part
from sensorium.train.parallel import ALONE, Ranks, full
from sensorium.train.recipe import Recipe

ROOMS = ("encoders", "connectors", "codecs", "critics")
"""Whose parts have names of their own, by kind."""


def parts_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter names by part: `encoders.image`, `connectors.image`, `codecs.image`, `backbone`; of a generator
    `generators.image.connector` and `generators.image.denoiser`.

    What a design adds to a backbone stands apart, so that the published stack keeps a file of its own: adapters as
    `<part>.lora`, cross-attention as `backbone.cross`, further routes as `backbone.routes`.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        pieces = name.split(".")
        depth = 3 if pieces[0] == "generators" else 2 if pieces[0] in ROOMS else 1
        part = ".".join(pieces[:depth])
        if pieces[:2] == ["backbone", "blocks"] and pieces[3] in ("cross", "routes"):
            part += f".{pieces[3]}"
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
    ranks: Ranks = ALONE,
) -> Path:
    """Write `run/step_<step>`, then point `latest` at it; older ones beyond `keep` are removed.

    unchanged  parts whose tensors are those of the previous checkpoint
    ranks      all of them call this; sharded tensors are gathered and the leader writes. It is there when this returns
    """
    target = run / f"step_{step:06d}"
    draft = run / f".writing_{step:06d}"
    if ranks.leader:
        for left in [*run.glob(".writing_*"), *run.glob(".removing_*")]:  # of a process that was killed
            shutil.rmtree(left)
        (draft / "model").mkdir(parents=True)
    _write_parts(draft / "model", model, _pointed(run), unchanged, ranks)
    held = _whole(optim, ranks) if optim is not None else None
    if ranks.leader:
        (draft / "recipe.json").write_text(recipe.to_json(), "utf-8")
        tokenizer.save(draft / "tokenizer")
        if held is not None:
            (draft / "optim").mkdir()
            save_file(held, draft / "optim/state.safetensors")
        (draft / "state.json").write_text(json.dumps(state, indent=1), "utf-8")
        _publish(run, draft, target, step, keep)
    ranks.wait()
    return target


def _write_parts(folder: Path, model: nn.Module, previous: Path | None, unchanged: set[str], ranks: Ranks) -> None:
    """One file for each part. What is sharded is gathered one part at a time, so that memory holds one part more."""
    tensors = model.state_dict()
    parts = parts_of(tensors)
    before = {part: previous / "model" / f"{part}.safetensors" for part in unchanged & set(parts)} if previous else {}
    kept = {part for part, path in before.items() if _holds(path, {name: tensors[name] for name in parts[part]})}
    kept = ranks.said(kept)  # whether to gather a part is decided once
    for part, names in parts.items():
        place = folder / f"{part}.safetensors"
        if part not in kept:
            members = _whole({name: tensors[name] for name in names}, ranks)
            if ranks.leader:
                save_file(members, place)
        elif ranks.leader:
            _link(before[part], place)


def _whole(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the leader; the others help to gather them and get nothing."""
    members = {}
    for name, tensor in tensors.items():
        gathered = full(tensor.detach())
        if ranks.leader:
            members[name] = gathered.cpu().contiguous()
    return members


def _publish(run: Path, draft: Path, target: Path, step: int, keep: int) -> None:
    """Give a draft its name, point at it, and remove what it replaces."""
    _sync(draft)
    if target.exists():  # left by a run that was killed before it could point at it
        _remove(target)
    os.replace(draft, target)
    point(run, target)
    if keep:
        older = [path for path in checkpoints(run) if _step(path) < step]
        newer = [path for path in checkpoints(run) if _step(path) > step]  # of a future that was not
        for path in [*older[: max(0, len(older) - keep + 1)], *newer]:
            _remove(path)


def point(run: Path, target: Path) -> None:
    """Make `latest` name `target`, atomically."""
    draft = run / ".latest"
    draft.write_text(target.name + "\n")
    _sync(run, files=[draft])
    os.replace(draft, run / "latest")


def _pointed(run: Path) -> Path | None:
    """What the file `latest` names, when that is a complete checkpoint."""
    pointer = run / "latest"
    name = pointer.read_text().strip() if pointer.exists() else ""
    return run / name if name and (run / name / "state.json").exists() else None


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in run.glob("step_*") if path.name[5:].isdigit() and (path / "state.json").exists()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    Raises UserError when the file `latest` names a folder that is not a complete checkpoint.
    """
    pointer = run / "latest"
    if not pointer.exists():  # never saved, or killed after the first rename: a folder of this name is complete
        complete = checkpoints(run)
        return complete[-1] if complete else None
    target = _pointed(run)
    if target is None:
        raise UserError(
            f"{pointer} names {pointer.read_text().strip()!r}, which is no complete checkpoint: restore it, or "
            f"write the name of another into {pointer}; there are: {[path.name for path in checkpoints(run)]}"
        )
    return target


STATE = ("stage", "wiring", "stage_step", "position", "step", "finished", "results", "phases", "adapters")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Where training stands. Raises UserError naming the file when it cannot be read."""
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lacking = [key for key in STATE if not isinstance(state, dict) or key not in state]
    if lacking:
        raise UserError(f"{path} is not the state of a run: it lacks {', '.join(lacking)}")
    return state


def read_recipe(checkpoint: Path) -> Recipe:
    """The recipe of a checkpoint. Raises UserError naming the file when it is none."""
    path = checkpoint / "recipe.json"
    try:
        return from_json(path.read_text("utf-8"), Recipe)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_optim(checkpoint: Path) -> dict[str, Tensor]:
    """Optimizer state by name. Raises UserError when the checkpoint was saved without it."""
    path = checkpoint / "optim" / "state.safetensors"
    if not path.exists():
        raise UserError(
            f"{checkpoint} holds no optimizer state, so its stage cannot be resumed: start a new run from it"
        )
    return dict(_tensors(path))


def load_checkpoint(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[Recipe, Wiring, Tokenizer]:
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
    state = read_state(checkpoint)
    config = recipe.wiring(state["wiring"])
    with blank():
        model = config.build()
    adapted = _adapted(recipe, config, state["adapters"])
    load_weights(model, checkpoint, recipe, adapted, dtype)
    return recipe, model.eval(), Tokenizer.load(checkpoint / "tokenizer")


def _adapted(recipe: Recipe, config: Wiring.Config, names: Iterable[str]) -> list[str]:
    """Those of the stages called `names` whose adapters are in a model of this wiring."""
    return [stage.name for stage in recipe.stages if stage.name in names and (stage.wiring or recipe.model) == config]


def whole_model(recipe: Recipe, model: Wiring, adapters: Iterable[str], ranks: Ranks) -> Wiring | None:
    """What a checkpoint of a sharded model would hold, in evaluation mode on the leader's CPU; None on other ranks.

    adapters  names of the stages that gave the model adapters. All ranks call this.
    """
    tensors = _whole(model.state_dict(), ranks)
    if not ranks.leader:
        return None
    with blank():
        made = model.config.build()
    adapted = _adapted(recipe, model.config, adapters)
    for stage in recipe.stages:
        if stage.name in adapted:
            add_lora(made, stage.adapters)
    _materialise(made, tensors)
    load_part(made, tensors.items())
    return made.eval()


def load_weights(
    model: nn.Module, checkpoint: Path, recipe: Recipe, adapted: list[str], dtype: torch.dtype | None = None
) -> Loaded:
    """Fill a model from a checkpoint; adapters of the stages named in `adapted` are added first.

    Returns what was loaded. Raises UserError naming the file that is missing, damaged or of another model.
    """
    for stage in recipe.stages:
        if stage.name in adapted:
            add_lora(model, stage.adapters)
    stored: dict[str, Tensor] = {}
    wanted = model.state_dict()
    parts = parts_of(wanted)
    for part, names in parts.items():
        stored.update(_read_part(checkpoint / "model" / f"{part}.safetensors", {name: wanted[name] for name in names}))
    for path in sorted((checkpoint / "model").glob("*.safetensors")):
        if path.name.removesuffix(".safetensors") not in parts:
            raise UserError(f"{path} is a part that the model of recipe {recipe.name!r} does not have")
    for name, tensor in stored.items():
        if dtype is not None and tensor.is_floating_point():
            stored[name] = tensor.to(dtype)
    _materialise(model, stored)
    return load_part(model, stored.items())


def _read_part(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part's file, which must be those of `wanted` in name and shape."""
    if not path.exists():
        raise UserError(f"{path} is missing: the checkpoint is not whole, copy it again")
    stored = dict(_tensors(path))
    for name in sorted(set(wanted) ^ set(stored)):
        raise UserError(f"{path} does not fit the recipe: {name!r} is {'missing' if name in wanted else 'unexpected'}")
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{path} does not fit the recipe: {name!r} is {tuple(tensor.shape)}, expected "
                f"{tuple(wanted[name].shape)}"
            )
    return stored


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


def _holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a file has these names, shapes and dtypes exactly: a stage of another precision casts what it freezes."""
    if not path.exists():
        return False
    stored = {name: (tensor.shape, tensor.dtype) for name, tensor in _tensors(path)}
    return stored == {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; its name goes first, so that a kill in between leaves no half of one."""
    doomed = checkpoint.with_name(f".removing_{checkpoint.name}")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def _sync(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Force files of a folder (default: all below it) and the folders themselves to disk, before a rename."""
    found = [folder, *(folder.rglob("*") if files is None else files)]
    for path in found:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
