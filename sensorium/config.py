"""Typed values: every part, stage and recipe is a frozen `Config` that round-trips through JSON.

A part is a class with a nested `Config`; `Config.build(...)` makes the part. A value that may be one of several
classes (an encoder, a connector, a data source) carries a `type` tag in JSON. The tag is looked up among the `Config`
classes that exist, it is never imported by name, so a checkpoint cannot make this program load anything.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from sensorium.errors import UserError, nearest

C = TypeVar("C", bound="Config")

ROOMS = (
    "nn", "encoders", "connectors", "codecs", "diffusion", "models", "objectives", "data", "train", "evaluate", "hub",
    "render",
)  # fmt: skip


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""5e-4, which YAML 1.1 reads as text; people mean a number."""


class Config(BaseModel):
    """A frozen, validated, keyword-only value. Unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    _owner: ClassVar[Callable[..., Any] | None] = None

    @classmethod
    def tag(cls) -> str:
        """The name that stands for this class in JSON, for example `connectors.mlp.MLP`."""
        module = cls.__module__.removeprefix("sensorium.")
        return f"{module}.{cls.__qualname__.removesuffix('.Config')}"

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Make the part this value describes. Raises TypeError for a value that describes no part."""
        owner = type(self)._owner
        if owner is None:
            raise TypeError(f"{self.tag()} is a plain value: it builds no part")
        return owner(self, *args, **kwargs)

    def replace(self, **changes: Any) -> Self:
        """The same value with some fields changed, validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    @model_serializer(mode="plain")
    def _dump(self) -> dict[str, Any]:
        return {"type": self.tag(), **{name: getattr(self, name) for name in type(self).model_fields}}

    @model_validator(mode="wrap")
    @classmethod
    def _load(cls, value: Any, handler: Any) -> Any:
        if isinstance(value, dict) and "type" in value and "type" not in cls.model_fields:
            value = dict(value)
            tag = value.pop("type")
            if not isinstance(tag, str):
                raise ValueError(f"a type tag is text, this is {tag!r}")
            found = lookup(tag)
            if not issubclass(found, cls):
                raise ValueError(f"expected a {cls.tag()}, the type tag says {found.tag()}")
            return handler(value) if found is cls else found.model_validate(value)
        return handler(value)


def owned(part: type) -> None:
    """Tie a part class to its nested Config; parts call this from `__init_subclass__`."""
    config = part.__dict__.get("Config")
    if config is not None:
        config._owner = part


def _subclasses(cls: type[Config]) -> Iterator[type[Config]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


MOVED = {"render.Template": "template.Template"}
"""Tags of saved runs -> what they are called since their parts moved."""


def lookup(tag: str) -> type[Config]:
    """The Config class whose tag is `tag`, among the package's own parts and those of loaded user files."""
    tag = MOVED.get(tag, tag)
    known = {sub.tag(): sub for sub in _subclasses(Config)}
    if tag not in known:
        _import_rooms()
        known = {sub.tag(): sub for sub in _subclasses(Config)}
    if tag not in known:
        raise ValueError(f"no part is called {tag!r}: {nearest(tag, known)}")
    return known[tag]


def _import_rooms() -> None:
    for room in ROOMS:
        module = importlib.import_module(f"sensorium.{room}")
        for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"sensorium.{room}."):
            importlib.import_module(info.name)


def from_json(text: str, expected: type[C]) -> C:
    """Read a value back. Raises UserError with the place and reason when the text does not describe an `expected`."""
    try:
        return expected.model_validate(json.loads(text))
    except (ValidationError, ValueError) as error:
        raise UserError(f"this is not a valid {expected.__name__}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """The first problems of a validation error on one line each: the path, the reason, the value given."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for problem in error.errors()[:3]:
        where = ".".join(str(step) for step in problem["loc"]) or "value"
        lines.append(f"{where}: {problem['msg']} (given: {str(problem['input'])[:80]!r})")
    return "; ".join(lines)


def override(value: C, assignment: str) -> C:
    """Apply one `path=value` to a config, type-checked.

    A path walks fields, dict keys (which may hold dots), and list elements by their `name` or index:
    `stages.align.lr=5e-4`, `model.connectors.image.depth=3`. The right side is YAML; a new dict key is given with the
    whole dict. Raises UserError that names the nearest key.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise UserError(f"override {assignment!r} is not of the form path=value, for example stages.align.lr=5e-4")
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {assignment!r}: the value is not readable: {error}") from error
    if isinstance(parsed, str) and _NUMBER.fullmatch(parsed):
        parsed = float(parsed)
    return _set(value, path.strip().split("."), parsed, assignment)


def _set(node: Any, path: list[str], new: Any, assignment: str) -> Any:
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(node, Config):
        fields = type(node).model_fields
        if step not in fields:
            raise UserError(f"override {assignment!r}: {node.tag()} has no field {step!r}: {nearest(step, fields)}")
        changed = _set(getattr(node, step), rest, new, assignment)
        try:
            return node.replace(**{step: changed})
        except ValidationError as error:
            raise UserError(f"override {assignment!r}: {explain(error)}") from error
    if isinstance(node, dict):
        for length in range(len(path), 0, -1):  # the longest key that is there
            key = ".".join(path[:length])
            if key in node:
                return {**node, key: _set(node[key], path[length:], new, assignment)}
        raise UserError(f"override {assignment!r}: no key {step!r}: {nearest(step, map(str, node))}")
    if isinstance(node, list | tuple):
        names = [getattr(item, "name", str(index)) for index, item in enumerate(node)]
        if step in names:
            index = names.index(step)
        elif step.isdigit() and int(step) < len(node):
            index = int(step)
        else:
            raise UserError(f"override {assignment!r}: no element {step!r}: {nearest(step, names)}")
        changed = [*node[:index], _set(node[index], rest, new, assignment), *node[index + 1 :]]
        return type(node)(changed)
    raise UserError(f"override {assignment!r}: {step!r} goes below a plain value ({node!r})")
