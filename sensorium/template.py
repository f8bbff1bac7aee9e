"""How a conversation is written down: the chat template, rendered around private marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from json import dumps
from typing import Any, Self

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from sensorium.config import Config
from sensorium.errors import UserError
from sensorium.film import Film
from sensorium.sequence import Segment

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MARK = re.compile("\ue000(\\d+)\ue001")


class Template(Config):
    """How a conversation is written down.

    chat     Jinja source in the Hugging Face convention: `messages`, `add_generation_prompt`, `bos_token`, `eos_token`
    system   a system message put first when the sample has none; "" for none
    asks     text before and after the words of a user, for example ("Question: ", " Answer:")
    media    text before and after each item of a kind that is read, not said: {"image": ("<Img>", "</Img>")}
    chats    other Jinja sources, for conversations with items of a kind in them: {"video": ...}
    films    kinds whose items are written frame by frame, each an item by itself, with words between them
    placeholder  of kinds whose items the chat template itself places among the words, what it writes for one, a special
             token: {"image": "<image>"}. Contents are then lists of parts, as processors of multimodal models give them
    marked   of these, kinds whose placeholder is itself a token of the prompt, at which the item stands: what
             cross-attention reads (Idefics). Those of other kinds give way to the item
    ahead    kinds whose items stand before all else, before `begin` and `opens` too, whether the chat template places
             them or not: BLIP-2 puts its queries there
    opens    what a conversation begins with where the chat template does not write it
    bos      what the template finds as `bos_token`
    stop     the special token that ends an assistant's turn, and what the template finds as `eos_token`; "" of models
             that answer in no words
    ends     further tokens of the vocabulary that end an answer: BLIP-2's ends with a line
    start    of an encoder-decoder: the special token that its decoder's text begins with. What stands before the last
             answer (of plain samples: before the last text) is then the source, ended by `plain`
    begin, plain  written around samples without roles instead of the template: a token that language models read first
             and lean on (attention sink, Xiao et al. 2023), and the token that ends
    length, pad  such samples, where there are words in them, are filled with a special token to so many tokens, which
             the model reads like all others (SigLIP's text tower); 0: they are as long as they are
    """

    chat: str = CHATML
    chats: dict[str, str] = {}
    films: dict[str, Film] = {}
    system: str = ""
    asks: tuple[str, str] = ("", "")
    media: dict[str, tuple[str, str]] = {}
    placeholder: dict[str, str] = {}
    marked: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    opens: str = ""
    bos: str = ""
    stop: str = "<|im_end|>"
    ends: tuple[str, ...] = ()
    start: str = ""
    begin: str = "<|im_start|>"
    plain: str = "<|im_end|>"
    length: int = Field(default=0, ge=0)
    pad: str = ""

    def ordered(self, pieces: list[Any], segments: Sequence[Segment]) -> list[Any]:
        """Pieces (template text, and places among `segments`) with the items that stand ahead put first."""
        if not self.ahead:
            return pieces
        first = [one for one in pieces if isinstance(one, int) and segments[one].kind in self.ahead]
        return [*first, *(one for one in pieces if one not in first)]

    @model_validator(mode="after")
    def _ahead_is_bare(self) -> Self:
        marked = sorted(set(self.ahead) & set(self.media))
        if marked:
            raise ValueError(f"{marked} stand ahead of all text, so no text of `media` is around them: leave out one")
        return self


class Chat:
    """The compiled chat template. Raises UserError where it is not valid Jinja."""

    def __init__(self, template: Template) -> None:
        self.template = template
        # as transformers has it, undefined names included: templates ask for `message.tool_calls` where there are none
        extensions = ["jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _json
        try:
            self._source = environment.from_string(template.chat)
            self._sources = {kind: environment.from_string(source) for kind, source in template.chats.items()}
        except TemplateError as error:
            raise UserError(f"the chat template is not valid Jinja: {error}") from error
        every = (template.chat, *template.chats.values())
        self.shows_tools = all("tools" in find_undeclared_variables(environment.parse(one)) for one in every)
        """Whether it writes the tools of a conversation."""

    def pieces(
        self, segments: list[Segment], generate: bool, indices: list[int] | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[Any]:  # fmt: skip
        """Template text (str) and segment indices (int) in the order the template writes them.

        tools  are written as template text: they must not hold special tokens, nor private marks
        """
        indices = list(range(len(segments))) if indices is None else indices
        template = self.template
        turns: list[tuple[str, list[tuple[str, str]]]] = []  # role, parts: kind and text
        for segment, index in zip(segments, indices):
            role = segment.role or "user"
            asked = template.asks if segment.kind == "text" and role == "user" else ("", "")
            before, after = ("", "") if role == "assistant" else template.media.get(segment.kind, asked)
            if not turns or turns[-1][0] != role:
                turns.append((role, []))
            turns[-1][1].append((segment.kind, f"{before}\ue000{index}\ue001{after}"))
        if template.system and turns[0][0] != "system":
            turns.insert(0, ("system", [("text", template.system)]))
        messages = [{"role": role, "content": self._content(parts)} for role, parts in turns]
        given = {"bos_token": template.bos, "eos_token": template.stop, "documents": None}
        given |= {"tools": list(tools) or None}
        kinds = {segment.kind for segment in segments}
        source = next((one for kind, one in self._sources.items() if kind in kinds), self._source)
        try:
            text = source.render(messages=messages, add_generation_prompt=generate, **given)
        except (TemplateError, TypeError, LookupError) as error:
            raise UserError(f"the chat template cannot write this conversation: {error}") from error
        text = text if text.startswith(template.opens) else template.opens + text
        pieces = [int(piece) if place % 2 else piece for place, piece in enumerate(_MARK.split(text)) if piece]
        return self._placed(pieces, segments, indices) if template.placeholder else pieces

    def _content(self, parts: list[tuple[str, str]]) -> str | list[dict[str, str]]:
        """What the chat template gets of a turn: text with marks, or parts."""
        if not self.template.placeholder:
            return "".join(text for _, text in parts)
        return [{"type": "text", "text": text} if kind not in self.template.placeholder else {"type": kind}
                for kind, text in parts]  # fmt: skip

    def _placed(self, pieces: list[Any], segments: list[Segment], indices: list[int]) -> list[Any]:
        """The placeholders that the chat template wrote become items: the first of a kind is the first item of it."""
        names = {text: kind for kind, text in self.template.placeholder.items()}
        left = {kind: [index for segment, index in zip(segments, indices) if segment.kind == kind]
                for kind in self.template.placeholder}  # fmt: skip
        pattern = re.compile(f"({'|'.join(map(re.escape, names))})")
        found: list[Any] = []
        for piece in pieces:
            for text in [piece] if isinstance(piece, int) else pattern.split(piece):
                if text in names and not left[names[text]]:
                    raise UserError(f"the chat template places more items of kind {names[text]} than there are")
                if text in names:
                    found += [text] if names[text] in self.template.marked else []
                    found.append(left[names[text]].pop(0))
                elif text != "":
                    found.append(text)
        found = [*(index for kind in self.template.ahead for index in left.pop(kind, ())), *found]
        lost = sum(map(len, left.values()))
        if lost:
            raise UserError(f"the chat template leaves out {lost} of the items: it writes no "
                            f"{' or '.join(names)} for them")  # fmt: skip
        return found


def _json(value: Any, indent: int | None = None, **how: Any) -> str:
    """As transformers has it: what is written is read by a model, not by a browser."""
    return dumps(value, ensure_ascii=False, indent=indent, **how)


def _refuse(message: str) -> None:
    raise TemplateError(message)
