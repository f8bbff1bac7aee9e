"""CLIP and SigLIP of transformers, small: their folders, and what reads them here."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import saved
from tokenizers import processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import sensorium
from sensorium.api import Model
from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import byte_symbols

MERGES = [("c", "a"), ("ca", "t</w>"), ("a", "n"), ("an", "d</w>"), ("i", "n"), ("in", "g</w>")]


def clip_tokenizer():
    """CLIP's own pipeline over bytes, those that end a word, and a few merges."""
    symbols = list(byte_symbols().values())
    words = [*symbols, *(f"{one}</w>" for one in symbols), *map("".join, MERGES), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: id for id, word in enumerate(words)}, merges=MERGES)


def gemma_tokenizer():
    """SigLIP 2's: lower case, words that begin with a mark, bytes for the rest, an end token, padding on the right."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)),
             "▁", *"abcdefghijklmnopqrstuvwxyz.,", "ca", "cat", "▁cat"]  # fmt: skip
    made = transformers.Siglip2Tokenizer(
        vocab={word: id for id, word in enumerate(words)}, merges=[("c", "a"), ("ca", "t"), ("▁", "cat")],
        padding_side="right", model_input_names=["input_ids"],
    )  # fmt: skip
    end = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    made.backend_tokenizer.post_processor = end
    return made


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 77}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
FLEX = {**{name: value for name, value in VISION.items() if name != "image_size"}, "num_patches": 16}
CASES = {
    "clip": ("CLIP", TEXT, VISION, {"projection_dim": 32}),
    "clip, odd": ("CLIP", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                           "hidden_act": "gelu", "layer_norm_eps": 1e-3, "max_position_embeddings": 61},
                  {**VISION, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "image_size": 30,
                   "patch_size": 10, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 37},
                  {"projection_dim": 23, "logit_scale_init_value": 5.5}),
    "siglip": ("Siglip", {**TEXT, "max_position_embeddings": 64}, VISION, {}),
    "siglip, odd": ("Siglip", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                               "hidden_act": "relu", "max_position_embeddings": 50, "projection_size": 60},
                    {**VISION, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "image_size": 30,
                     "patch_size": 10, "hidden_act": "quick_gelu", "intermediate_size": 37, "layer_norm_eps": 1e-3},
                    {}),
    "siglip2": ("Siglip2", {**TEXT, "max_position_embeddings": 64}, FLEX, {}),
    "siglip2, odd": ("Siglip2", {**TEXT, "hidden_size": 42, "num_attention_heads": 3, "num_hidden_layers": 1,
                                 "max_position_embeddings": 50, "projection_size": 60, "layer_norm_eps": 1e-3},
                     {**FLEX, "hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 3, "patch_size": 6,
                      "num_patches": 25, "hidden_act": "relu", "intermediate_size": 37}, {}),
}  # fmt: skip
TEXTS = ("a photo of a cat", "Two birds sit\n on a  wire, and one is singing.", "É")


def processed(kind, vision):
    """The reference's way of preparing pictures."""
    if kind == "Siglip2":  # more patches than positions were learned for, in one of the cases fewer
        return Siglip2ImageProcessorPil(patch_size=vision["patch_size"], max_num_patches=20)
    side = vision["image_size"]
    square = {"height": side, "width": side}
    if kind == "CLIP":
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return SiglipImageProcessorPil(size=square)


@dataclass
class Pair:
    folder: Path
    reference: torch.nn.Module
    processor: Any
    model: Model

    @classmethod
    def make(cls, case, folder):
        kind, text, vision, more = CASES[case]
        words = clip_tokenizer() if kind == "CLIP" else gemma_tokenizer()
        ids = {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        if kind != "CLIP":
            text = {"projection_size": vision["hidden_size"], **text}
        config = getattr(transformers, f"{kind}Config")(text_config={**text, **ids}, vision_config=vision, **more)
        reference = saved(getattr(transformers, f"{kind}Model"), config, folder)
        if kind != "CLIP":  # as published models have them, not as random ones
            torch.nn.init.constant_(reference.logit_scale, 4.7)
            torch.nn.init.constant_(reference.logit_bias, -16.5)
            reference.save_pretrained(folder)
        processor = getattr(transformers, f"{kind}Processor")(processed(kind, vision), words)
        processor.save_pretrained(folder)
        return cls(folder, reference, processor, sensorium.load(folder, precision="fp32"))

    @property
    def fills(self):
        """To how many tokens texts are filled, as SigLIP's are; 0: only to the longest, and it is not seen."""
        own = self.reference.config
        return 0 if own.model_type == "clip" else own.text_config.max_position_embeddings

    def inputs(self, texts, images, processor=None):
        filled = {"padding": "max_length", "max_length": self.fills} if self.fills else {"padding": True}
        if self.reference.config.model_type == "siglip2":  # this processor leaves the settings of its folder aside
            eyes = self.processor.image_processor
            filled |= {"patch_size": eyes.patch_size, "max_num_patches": eyes.max_num_patches}
        return (processor or self.processor)(text=list(texts), images=images, return_tensors="pt", **filled)

    def ids(self, text):
        return self.model.engine.renderer.render(Sample((Segment("text", text),))).ids.tolist()


def changed(folder, target, **fields):
    """A copy of a folder whose config.json has other fields in one of its parts."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        if isinstance(value, dict):
            config[name] = {**config.get(name, {}), **value}
        else:
            config[name] = value
    path.write_text(json.dumps(config))
    return target


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        sensorium.load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)
