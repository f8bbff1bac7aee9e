"""A published stack (a language model, a vision tower): how its config and its tensors are said here, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sensorium.config import Config
from sensorium.convert.keys import Rule
from sensorium.convert.settings import Settings
from sensorium.errors import UserError, nearest
from sensorium.nn.backbone import Backbone
from sensorium.nn.ffn import Activation

C = TypeVar("C", bound=Config)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
"""Published names -> those of sensorium.nn.ffn."""
_WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu",
            "relu": "relu", "relu2": "relu2"}  # fmt: skip


@dataclass(frozen=True)
class Stack(Generic[C]):
    """What a family's files say of one stack.

    types  values of `model_type` in the config
    architecture  the published class, a language model's own
    read   the config's fields -> the part here; it asks for every field that decides a number
    write  the part -> fields of a config. Raises UserError for one that this family cannot say
    rules  names of its tensors there and here, both without what stands before them
    spare  templates of published tensors that hold nothing of their own: tables that are computed
    copies  tensors that old files hold a second time, and of which
    root   what the names begin with where a head stands beside them; files of the stack alone leave it out
    absent  what the published class has for fields that a config inside another one leaves out
    """

    types: tuple[str, ...]
    architecture: str
    read: Callable[[Settings], C]
    write: Callable[[C], dict[str, Any]]
    rules: Callable[[C], Sequence[Rule]]
    spare: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    absent: Mapping[str, Any] = field(default_factory=dict)


def part(
    settings: Settings, name: str, stacks: Sequence[Stack[C]], default: str, without: Sequence[str] = ()
) -> tuple[Stack[C], C]:
    """The stack that a config inside another one describes, and its config here.

    default  its model_type where it says none
    without  fields that the model around it answers for
    Raises UserError for a kind of stack that is not known, or a field that is not.
    """
    fields = settings.inner(name, {})
    kind = fields.take("model_type", str, default)
    known = {one: stack for stack in stacks for one in stack.types}
    if kind not in known:
        raise fields.error(f"model_type is {kind!r}, which cannot be opened here: {nearest(kind, known)}")
    config = filled(fields, known[kind], without)
    return known[kind], config


def filled(fields: Settings, stack: Stack[C], without: Sequence[str] = ()) -> C:
    """The config here of a stack by its own fields; of those that are left out the published class knows.

    without  fields that are not the stack's own
    Raises UserError for a field that is not known.
    """
    given = {
        one: value for one, value in fields.values.items()
        if (value is not None or one not in stack.absent) and one not in without
    }  # fmt: skip
    whole = Settings({**stack.absent, **given}, fields.where)
    config = stack.read(whole)
    whole.done()
    fields.skip(*fields.values)
    return config


def stack_for(config: C, stacks: Sequence[Stack[C]], kind: str | None = None) -> tuple[Stack[C], dict[str, Any]]:
    """The first stack whose layout says a part, and what it writes.

    kind  the model_type that it must have; None: any
    Raises UserError with the reason of each that cannot.
    """
    reasons = []
    for stack in stacks:
        if kind is not None and kind not in stack.types:
            continue
        try:
            return stack, stack.write(config)
        except UserError as error:
            reasons.append(f"{stack.types[0]}: {error}")
    raise UserError("no published layout can say this part.\n  " + "\n  ".join(reasons))


def activation(settings: Settings, name: str, default: str) -> Activation:
    """The activation that a field of a config names."""
    return settings.choose(name, ACTIVATIONS, default)


def activation_name(kind: Activation) -> str:
    """How a config names an activation."""
    return _WRITTEN[kind]


def said(
    written: dict[str, Any], read: Callable[[Settings], Backbone.Config], config: Backbone.Config, name: str
) -> dict[str, Any]:
    """What was written of a language model, once it reads as the very same value.

    Raises UserError for a model that the layout has no words for.
    """
    same(_plain(config), _plain(read(Settings(written))), name)
    return written


def same(own: dict[str, Any], again: dict[str, Any], name: str) -> None:
    """Raises UserError that names the first field, by its path, in which what would be read is not the model's own."""
    first, second = fields_of(own), fields_of(again)
    for path in sorted(first.keys() | second.keys()):
        if first.get(path) != second.get(path):
            raise UserError(f"the layout of {name} cannot say this model: its {path} is {first.get(path)!r}, and "
                            f"{second.get(path)!r} is what would be read")  # fmt: skip


def fields_of(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of values within values, by path."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)
        else:
            found[path] = value

    walk(values, "")
    return found


def _plain(config: Backbone.Config) -> dict[str, Any]:
    """What follows from other fields is written out."""
    attention = config.block.attention
    whole = attention.replace(
        kv_heads=attention.kv_heads or attention.heads, head_width=attention.width_of_head(config.width),
        out_bias=attention.bias if attention.out_bias is None else attention.out_bias,
    )  # fmt: skip
    return config.replace(block=config.block.replace(attention=whole)).model_dump(mode="json")
