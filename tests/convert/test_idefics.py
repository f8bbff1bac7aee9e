"""Idefics of transformers, opened here and written back, on real pictures of odd sizes."""

import json

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_written, conversation, pictures, words

from sensorium.api import messages_to_sample
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published
from sensorium.errors import UserError
from sensorium.mask import AttentionRule, compile_layout

AROUND, OVER = "<fake_token_around_image>", "<end_of_utterance>"
OLD = 259
"""Words of the language model; <image> and others were added."""
VISION = {"embed_dim": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
          "patch_size": 7}  # fmt: skip
LLAMA = {"vocab_size": OLD, "additional_vocab_size": 4, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 256, "eos_token_id": 257,
         "pad_token_id": 258}  # fmt: skip
CHAT = (
    "{% for message in messages %}{{ message['role'] + '=' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ MARK }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '|' }}{% endif %}"
).replace("MARK", f"('' if loop.index0 else '{AROUND}') + '<image>{AROUND}'")


class Interleaved(Both):
    """The processor takes words and pictures one after another."""

    def asked(self, processor, messages):
        first, last = ("user=", "|") if processor.tokenizer.chat_template else ("User:", "\nAssistant:")
        over = OVER if OVER in processor.tokenizer.get_vocab() and last != "|" else ""
        prompt = []
        for message in messages:
            images = [part["image"] for part in message["content"] if part["type"] == "image"]
            [text] = [part["text"] for part in message["content"] if part["type"] == "text"]
            begin = first if message is messages[0] else "\n" * (last != "|") + first
            if message["role"] == "assistant":
                begin = begin.replace("User", "Assistant").replace("user", "assistant")
            space = " " if not images and last != "|" else ""
            prompt += [begin, *images, text + over] if images else [begin + space + text + over]
        # the processor strips spaces around words, and joins them
        return processor(text=[[*prompt[:-1], prompt[-1] + last]])


def idefics(config, side, *tokens, chat=None):
    tokenizer = words(chat)
    tokenizer.add_special_tokens({"additional_special_tokens": [AROUND, *tokens]})
    pictured = transformers.IdeficsImageProcessorPil(image_size=side)
    processor = transformers.IdeficsProcessor(pictured, tokenizer, image_size=side)
    return transformers.IdeficsForVisionText2Text, transformers.IdeficsConfig(**config), processor


def scalar():
    """No resampler, a gate for each layer, every second block reads."""
    return idefics({**LLAMA, "vision_config": VISION, "cross_layer_interval": 2}, 28)


