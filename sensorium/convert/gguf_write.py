"""Write a language model, and the encoder of one that sees, as GGUF files for llama.cpp and what is built on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sensorium.convert.gguf_draft import Draft, numbers_of
from sensorium.convert.gguf_text import architecture_of
from sensorium.convert.gguf_tokenizer import tokenizer_keys
from sensorium.convert.gguf_vision import vision_draft
from sensorium.convert.keys import pairs
from sensorium.convert.published import NO_CHAT
from sensorium.convert.words import chat_of_parts
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer


@dataclass(slots=True)
class Exported:
    """What was written.

    files  the language model's first
    notes  what llama.cpp does otherwise than this program, for people
    """

    files: list[Path]
    notes: list[str]


def write_gguf(
    out: Path, model: Wiring, tokenizer: Tokenizer, template: Template, *, numbers: str | None = None,
    context: int | None = None,
) -> Exported:  # fmt: skip
    """Write a language model as `out`; of one that sees, its encoder and projector beside it as `mmproj-...`.

    Both files are complete or absent.
    numbers  f32, f16, bf16 or q8_0; None: as the model has them
    context  the longest text it was trained on, in tokens
    Raises UserError for a model that llama.cpp cannot run, or a file that is there already.
    """
    if out.suffix != ".gguf":
        raise UserError(f"a GGUF file's name ends with .gguf, {out} does not: give a file, for example model.gguf")
    network = _plain(model)
    kind = numbers_of(network, numbers)
    chat = chat_source(template, bool(network.config.kinds))
    drafts = {out: text_draft(network.backbone, tokenizer, template, out.stem, context, chat)}
    notes: list[str] = []
    if network.config.kinds:
        seen, notes = vision_draft(network, out.stem)
        drafts = {out.with_name(f"mmproj-{out.name}"): seen, **drafts}  # the language model's file comes last
    there = [str(path) for path in drafts if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already: give a name that is not")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = {path: path.with_name(f".writing_{path.name}") for path in drafts}
    try:
        for path, draft in drafts.items():
            draft.save(partial[path], kind)
        for path in drafts:
            partial[path].replace(path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return Exported([*reversed(drafts)], notes)


def _plain(model: Wiring) -> Fused:
    """The model as one that llama.cpp has: a language model, alone or with pictures that become some of its tokens."""
    config = model.config
    if not isinstance(model, Fused) or not isinstance(config, Fused.Config):
        raise UserError(f"GGUF holds a language model, this is a {config.tag()}")
    same = Fused.Config(backbone=config.backbone, encoders=config.encoders, connectors=config.connectors)
    if config != same:
        other = [name for name in type(config).model_fields if getattr(config, name) != getattr(same, name)]
        raise UserError(f"llama.cpp reads a language model, alone or with pictures as tokens; this one also has "
                        f"{', '.join(other)}")  # fmt: skip
    if set(config.kinds) - {"image"}:
        raise UserError(f"a GGUF file for the projector holds pictures, this model reads {sorted(config.kinds)}")
    return model


def text_draft(
    stack: Backbone, tokenizer: Tokenizer, template: Template, name: str, context: int | None, chat: str | None
) -> Draft:
    """A language model's file.

    context  the longest text it was trained on, in tokens; a stack with learned positions says it itself
    chat     the chat template
    Raises UserError for a stack or a tokenizer that GGUF has no words for.
    """
    config = stack.config
    kind, said = architecture_of(config)
    said = {"context_length": context or 2048, **said}
    keys = {"general.name": name, **{f"{kind.name}.{key}": value for key, value in said.items()}}
    keys |= tokenizer_keys(tokenizer, template, config.vocab)
    if chat is not None:
        keys["tokenizer.chat_template"] = chat
    own = stack.state_dict()
    plan = pairs(kind.rules(config), own)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for pair in plan:
            yield from pair.back([own[one] for one in pair.ours]).items()
        yield from kind.extra(config).items()

    return Draft(kind.name, keys, tensors, whole=("position_embd.weight",))


_PIECES = (
    "{% set flat = namespace(messages=[]) %}{% for message in messages %}{% set said = namespace(parts=[]) %}"
    "{% if message['content'] is string %}"
    "{% for piece in message['content'].split(MARK) %}"
    "{% if not loop.first %}{% set said.parts = said.parts + [{'type': 'image'}] %}{% endif %}"
    "{% if piece %}{% set said.parts = said.parts + [{'type': 'text', 'text': piece}] %}{% endif %}{% endfor %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' and part['text'] != MARK %}{% set said.parts = said.parts + [part] %}"
    "{% else %}{% set said.parts = said.parts + [{'type': 'image'}] %}{% endif %}{% endfor %}{% endif %}"
    "{% set flat.messages = flat.messages + [{'role': message['role'], 'content': said.parts}] %}{% endfor %}"
    "{% set messages = flat.messages %}"
)
"""Contents become lists of parts, llama.cpp's marks in them pictures."""
MARK = "<__media__>"
"""What llama.cpp writes in a prompt where a picture stands."""


def chat_source(template: Template, pictures: bool) -> str | None:
    """The chat template for the file; None for a model that continues plain text.

    What came with a published tokenizer stays as it is, save that where it places pictures, llama.cpp's mark for one
    goes in as a picture and comes out in place of the placeholder. Before a recipe's own stands what this program does
    itself: the system message, and what stands around questions and pictures.
    """
    if template.chat == NO_CHAT:
        return None
    own = template.system or template.media or template.asks != ("", "")
    if not pictures and not own:
        return template.chat
    pieces = _PIECES.replace("MARK", json.dumps(MARK))
    if "image" in template.placeholder:
        placed = f"{json.dumps(template.placeholder['image'])}, {json.dumps(MARK)}"
        return pieces + "{% set prompt %}" + template.chat + "{% endset %}{{ prompt | replace(" + placed + ") }}"
    before, after = template.media.get("image", ("", ""))
    return pieces + chat_of_parts(template, {"image": before + MARK + after})
