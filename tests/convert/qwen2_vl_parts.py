"""What the tests of Qwen2-VL share: a small tokenizer, and sizes of a small model."""

import transformers
from published import WORDS, tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
FIRST = WORDS
"""The id of the first of them."""
IMAGE, VIDEO = FIRST + 4, FIRST + 5
CHAT = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template as Qwen2-VL's."""
VISION = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7}
TEXT = {"vocab_size": WORDS + 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip


def words():
    """The small tokenizer, with Qwen2-VL's special tokens and a chat template as its own."""
    made = tokenizer()
    made.chat_template = CHAT
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made


def config(vision, text, **more):
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": FIRST + 2,
           "vision_end_token_id": FIRST + 3}  # fmt: skip
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **ids, **more)
