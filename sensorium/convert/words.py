"""What a published layout needs among the words that a model trained here did without: tokens that stand for items."""

from __future__ import annotations

import json

import torch

from sensorium.convert.layout import Family
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer

_PARTS = """\
{%- set turns = namespace(all=[]) -%}
{%- for message in messages -%}
{%- set turn = namespace(text='') -%}
{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] in MARKS -%}{%- set turn.text = turn.text + MARKS[part['type']] -%}
{%- elif message['role'] == 'user' -%}{%- set turn.text = turn.text + BEFORE + part['text'] + AFTER -%}
{%- else -%}{%- set turn.text = turn.text + part['text'] -%}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- set turns.all = turns.all + [{'role': message['role'], 'content': turn.text}] -%}
{%- endfor -%}
{%- if SYSTEM and turns.all[0]['role'] != 'system' -%}
{%- set turns.all = [{'role': 'system', 'content': SYSTEM}] + turns.all -%}
{%- endif -%}
{%- set messages = turns.all -%}
"""
"""Contents that are lists of parts become text, with what stands for each item; the chat template then follows."""


def with_placeholders(
    family: Family, model: Wiring, tokenizer: Tokenizer, template: Template
) -> tuple[Wiring, Tokenizer, Template]:
    """A model, its tokenizer and its prompt with a token for each kind of item that the family marks by one.

    Where the vocabulary has no room for a token, it grows by a row of zeros, whose logit is 0; the model is a new one
    then. The chat template gets contents as lists of parts, and the prompt is the same otherwise.
    """
    lacking = {kind: f"<{kind}>" for kind in family.tokens if kind not in template.placeholder}
    if not lacking:
        return model, tokenizer, template
    marks = {}
    for kind, token in lacking.items():
        before, after = template.media.get(kind, ("", ""))
        marks[kind] = f"{before}{token}{after}"
    chat = chat_of_parts(template, marks)
    template = template.replace(
        chat=chat, placeholder={**template.placeholder, **lacking}, media={}, system="", asks=("", "")
    )
    tokenizer = tokenizer.add_special(list(lacking.values())).with_template(chat)
    return _grown(model, len(tokenizer)), tokenizer, template


def chat_of_parts(template: Template, marks: dict[str, str]) -> str:
    """The chat template of contents that are lists of parts, with the system message and what stands around questions.

    marks  by kind, what stands for an item
    """
    said = {"MARKS": marks, "SYSTEM": template.system, "BEFORE": template.asks[0], "AFTER": template.asks[1]}
    named = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in said.items())
    return named + _PARTS + template.chat


@torch.no_grad()
def _grown(model: Wiring, words: int) -> Wiring:
    """The model with room for so many words."""
    assert isinstance(model, Fused)
    if words <= model.config.backbone.vocab:
        return model
    config = model.config.replace(backbone=model.config.backbone.replace(vocab=words))
    with blank():
        grown = config.build()
    tensors = model.state_dict()
    for name, wanted in grown.state_dict().items():
        held = tensors[name]
        if held.shape != wanted.shape:
            tensors[name] = torch.cat([held, held.new_zeros(wanted.shape[0] - held.shape[0], *held.shape[1:])])
    grown.load_state_dict(tensors, assign=True)
    return grown.eval()
