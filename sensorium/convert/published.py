"""Open a published checkpoint folder as a model here, and write a model here as such a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.convert.family import Family, family_of
from sensorium.convert.files import CONFIG, PIPELINE, Files
from sensorium.convert.keys import Pair, Rule, pairs
from sensorium.convert.stored import Stored, write
from sensorium.convert.words import with_placeholders
from sensorium.errors import UserError
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer

NO_CHAT = "{{ raise_exception('this model has no chat template: it continues plain text') }}"

WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
         "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja")  # fmt: skip
"""Files of a tokenizer."""


@dataclass(slots=True)
class Opened:
    """A published checkpoint.

    tokenizer  None: of a model that reads no text, in a folder without one
    files   what it says beside its tensors
    loaded  how many published tensors fill the model
    spare   names of those that hold nothing of their own
    unread  how many belong to parts that are not opened (a decoder)
    """

    family: Family
    model: Wiring
    tokenizer: Tokenizer | None
    template: Template
    files: Files
    loaded: int
    spare: list[str]
    unread: int = 0

    def summary(self) -> str:
        """One line: missing and unexpected tensors are errors, so of a model that opened there are none."""
        left = f", {self.unread} of parts that are not opened" if self.unread else ""
        return (f"{self.files.folder}: {self.family.name}, {self.loaded} tensors loaded, 0 missing, 0 unexpected, "
                f"{len(self.spare)} that hold nothing of their own{left}")  # fmt: skip


def is_published(folder: Path) -> bool:
    """Whether a folder is laid out as published checkpoints are, and not as a run."""
    return any((folder / name).exists() for name in (CONFIG, PIPELINE)) and not (folder / "recipe.json").exists()


def open_published(folder: Path, dtype: torch.dtype | None = None) -> Opened:
    """The model of a folder with config.json, safetensors and, if it reads text, tokenizer, in evaluation mode.

    Tensors come one at a time. Those that are taken as they are stay mapped from the file, which must then not be
    written over while the model is open. dtype None keeps the stored one.
    Raises UserError for a config that cannot be said here, a tokenizer that does not fit, or tensors that are missing,
    unknown or of another shape: there is then no model, and not half of one.
    """
    said = read_published(folder)
    with blank():
        model = said.config.build()
    loaded, spare = fill_published(model, said, dtype)
    unread = len(said.files.tensors) - loaded - len(spare)
    return Opened(said.family, model.eval(), said.tokenizer, said.template, said.files, loaded, spare, unread)


@dataclass(slots=True)
class Said:
    """What a published folder says of its model, without its weights."""

    family: Family
    config: Wiring.Config
    tokenizer: Tokenizer | None
    template: Template
    files: Files


def read_published(folder: Path) -> Said:
    """Raises UserError for a config that cannot be said here, or a tokenizer that does not fit."""
    files = Files.open(folder)
    family = family_of(files.config)
    with Stored(folder, family.stem, family.parts) as stored:
        files.tensors = frozenset(stored.where)
    config = family.read(files)
    tokenizer, template = files.tokenizer, Template()
    if family.words is not None:
        tokenizer = family.words.read(files, config)
        template = Template(chat=NO_CHAT, stop="", begin="", plain="")
    elif config.reads_text:
        tokenizer = files.words()
        _check_tokenizer(tokenizer, config, folder)
        tokenizer = tokenizer.with_readers(
            {kind: Tokenizer.load(folder / name) for kind, name in family.readers.items()}
        )
        template = family.prompts(files, template_of(tokenizer, folder, _ends(tokenizer, folder)))
        _check_placeholders(family, files, template, tokenizer)
    files.done()
    return Said(family, config, tokenizer, template, files)


def fill_published(model: Wiring, said: Said, dtype: torch.dtype | None = None) -> tuple[int, list[str]]:
    """Give a model of `said.config` the folder's weights: how many tensors fill it, and which hold nothing of theirs.

    Raises UserError for tensors that are missing, unknown or of another shape.
    """
    with Stored(said.files.folder, said.family.stem, said.family.parts) as stored:
        return _fill(model, stored, said.family, dtype)


def _fill(model: Wiring, stored: Stored, family: Family, dtype: torch.dtype | None) -> tuple[int, list[str]]:
    own = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    plan = pairs(family.rules(model.config), own)
    stored.rename(lambda name: today(name, family.older))
    if family.root and not any(name.startswith(family.root) for name in stored.where):
        stored.rename(lambda name: family.root + name)
    used = {name for pair in plan for name in pair.theirs}
    spare = _spare(set(stored.where) - used, family, stored)
    unread = _named(set(stored.where) - used, family.unread)
    missing = sorted(used - set(stored.where))
    unexpected = sorted(set(stored.where) - used - set(spare) - unread)
    if missing or unexpected:
        raise UserError(
            f"{stored.folder}: its config.json describes a model of {len(used)} tensors, its files hold "
            f"{len(stored.where)}; missing: {_some(missing)}; unexpected: {_some(unexpected)}. The files and the "
            "config are not of one model"
        )
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        for pair in plan:
            tensors = [stored.read(name) for name in pair.theirs]
            for name, tensor in pair.into(tensors, shapes).items():
                if not own[name].is_meta:
                    own[name].copy_(tensor)
                    continue
                # as it is, it stays what the file maps: read when it is first used, and never held twice
                tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
                made[name] = tensor.contiguous()
    if made:
        model.load_state_dict(made, assign=True)
    return len(used), spare


def today(name: str, older: tuple[tuple[str, str], ...]) -> str:
    """A tensor's name in the newest release of its layout."""
    for before, after in older:
        if before.startswith("*") and name.endswith(before[1:]):
            return name.removesuffix(before[1:]) + after[1:]
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _spare(names: set[str], family: Family, stored: Stored) -> list[str]:
    """Of the names, those that the family knows to hold nothing of their own: tables that are computed, and copies.

    Raises UserError for a copy that differs.
    """
    found = []
    for name in sorted(names):
        if name in family.copies and family.copies[name] in stored.where:
            if not torch.equal(stored.read(name), stored.read(family.copies[name])):
                raise UserError(f"{stored.folder}: config.json says that {name} is {family.copies[name]}, and in the "
                                "files they differ")  # fmt: skip
            found.append(name)
            continue
        if _named({name}, family.spare):
            found.append(name)
    return found


