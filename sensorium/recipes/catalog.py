"""Which recipes there are, and how a name or a file becomes one."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.errors import UserError, nearest
from sensorium.recipes.blip2 import blip_2, blip_2_flan_t5, instructblip, minigpt_4
from sensorium.recipes.chameleon import chameleon
from sensorium.recipes.chinese_llava import chinese_llava
from sensorium.recipes.clip import clip
from sensorium.recipes.cogvlm import cogvlm
from sensorium.recipes.dit import dit
from sensorium.recipes.emu3 import emu3
from sensorium.recipes.flamingo import flamingo, openflamingo
from sensorium.recipes.fuyu import fuyu
from sensorium.recipes.llava import llava, llava_1_5, llava_1_5_13b, llava_next, llava_next_34b
from sensorium.recipes.minigpt_v2 import minigpt_v2
from sensorium.recipes.next_gpt import next_gpt
from sensorium.recipes.seechat import seechat
from sensorium.recipes.siglip import siglip
from sensorium.recipes.unicl import unicl
from sensorium.recipes.yi_vl import yi_vl
from sensorium.train.recipe import Recipe, Size

RecipeFunction = Callable[[Size], Recipe]
SIZES: tuple[str, ...] = get_args(Size)


def catalog() -> tuple[RecipeFunction, ...]:
    """The built-in recipes. A recipe's name is what its value says."""
    return (
        llava,
        llava_1_5,
        llava_1_5_13b,
        llava_next,
        llava_next_34b,
        yi_vl,
        seechat,
        chinese_llava,
        minigpt_v2,
        flamingo,
        openflamingo,
        cogvlm,
        blip_2,
        blip_2_flan_t5,
        instructblip,
        minigpt_4,
        clip,
        siglip,
        unicl,
        dit,
        next_gpt,
        fuyu,
        chameleon,
        emu3,
    )


def names() -> dict[str, RecipeFunction]:
    """Built-in recipes by the name of their value."""
    return {function("tiny").name: function for function in catalog()}


def find(name: str, size: str | None = None) -> Recipe:
    """The recipe of a name (`llava-1.5`) or of a file (`path/to/file.py:function`).

    size  tiny, small or paper; None is the function's own default
    Raises UserError for an unknown name or size, and for a file that gives no recipe.
    """
    if size is not None and size not in SIZES:
        raise UserError(f"there is no size {size!r}: {nearest(size, SIZES)} (sizes are {', '.join(SIZES)})")
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _call(_from_file(Path(path), function), name, size)
    if name.endswith(".py"):
        raise UserError(f"{name} is a file: name the function in it too, for example {name}:recipe")
    known = names()
    if name not in known:
        raise UserError(
            f"there is no recipe {name!r}: {nearest(name, known)} "
            "(`sensorium systems` lists all; a recipe of your own is path/to/file.py:function)"
        )
    return _call(known[name], name, size)


def _from_file(path: Path, name: str) -> RecipeFunction:
    """A function of a Python file. The file is run, as any Python file a user names is."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: a recipe of your own is path/to/file.py:function")
    module_name = f"recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file that can be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # its classes look up their annotations there
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, ValidationError, UserError) as error:
        raise UserError(f"{path} cannot be loaded: {_reason(error)}") from error
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
    if name not in functions:
        raise UserError(f"{path} has no function {name!r}: {nearest(name, functions)}")
    return vars(module)[name]


def _call(function: Callable[..., Recipe], name: str, size: str | None) -> Recipe:
    accepts = "size" in inspect.signature(function).parameters
    if size is not None and not accepts:
        raise UserError(f"{name} takes no size: leave out --size, or give the function a parameter `size`")
    try:
        recipe = function(size=size) if size is not None else function()
    except (ValidationError, UserError) as error:
        raise UserError(f"recipe {name}: {_reason(error)}") from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} returned a {type(recipe).__name__}, expected a sensorium.train.recipe.Recipe")
    return recipe


def _reason(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    return explain(error)
