"""Read a GGUF file of a language model: facts, weights under the Backbone's names, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.convert.gguf_file import GGUFFile
from sensorium.convert.gguf_text import ARCHITECTURES, Architecture, half_split
from sensorium.convert.gguf_tokenizer import read_tokenizer
from sensorium.convert.keys import Pair, pairs
from sensorium.convert.published import template_of
from sensorium.convert.settings import Settings
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone
from sensorium.nn.blank import blank
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer

__all__ = ["GGUF", "half_split", "open_gguf", "read_gguf"]

_LEAST = 9
"""Tensors of a block, at least."""


class GGUF(GGUFFile):
    """An opened file of a language model. Raises UserError as a `GGUFFile` does."""

    def kind(self) -> Architecture:
        """Raises UserError for an architecture that cannot be read."""
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise UserError(f"{self.path} holds the architecture {name!r}; only {', '.join(ARCHITECTURES)} can be read")
        return ARCHITECTURES[name]

    def backbone(self) -> Backbone.Config:
        """The stack that the header and the names of the tensors describe.

        Raises UserError for sizes that contradict each other, and for a key that is not known: it might change what the
        model computes.
        """
        kind = self.kind()
        if "token_embd.weight" not in self.stored:
            raise self.bad("it has no token embedding (token_embd.weight)")
        begin = kind.name + "."
        values = {key.removeprefix(begin): _shortest(value) for key, value in self.metadata.items()
                  if key.startswith(begin)}  # fmt: skip
        values["vocab_size"] = self.stored["token_embd.weight"].shape[0]
        settings = Settings(values, f"{self.path} {kind.name}")
        config = kind.read(settings, self.stored.keys())
        settings.done(idle=())
        if config.depth * _LEAST > len(self.stored) and config.block.ffn.gated:
            raise self.bad(f"its header announces {config.depth} blocks, but it has {len(self.stored)} tensors")
        return config

    def context(self) -> int:
        """The longest text it was trained on, in tokens."""
        return Settings(self.metadata, str(self.path)).count(f"{self.kind().name}.context_length")

    def architecture(self) -> dict[str, Any]:
        """Facts in short.

        vocab, width, depth, heads, kv_heads, head_width, hidden (of the feed-forward), theta (RoPE; None without),
        eps (of norms), tied (the head is the embedding), context (trained length in tokens), name.
        """
        config = self.backbone()
        attention = config.block.attention
        return {
            "name": str(self.metadata.get("general.name", self.path.stem)),
            "vocab": config.vocab, "width": config.width, "depth": config.depth, "heads": attention.heads,
            "kv_heads": attention.kv_heads or attention.heads, "head_width": attention.width_of_head(config.width),
            "hidden": config.block.ffn.hidden, "theta": config.rope.theta if config.rope else None,
            "eps": config.block.norm.eps, "tied": config.tied, "context": self.context(),
        }  # fmt: skip

    # ---- weights

    def tensors(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """(name in a Backbone, tensor) one by one, dequantised in float32 and then cast to `dtype`.

        Each tensor owns its memory. Names and shapes are checked against the facts before the first one is read.
        """
        config = self.backbone()
        shapes = self._shapes(config)
        for pair in self._plan(config, shapes):
            stored = [torch.from_numpy(self.read(self.stored[name])) for name in pair.theirs]
            for name, tensor in pair.into(stored, shapes).items():
                own = tensor.to(dtype)
                yield name, own.clone() if own._base is not None or not own.is_contiguous() else own

    def _shapes(self, config: Backbone.Config) -> dict[str, tuple[int, ...]]:
        try:
            with blank():
                own = config.build().state_dict()
        except (ValueError, RuntimeError, OverflowError) as error:
            raise self.bad(f"its header describes a model that cannot be: {error}") from error
        return {name: tuple(tensor.shape) for name, tensor in own.items()}

    def _plan(self, config: Backbone.Config, shapes: dict[str, tuple[int, ...]]) -> list[Pair]:
        """How each stored tensor is found in a Backbone; missing, surplus and misshapen ones are errors."""
        plan = pairs(self.kind().rules(config), shapes)
        used = {name for pair in plan for name in pair.theirs}
        missing = sorted(name for pair in plan if not self.stored.keys() >= {*pair.theirs} for name in pair.ours)
        surplus = sorted(self.stored.keys() - used)
        if missing or surplus:
            raise self.bad(f"its weights are not those of its header: missing {missing[:3]}, unexpected {surplus[:3]}")
        for pair in plan:
            [name] = pair.theirs
            found, first = self.stored[name].shape, shapes[pair.ours[0]]
            wanted = (sum(shapes[one][0] for one in pair.ours), *first[1:])
            if found != wanted:
                raise self.bad(f"tensor {name} has shape {found}, expected {wanted}")
        return plan

    # ---- words

    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer with its chat template. Raises UserError for kinds that cannot be read."""
        return read_tokenizer(self)


def read_gguf(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """(facts as `GGUF.architecture` gives them, state dict of a Backbone, tokenizer)."""
    with GGUF(path) as file:
        return file.architecture(), dict(file.tensors(dtype)), file.tokenizer()


def open_gguf(path: str | Path, dtype: torch.dtype | None = None) -> tuple[Fused, Tokenizer, Template]:
    """A language model in evaluation mode, its tokenizer, and how its conversations are written.

    dtype  None: float32, which holds every stored number
    Raises UserError for a file that cannot be said here, or whose tokenizer names no token that ends a text.
    """
    with GGUF(path) as file:
        with blank():
            model = Fused.Config(backbone=file.backbone()).build()
        tokenizer = file.tokenizer()
        tensors = {f"backbone.{name}": tensor for name, tensor in file.tensors(dtype or torch.float32)}
        ends = [file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eot", "eom")]
    model.load_state_dict(tensors, assign=True)
    names = {id: token for token, id in tokenizer.special.items()}
    template = template_of(tokenizer, Path(path), tuple(names[id] for id in ends if id in names))
    return model.eval(), tokenizer, template


def _shortest(value: Any) -> Any:
    """Of a float32 the shortest decimal, as people write it: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
