"""Qwen2-VL of transformers, opened here and written back, on real pictures of odd sizes."""

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_written, conversation, pictures, words
from published import WORDS

from sensorium.api import messages_to_sample

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
FIRST = WORDS
"""The id of the first of them."""
IMAGE, VIDEO = FIRST + 4, FIRST + 5
CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template as Qwen2-VL's."""
VISION = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7}
TEXT = {"vocab_size": WORDS + 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip


class Processor(transformers.Qwen2VLProcessor):
    """The reference's, without what prepares clips: that needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.image_token_id = "<|image_pad|>", IMAGE
        self.video_token, self.video_token_id = "<|video_pad|>", VIDEO
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def processor(**changes):
    tokenizer = words(CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return Processor(transformers.Qwen2VLImageProcessorPil(**changes), tokenizer)


def config(vision, text, **more):
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": FIRST + 2,
           "vision_end_token_id": FIRST + 3}  # fmt: skip
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **ids, **more)


def plain():
    """Pictures of 8 to 60 tokens: most are made smaller, one larger."""
    size = {"shortest_edge": 8 * 14**2, "longest_edge": 60 * 14**2}
    return config(VISION, TEXT, tie_word_embeddings=True), processor(patch_size=7, size=size)


def odd():
    """Three key-value heads of six, 3 x 3 cells a token, one frame a patch, other pictures, a head of its own."""
    vision = {**VISION, "embed_dim": 60, "hidden_size": 72, "num_heads": 5, "mlp_ratio": 3, "patch_size": 5,
              "spatial_merge_size": 3, "temporal_patch_size": 1, "hidden_act": "gelu"}  # fmt: skip
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 3e4,
            "mrope_section": [1, 2, 3]}  # fmt: skip
    text = {**TEXT, "hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_parameters": rope,
            "rms_norm_eps": 1e-4, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}  # fmt: skip
    pixels = {"size": {"shortest_edge": 3 * 15**2, "longest_edge": 33 * 15**2}, "resample": 3}
    eyes = {"patch_size": 5, "merge_size": 3, "temporal_patch_size": 1}
    return config(vision, text), processor(**pixels, **eyes, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])


@pytest.fixture(scope="module", params=[plain, odd], ids=lambda one: one.__name__)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    return Both.make(folder, transformers.Qwen2VLForConditionalGeneration, *request.param())


PROMPTS = {
    "text": conversation("What is two and two?"),
    "one": conversation("What is this?", pictures()[0]),
    "several": conversation("Compare them.", *pictures()),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_pixels_and_places_are_the_references(both, prompt):
    theirs = both.theirs(PROMPTS[prompt])
    sequence = both.model.engine.renderer.render(messages_to_sample(PROMPTS[prompt]), generate=True)
    ids = sequence.ids.clone()
    for span in sequence.spans:
        ids[span.start : span.start + span.length] = IMAGE
    assert ids.tolist() == theirs["input_ids"][0].tolist()
    if prompt == "text":
        assert not sequence.items and "pixel_values" not in theirs
        return
    grids, eyes = theirs["image_grid_thw"], both.processor.image_processor
    rows = theirs["pixel_values"].split(grids.prod(-1).tolist())
    for item, cut, grid in zip(sequence.items["image"], rows, grids.tolist(), strict=True):
        pixels = whole(cut, grid, eyes.patch_size, eyes.merge_size, eyes.temporal_patch_size)
        torch.testing.assert_close(item.data.expand_as(pixels), pixels, rtol=0, atol=1e-5)
    types = theirs["mm_token_type_ids"]
    places, _ = both.reference.model.get_rope_index(theirs["input_ids"], types, image_grid_thw=grids)
    assert torch.equal(sequence.position, places[:, 0].T)


def whole(rows, grid, patch, merge, frames):
    """Patches as the processor orders them, (N, 3 * frames * patch * patch) -> (frames, 3, H, W)."""
    _, height, width = grid
    cut = rows.view(height // merge, width // merge, merge, merge, 3, frames, patch, patch)
    return cut.permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(frames, 3, height * patch, width * patch)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    check_logits(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_references(both, prompt):
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])
