"""PaliGemma of transformers with Gemma and Gemma 2, opened here and written back, on real pictures of odd sizes."""

from dataclasses import dataclass

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_prompt, check_written, conversation, pictures, words
from published import WORDS

from sensorium.api import messages_to_sample
from sensorium.mask import compile_layout

TOWER = {"hidden_size": 40, "intermediate_size": 66, "num_hidden_layers": 2, "num_attention_heads": 5,
         "image_size": 30, "patch_size": 7, "vision_use_head": False}  # fmt: skip
GEMMA = {"vocab_size": WORDS + 1 + 1024 + 128, "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 14, "bos_token_id": 256, "eos_token_id": 257,
         "pad_token_id": 258}  # fmt: skip
GEMMA2 = {**GEMMA, "num_key_value_heads": 2, "sliding_window": 6, "query_pre_attn_scalar": 20,
          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0}  # fmt: skip


@dataclass
class Asked(Both):
    """Prompts go through the processor itself: it has no chat template."""

    def asked(self, processor, messages):
        parts = messages[0]["content"]
        images = [part["image"] for part in parts if part["type"] == "image"]
        text = "<image>" * len(images) + "".join(part["text"] for part in parts if part["type"] == "text")
        made = processor(images=[images], text=[text], return_tensors="pt")
        made.pop("labels", None)
        return made


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def both(request, tmp_path_factory):
    kind, sizes = (transformers.GemmaConfig, GEMMA) if request.param == "gemma" else (transformers.Gemma2Config, GEMMA2)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**TOWER), text_config=kind(**sizes),
        projection_dim=48, hidden_size=48, image_token_index=259,
    )  # fmt: skip
    shown = transformers.SiglipImageProcessorPil(size={"height": 30, "width": 30})
    shown.image_seq_length = 16
    made = words()
    made.chat_template = None
    processor = transformers.PaliGemmaProcessor(shown, made)
    folder = tmp_path_factory.mktemp("published") / "model"
    return Asked.make(folder, transformers.PaliGemmaForConditionalGeneration, config, processor)


PROMPTS = {
    "one": conversation("caption en", pictures()[0]),
    "several": conversation("detect the difference", *pictures()[1:]),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_pixels_logits_and_greedy_text_are_the_references(both, prompt):
    check_prompt(both, PROMPTS[prompt])
    check_logits(both, PROMPTS[prompt])
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])


def test_in_training_the_prompt_is_read_both_ways_and_the_answer_is_not(both):
    messages = [*PROMPTS["one"], {"role": "assistant", "content": "ab"}]
    sequence = both.model.engine.renderer.render(messages_to_sample(messages))
    mask = compile_layout(sequence, both.model.network.config.rule).mask[0, 0]
    said = sequence.weight > 0
    first = int(said.nonzero()[0, 0])
    assert int(said.sum()) == 3  # two letters, and the token that ends
    assert mask[:first, :first].all()
    assert not mask[:first, first:].any()
    assert torch.equal(mask[first:, first:], torch.ones_like(mask[first:, first:]).tril())