def vector():
    """A resampler with norms, a gate for each channel, norms of queries and keys, tied words, a view that patches do
    not fill, a chat template of its own."""
    perceiver = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 7,
                 "qk_layer_norms_perceiver": True}  # fmt: skip
    vision = {**VISION, "embed_dim": 40, "num_attention_heads": 5, "intermediate_size": 66, "image_size": 30,
              "hidden_act": "quick_gelu", "layer_norm_eps": 1e-4}  # fmt: skip
    config = {**LLAMA, "hidden_size": 60, "num_attention_heads": 6, "num_hidden_layers": 3, "hidden_act": "gelu",
              "rms_norm_eps": 1e-4, "alpha_type": "vector", "qk_layer_norms": True, "use_resampler": True,
              "cross_layer_interval": 1, "tie_word_embeddings": True, "rope_parameters": {
                  "rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}  # fmt: skip
    return idefics({**config, "vision_config": vision, "perceiver_config": perceiver}, 30, chat=CHAT)


def plain_words():
    """A resampler without norms; no words were added; turns end with a token."""
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    config = {**LLAMA, "vocab_size": 271, "additional_vocab_size": 0, "cross_layer_interval": 4, "use_resampler": True}
    return idefics({**config, "vision_config": VISION, "perceiver_config": perceiver}, 28, OVER)


@pytest.fixture(scope="module", params=[scalar, vector, plain_words], ids=lambda one: one.__name__)
def both(request, tmp_path_factory):
    return Interleaved.make(tmp_path_factory.mktemp("published") / "model", *request.param())


PROMPTS = {
    "text": conversation("What is two and two?"),
    "one": conversation("What is this?", pictures()[0]),
    "several": conversation("Compare them.", *pictures()),
    "turns": [
        *conversation("What is this?", pictures()[1]),
        {"role": "assistant", "content": [{"type": "text", "text": "A page."}]},
        *conversation("And these?", *pictures()[2:]),
    ],
}


def rendered(both, messages):
    return both.model.engine.renderer.render(messages_to_sample(messages), generate=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_pixels_and_who_reads_which_picture_are_the_processors(both, prompt):
    theirs, sequence = both.theirs(PROMPTS[prompt]), rendered(both, PROMPTS[prompt])
    assert sequence.ids.tolist() == theirs["input_ids"][0].tolist()
    layout = compile_layout(sequence, both.model.network.config.rule)
    reads = theirs["image_attention_mask"][0].bool()
    if prompt == "text":
        assert not reads.any()
        assert layout.memory is None
        return
    views = torch.cat([item.data for item in sequence.items["image"]])
    torch.testing.assert_close(views, theirs["pixel_values"][0], rtol=0, atol=1e-5)
    memory = layout.memory
    seen = torch.stack([memory.mask[0, 0][:, memory.spans == number].any(1) for number in range(len(views))], 1)
    sees = torch.ones(len(seen), dtype=torch.bool) if memory.sees is None else memory.sees
    assert torch.equal(seen & sees[:, None], reads)
    assert not bool(sees.all())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    check_logits(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_references(both, prompt):
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])


def test_what_the_layout_cannot_say_is_refused(both):
    family = family_named("idefics")
    model = both.model.network.config
    cross = model.backbone.block.cross
    tower, plain = model.encoders["image"], model.backbone.block.replace(cross=None)

    def reading(**changes):
        block = model.backbone.block.replace(cross=cross.replace(**changes))
        return model.replace(backbone=model.backbone.replace(block=block))

    for other, reason in (
        (reading(ffn_on="readers"), "cross.ffn_on is 'readers'"),
        (reading(place="between"), "cross.place is 'between'"),
        (model.replace(rule=AttentionRule(memory="before")), "read the latest picture"),
        (model.replace(memory=(), backbone=model.backbone.replace(block=plain)), "read the latest picture"),
        (model.replace(encoders={"image": tower.replace(normed=True)}), "normed=True"),
    ):
        with pytest.raises(UserError, match=reason):
            family.write(other)


def test_contradictory_folders_are_refused(tmp_path):
    folder = Interleaved.make(tmp_path / "model", *scalar()).folder
    config = json.loads((folder / "config.json").read_text())
    for changes, reason in (
        ({"cross_layer_interval": 3}, "cross_layer_interval 3 does not divide num_hidden_layers 4"),
        ({"alpha_type": "matrix"}, "alpha_type is 'matrix'"),
        ({"vision_config": {**VISION, "image_size": 35}}, "28 pixels wide, and the vision tower .* reads 35"),
        ({"additional_vocab_size": 6}, "additional_embedding.weight"),
        ({"vision_config": {**VISION, "depths": 3}}, "unknown field 'depths'"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=reason):
            open_published(folder)


def test_files_of_older_releases_open_as_the_same_model(tmp_path):
    """Fields that no number comes from, and pictures whose size has the older word alone."""
    both = Interleaved.make(tmp_path / "model", *vector())
    config = json.loads((both.folder / "config.json").read_text())
    config["vision_config"] |= {"vision_model_name": "a CLIP", "model_type": "idefics"}
    config["perceiver_config"]["use_resampler"] = False
    del config["rope_parameters"]
    config |= {"ffn_dim": 64, "max_new_tokens": 128, "word_embed_proj_dim": 16,
               "cross_layer_activation_function": "swiglu", "rope_scaling": {"type": "linear", "factor": 2.0},
               "rope_theta": 5000.0}  # fmt: skip
    (both.folder / "config.json").write_text(json.dumps(config))
    (both.folder / "processor_config.json").unlink()
    pictured = {"image_processor_type": "IdeficsImageProcessor", "image_num_channels": 3, "image_size": 30}
    (both.folder / "preprocessor_config.json").write_text(json.dumps(pictured))
    assert open_published(both.folder).model.config == both.model.network.config
    (both.folder / "preprocessor_config.json").write_text(json.dumps({**pictured, "image_size": 28}))
    with pytest.raises(UserError, match="28 pixels wide"):
        open_published(both.folder)
