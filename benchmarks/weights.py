"""The same weights in every form that some side of a comparison reads.

SmolLM2-135M-Instruct comes by the package's own routes; from it are written, when first asked for, folders in the
layout of transformers and GGUF files. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIDE, PATCH = 224, 16
"""Of the vision tower, in pixels: 196 tokens a picture."""
IMAGE_TOKEN = "<jupyter_output>"
"""A special token that no prompt here holds: the vocabulary stays as it is."""
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ IMAGE + '\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Weights:
    """Folders and files below `root`, each written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    @contextmanager
    def at(cls, folder: Path | None) -> Iterator[Weights]:
        """In a folder that stays, or in one of its own that goes."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            yield cls(folder.absolute())
            return
        with tempfile.TemporaryDirectory(prefix="weights-") as place:
            yield cls(Path(place))

    def text(self, precision: str = "fp32") -> Path:
        """The language model as transformers writes it, fp32 or bf16."""
        folder = self.root / f"smollm2-{precision}"
        if not folder.exists():
            self._publish(folder, precision)
        return folder

    def gguf(self, numbers: str) -> Path:
        """The language model for llama.cpp: f32, bf16, q8_0 as `sensorium convert` writes them; q4_1: the file that
        all the others were made from."""
        if numbers == "q4_1":
            return self._source()
        path = self.root / f"smollm2-{numbers}.gguf"
        if not path.exists():
            from sensorium.convert.gguf import open_gguf
            from sensorium.convert.gguf_write import write_gguf

            write_gguf(path, *open_gguf(self._source()), numbers=numbers, context=8192)
        return path

    def pictures(self, precision: str = "fp32") -> Path:
        """The language model behind a vision tower of the shape of CLIP ViT-B/16 in LLaVA's layout; tower and projector
        are random."""
        folder = self.root / f"llava-{precision}"
        if not folder.exists():
            draft = self.root / f"writing-{folder.name}"
            shutil.rmtree(draft, ignore_errors=True)
            _llava(self.text("fp32"), draft, precision)
            draft.rename(folder)
        return folder

    @staticmethod
    def _source() -> Path:
        from sensorium.hub.catalog import SMOLLM2_135M_INSTRUCT
        from sensorium.hub.fetching import fetch

        return fetch(SMOLLM2_135M_INSTRUCT)

    def _publish(self, folder: Path, precision: str) -> None:
        import torch

        from sensorium.convert.family import family_named
        from sensorium.convert.gguf import open_gguf
        from sensorium.convert.published import write_published

        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        model, tokenizer, template = open_gguf(self._source(), dtype)
        write_published(folder, family_named("llama"), model, tokenizer, template)


def _llava(text: Path, folder: Path, precision: str) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.chat_template = CHAT.replace("IMAGE", repr(IMAGE_TOKEN))
    language: Any = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    vision = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                              image_size=SIDE, patch_size=PATCH)  # fmt: skip
    token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = LlavaConfig(vision_config=vision, text_config=language.config, image_token_index=token,
                         image_seq_length=(SIDE // PATCH) ** 2, tie_word_embeddings=True)  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.to(torch.float32 if precision == "fp32" else torch.bfloat16).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)  # fmt: skip