def _named(names: set[str], templates: tuple[str, ...]) -> set[str]:
    """Those of the names that a template knows."""
    rules = [Rule(one, one) for one in templates]
    found = set()
    for name in names:
        try:
            pairs(rules, [name])
        except ValueError:
            continue
        found.add(name)
    return found


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"


def _check_tokenizer(tokenizer: Tokenizer, config: Wiring.Config, folder: Path) -> None:
    if config.reads_text and tokenizer.vocab_size > config.stack.vocab:
        raise UserError(f"{folder}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, and its config.json a "
                        f"vocabulary of {config.stack.vocab}: they are of different models")  # fmt: skip


def _check_placeholders(family: Family, files: Files, template: Template, tokenizer: Tokenizer) -> None:
    """config.json and the tokenizer must agree on the ids that stand for items."""
    for kind, field in family.tokens.items():
        said, token = files.config.take(field, int, None), template.placeholder[kind]
        if said is not None and said != tokenizer.special[token]:
            raise files.config.error(f"{field} is {said}, and the tokenizer's {token!r} is {tokenizer.special[token]}: "
                                     "they are of different models")  # fmt: skip


def template_of(tokenizer: Tokenizer, folder: Path, ends: tuple[str, ...]) -> Template:
    """The prompt as a tokenizer says it: its chat template, and what it puts around plain text.

    ends  the tokens that end an answer, where there are several
    Raises UserError for a tokenizer that names no token that ends a text.
    """
    begin, end = tokenizer.around()
    stop = _token(tokenizer, tokenizer.eos) or (end if end in tokenizer.special else "")
    if not stop:
        raise UserError(f"{folder}: its tokenizer names no token that ends a text (eos_token), so no answer would end")
    return Template(
        chat=tokenizer.chat_template or NO_CHAT, stop=stop, begin=begin, plain=end or stop,
        bos=_token(tokenizer, tokenizer.bos), ends=ends,
    )  # fmt: skip


