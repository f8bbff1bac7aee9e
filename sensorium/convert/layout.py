"""A family of published checkpoints: which configs are its own, what model they describe, and where its tensors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.stack import Stack
from sensorium.convert.stored import STEM
from sensorium.errors import OtherKind
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer


@dataclass(frozen=True)
class Words:
    """How texts are read where folders have no tokenizer.

    read   what the folder says, and the model -> the tokenizer; write: the tokenizer -> fields of the config
    """

    read: Callable[[Files, Wiring.Config], Tokenizer]
    write: Callable[[Tokenizer], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A layout that transformers or diffusers and this program read and write.

    name   as it is asked for
    types  values of model_type; of diffusers, of _class_name
    architecture  the name of the published class
    also   further classes whose files it reads and writes, by the parts that a model has
    read   what the folder says -> the model; write: the model -> what a folder says of it
    rules, spare, copies, root  as those of a Stack, of a whole model
    unread  templates of tensors of parts that are not opened (a decoder): what is written is without them
    older  beginnings of names in files of older releases ("*.gamma": ends), and what they are today
    modules  beginnings of names in files, and of the modules that hold them where transformers runs the model
    library  whose class it is, which decides how files are called
    parts  of a pipeline, its folders with tensors, whose names then begin with the folder's
    words  what stands for a tokenizer, where folders have none and the model reads something all the same
    prompts  how the folder has conversations written down, where items stand among the words
    tokens   kinds of items, and the field of config.json with the id that stands for one among the words
    marks    fields of text_config with the id of a token, and which word of the Template that token is
    readers  kinds of items whose connectors read words, and the folder of the tokenizer that they read them with
    sampling  the template -> what settings for clips say of the frames that are taken
    """

    name: str
    types: tuple[str, ...]
    architecture: str
    read: Callable[[Files], Wiring.Config]
    write: Callable[[Wiring.Config], Written]
    rules: Callable[[Wiring.Config], Sequence[Rule]]
    spare: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    unread: tuple[str, ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    modules: tuple[tuple[str, str], ...] = ()
    library: Literal["transformers", "diffusers"] = "transformers"
    parts: tuple[str, ...] = ("",)
    words: Words | None = None
    prompts: Callable[[Files, Template], Template] = lambda files, plain: plain
    tokens: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)
    sampling: Callable[[Template], dict[str, Any]] = lambda template: {}

    @property
    def stem(self) -> str:
        """What the names of its weight files begin with."""
        return "diffusion_pytorch_model" if self.library == "diffusers" else STEM

    @property
    def named(self) -> dict[str, Any]:
        """How a config names the class."""
        if self.library == "diffusers":
            return {"_class_name": self.architecture}
        return {"architectures": [self.architecture]}


def text_only(stack: Stack[Backbone.Config]) -> Family:
    """A language model by itself."""
    name = stack.types[0]

    def backbone(model: Wiring.Config) -> Backbone.Config:
        if not isinstance(model, Fused.Config) or model.kinds or model.source is not None or not model.speaks:
            raise OtherKind(f"the layout of {name} holds a language model alone, this model is more: "
                            f"{model.tag()} with {sorted(getattr(model, 'kinds', ()))}")  # fmt: skip
        return model.backbone

    return Family(
        name, stack.types, stack.architecture,
        read=lambda files: Fused.Config(backbone=stack.read(files.config)),
        write=lambda model: Written(stack.write(backbone(model))),
        rules=lambda model: under(stack.rules(backbone(model)), ours="backbone."),
        spare=stack.spare, copies=stack.copies, root=stack.root,
    )  # fmt: skip
