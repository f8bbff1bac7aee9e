"""LLaVA, LLaVA-NeXT and VipLLaVA of transformers, opened here and written back, on real pictures of odd sizes."""

import pytest
import transformers
from multimodal import Both, check_greedy, check_logits, check_prompt, check_written, conversation, pictures, words
from published import WORDS

CLIP = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 7, "projection_dim": 16}  # fmt: skip
SIGLIP = {"hidden_size": 40, "intermediate_size": 66, "num_hidden_layers": 2, "num_attention_heads": 5,
          "image_size": 30, "patch_size": 7, "vision_use_head": False}  # fmt: skip
LLAMA = {"vocab_size": WORDS + 3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
QWEN = {**LLAMA, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3}
IMAGE = 259
"""<image> of the small tokenizer."""


def clip_pictures(name="CLIP", **changes):
    options = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, **changes}
    return getattr(transformers, f"{name}ImageProcessorPil")(**options)


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**LLAMA),
        image_token_index=IMAGE,
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        clip_pictures(), words(), patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return transformers.LlavaForConditionalGeneration, config, processor


def llava_odd():
    """SigLIP, whose last patches are cut off; Qwen2; several layers; no biases in the projector."""
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**SIGLIP), text_config=transformers.Qwen2Config(**QWEN),
        image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
        multimodal_projector_bias=False,
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        transformers.SiglipImageProcessorPil(size={"height": 30, "width": 30}), words(), patch_size=7,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration, config, processor


def llava_layers():
    """Two layers of a tower, class tokens kept."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**LLAMA),
        image_token_index=IMAGE, vision_feature_layer=[-1, 1], vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        clip_pictures(), words(), patch_size=7, vision_feature_select_strategy="full", num_additional_image_tokens=1
    )
    return transformers.LlavaForConditionalGeneration, config, processor


def llava_next():
    canvases = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), image_token_index=IMAGE, image_grid_pinpoints=canvases,
        text_config=transformers.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=None),
    )  # fmt: skip
    processor = transformers.LlavaNextProcessor(
        clip_pictures("LlavaNext", image_grid_pinpoints=canvases), words(), patch_size=7,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration, config, processor


def vipllava():
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**{**CLIP, "num_hidden_layers": 5}),
        text_config=transformers.LlamaConfig(**LLAMA), image_token_index=IMAGE, vision_feature_layer=[-2, -4, 1],
        projector_layernorm_eps=1e-4,
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        clip_pictures(), words(), patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return transformers.VipLlavaForConditionalGeneration, config, processor


@pytest.fixture(
    scope="module", params=[llava, llava_odd, llava_layers, llava_next, vipllava], ids=lambda one: one.__name__
)
def both(request, tmp_path_factory):
    return Both.make(tmp_path_factory.mktemp("published") / "model", *request.param())


PROMPTS = {
    "text": conversation("What is two and two?"),
    "one": conversation("What is this?", pictures()[0]),
    "several": conversation("Compare them.", *pictures()),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_and_pixels_are_the_processors(both, prompt):
    check_prompt(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    check_logits(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_references(both, prompt):
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])