def _ends(tokenizer: Tokenizer, folder: Path) -> tuple[str, ...]:
    """The tokens that end an answer, where the folder names several (generation_config.json)."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    try:
        ids = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no JSON object: {error}") from error
    ids = ids if isinstance(ids, list) else [ids] if ids is not None else []
    if not all(isinstance(id, int) and 0 <= id < tokenizer.vocab_size for id in ids):
        raise UserError(f"{path} ends answers with {ids}, and the tokenizer has {tokenizer.vocab_size} tokens")
    return tuple(_token(tokenizer, id) for id in ids)


def _token(tokenizer: Tokenizer, id: int | None) -> str:
    return "" if id is None else tokenizer.token(id) or ""


def write_published(
    folder: Path, family: Family, model: Wiring, tokenizer: Tokenizer | None, template: Template,
    came: Files | None = None,
) -> None:  # fmt: skip
    """Write a model as a folder that transformers opens; it is complete or absent.

    template  says which tokens end an answer
    came      what it once came with, for what changes no number (its longest position, its labels)
    Raises UserError for a model that the family's layout cannot say, or a folder that is there already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: give a folder that is not")
    family.write(model.config)  # what cannot be said is found before anything is made
    _check_readers(family, tokenizer)
    if tokenizer is not None:
        model, tokenizer, template = with_placeholders(family, model, tokenizer, template)
    said = family.write(model.config)
    if said.clips:
        said.clips = {**said.clips, **family.sampling(template)}
    plan = pairs(family.rules(model.config), model.state_dict())
    draft = folder.with_name(f".writing_{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for part in family.parts:
        (draft / part).mkdir(exist_ok=True)
        write(draft / part, _published(model, plan, f"{part}." if part else ""), stem=family.stem)
    roles: dict[str, Any] = {}
    items: dict[str, int] = {}
    if tokenizer is not None and family.words is not None:
        roles = {} if came else family.words.write(tokenizer)
    elif tokenizer is not None and model.config.reads_text:
        roles = _write_words(draft, tokenizer.with_readers({}), template, model.config, came)
        items = {field: tokenizer.special[template.placeholder[kind]] for kind, field in family.tokens.items()}
        _write_readers(draft, family, tokenizer, came)
    if roles and tokenizer is not None and "text_config" in said.config:  # a part begins and ends by its own config
        own = _answers(tokenizer, template) if model.config.speaks else roles
        words = family.marks if model.config.speaks else {}
        marks = {field: tokenizer.special[getattr(template, word)] for field, word in words.items()}
        said.config["text_config"] = {**own, **said.config["text_config"], **marks}
    said.config = {**family.named, **roles, **items, **said.config}
    said.save(draft, came)
    draft.replace(folder)


def _check_readers(family: Family, tokenizer: Tokenizer | None) -> None:
    missing = sorted(set(family.readers) - set(tokenizer.readers if tokenizer else ()))
    if missing:
        raise UserError(f"the layout of {family.name} has the words of a turn read by a tokenizer of the connector's "
                        f"own for {missing}, this model has none: its connector reads the tokens of its language "
                        "model")  # fmt: skip


def _write_readers(draft: Path, family: Family, tokenizer: Tokenizer, came: Files | None) -> None:
    for kind, name in family.readers.items():
        reader = tokenizer.readers[kind]
        reader.save(draft / name)
        if came is not None:
            _keep_words(draft / name, reader, came.folder / name, Tokenizer.load(came.folder / name))


def _write_words(
    draft: Path, tokenizer: Tokenizer, template: Template, config: Wiring.Config, came: Files | None
) -> dict[str, int | None]:
    """The tokenizer, and what ends an answer -> fields of config.json: which ids begin, end and pad.

    A tokenizer that is still the one it came as keeps its files: they say more to other software than is read here.
    """
    roles = {f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")}
    if template.start:
        roles["decoder_start_token_id"] = tokenizer.special[template.start]
    if config.speaks and template.stop in tokenizer.special:
        answers = {**roles, **_answers(tokenizer, template)}
        (draft / "generation_config.json").write_text(json.dumps(answers, indent=2), "utf-8")
    tokenizer.save(draft)
    if template.placeholder and tokenizer.chat_template is not None:
        (draft / "chat_template.jinja").write_text(tokenizer.chat_template, "utf-8")  # where processors look for it
    if came is None or came.tokenizer is None:
        return roles
    _keep_words(draft, tokenizer, came.folder, came.tokenizer)
    return {role: id for role, id in roles.items() if id is not None}


def _keep_words(draft: Path, tokenizer: Tokenizer, folder: Path, before: Tokenizer) -> None:
    """The files of a tokenizer that did not change."""
    if before.fingerprint() == tokenizer.fingerprint():
        for name in WORDS:
            if (folder / name).exists():
                shutil.copyfile(folder / name, draft / name)


def _answers(tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """The ids that begin, end and pad an answer, where there are such."""
    stops = [tokenizer.id(one) for one in dict.fromkeys((template.stop, *template.ends))]
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": stops if len(stops) > 1 else stops[0],
           "pad_token_id": tokenizer.pad, "decoder_start_token_id": tokenizer.special.get(template.start)}  # fmt: skip
    return {role: id for role, id in ids.items() if id is not None}


def _published(model: nn.Module, plan: list[Pair], root: str) -> Iterator[tuple[str, Tensor]]:
    """The published tensors whose names begin with a root, without it."""
    tensors = model.state_dict()
    for pair in plan:
        if pair.theirs[0].startswith(root):
            for name, tensor in pair.back([tensors[name] for name in pair.ours]).items():
                yield name.removeprefix(root), tensor
