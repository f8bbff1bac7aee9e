"""Reference models of transformers that read pictures, beside the same models opened here: what must be equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from published import saved, tokenizer
from safetensors.torch import load_file

import sensorium
from sensorium.api import Model, messages_to_sample
from sensorium.convert.published import open_published, write_published

CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""A chat template as LLaVA's: pictures first, then words; the tokenizer writes what begins."""
ROOT = Path(__file__).parents[2]


def pictures() -> list[Image.Image]:
    """Real pictures of odd sizes: drawings and a page of text, wide, tall and small."""
    page = Image.open(ROOT / "docs/quickstart.png").convert("RGB")
    boxes = ((40, 60, 241, 161), (100, 30, 137, 331), (0, 0, 640, 427))
    return [*map(page.crop, boxes), page.resize((97, 61))]


def conversation(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@dataclass
class Both:
    """A published folder, the reference's model and processor of it, and the model opened here."""

    folder: Path
    reference: Any
    processor: Any
    model: Model

    @classmethod
    def make(cls, folder: Path, reference: type, config: Any, processor: Any) -> Both:
        made = saved(reference, config, folder)
        processor.chat_template = processor.tokenizer.chat_template
        if processor.chat_template is None:
            (folder / "chat_template.jinja").unlink()
        processor.save_pretrained(folder)
        return cls(folder, made, processor, sensorium.load(folder, precision="fp32"))

    def theirs(self, messages: list[dict[str, Any]]) -> Any:
        return self.asked(self.processor, messages)

    def asked(self, processor: Any, messages: list[dict[str, Any]]) -> Any:
        """What a processor makes of a conversation."""
        return processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )


def words(chat: str = CHAT) -> transformers.PreTrainedTokenizerFast:
    """The small tokenizer, with a chat template whose contents are parts."""
    made = tokenizer()
    made.chat_template = chat
    return made


def check_prompt(both: Both, messages: list[dict[str, Any]]) -> None:
    """The same ids, and the same pixels to 1e-5 (views of a picture one after another)."""
    theirs = both.theirs(messages)
    sequence = both.model.engine.renderer.render(messages_to_sample(messages), generate=True)
    ids = sequence.ids.clone()
    placeholder = both.processor.tokenizer.convert_tokens_to_ids(str(both.processor.image_token))
    for span in sequence.spans:
        ids[span.start : span.start + span.length] = placeholder
    assert ids.tolist() == theirs["input_ids"][0].tolist()
    items = [item.data for item in sequence.items.get("image", [])]
    if not items:
        assert theirs.get("pixel_values") is None
        return
    pixels = theirs["pixel_values"]
    for ours, expected in zip(items, pixels, strict=True):
        expected = expected if expected.ndim == 4 else expected[None]
        assert len(expected) >= len(ours)
        torch.testing.assert_close(ours, expected[: len(ours)], rtol=0, atol=1e-5)


def check_logits(both: Both, messages: list[dict[str, Any]]) -> float:
    """Logits of every position within 2e-4, except where an item stands; returns the largest difference."""
    with torch.no_grad():
        expected = both.reference(**both.theirs(messages)).logits[0]
    _, logits = both.model.logits(messages)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected.float(), rtol=0, atol=2e-4)
    return float((logits - expected).abs().max())


def check_greedy(both: Both, messages: list[dict[str, Any]]) -> None:
    """The same 20 tokens."""
    prompt = both.theirs(messages)
    with torch.no_grad():
        said = both.reference.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = both.processor.tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert both.model.chat(messages, max_tokens=20) == answer


def check_written(both: Both, folder: Path, messages: list[dict[str, Any]]) -> None:
    """Written back, every tensor is the same to the last bit, and the reference opens model and processor."""
    opened = open_published(both.folder)
    write_published(folder, opened.family, opened.model, opened.tokenizer, opened.template, opened.files)
    before, after = load_file(both.folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = type(both.reference).from_pretrained(folder)
    held, given = (getattr(one, "whole", one).state_dict() for one in (again, both.reference))
    assert held.keys() == given.keys()
    assert all(torch.equal(held[name], given[name]) for name in given)
    processor = type(both.processor).from_pretrained(folder)
    prompt = both.theirs(messages)
    other = both.asked(processor, messages)
    assert prompt.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(prompt[name]), torch.as_tensor(other[name])) for name in prompt)
    with torch.no_grad():  # the same numbers, as sums of several threads are the same
        torch.testing.assert_close(again(**other).logits, both.reference(**prompt).logits, rtol=0, atol=1e-5)
