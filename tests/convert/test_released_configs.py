"""Configs of released models that read pictures, as their folders have them: with all that they leave out."""

from pathlib import Path

import pytest

from sensorium.convert.family import family_named
from sensorium.convert.files import Files
from sensorium.convert.settings import Settings
from sensorium.nn.blank import blank

CLIP_336 = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
PICTURES = {
    "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336},
}  # fmt: skip
VICUNA = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16",
          "vocab_size": 32064}  # fmt: skip
CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
COMMON = {"ignore_index": -100, "image_token_index": 32000, "projector_hidden_act": "gelu", "torch_dtype": "float16",
          "tie_word_embeddings": False, "vision_config": CLIP_336}  # fmt: skip
LLAVA = {**COMMON, "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "pad_token_id": 32001,
         "text_config": VICUNA, "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2,
         "vision_feature_select_strategy": "default", "vocab_size": 32064}  # fmt: skip
NEXT = {
    **LLAVA, "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next",
    "image_grid_pinpoints": CANVASES, "use_image_newline_parameter": True, "text_config": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "vocab_size": 32064},
}  # fmt: skip
VIP = {**COMMON, "architectures": ["VipLlavaForConditionalGeneration"], "model_type": "vipllava",
       "projector_layernorm_eps": 1e-05, "text_config": VICUNA, "vision_feature_layers": [-2, -5, -8, -11, 6],
       "vocab_size": 32064}  # fmt: skip
PALIGEMMA = {
    "architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048,
    "ignore_index": -100, "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0,
    "projection_dim": 2048, "text_config": {
        "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
        "vocab_size": 257216},
    "torch_dtype": "float32", "transformers_version": "4.41.0.dev0", "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
        "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": False},
}  # fmt: skip
SQUARE = {"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
          "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor", "image_seq_length": 256,
          "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 0.00392156862745098,
          "size": {"height": 224, "width": 224}}  # fmt: skip
CASES = {
    "llava-1.5-7b": ("llava", LLAVA, PICTURES, 7_063_427_072, 576),
    "llava-v1.6-mistral-7b": ("llava_next", NEXT, {**PICTURES, "image_processor_type": "LlavaNextImageProcessor",
                              "image_grid_pinpoints": CANVASES, "do_pad": True}, 7_566_747_648, None),
    "vip-llava-7b": ("vipllava", VIP, PICTURES, None, 576),
    "paligemma-3b-pt-224": ("paligemma", PALIGEMMA, SQUARE, 2_923_466_480, 256),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_released_config_is_the_released_model(name):
    family, config, pictures, parameters, tokens = CASES[name]
    files = Files(Path(name), Settings(config), Settings(pictures), Settings({}))
    files.pictures.skip("image_processor_type", "processor_class")
    made = family_named(family).read(files)
    files.config.skip("image_token_index")
    files.done()
    with blank():
        count = sum(parameter.numel() for parameter in made.build().parameters())
    assert parameters is None or count == parameters
    shown = made.plan("image", (480, 640)).tokens
    assert tokens is None or shown == tokens
