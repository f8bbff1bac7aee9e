"""Kosmos-2 of transformers, opened here and written back, on real pictures of odd sizes."""

import json

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_written, conversation, pictures, words
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sensorium.api import messages_to_sample
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published
from sensorium.errors import UserError

VISION = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 7}  # fmt: skip
TEXT = {"vocab_size": 400, "embed_dim": 64, "ffn_dim": 96, "layers": 2, "attention_heads": 4,
        "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip


class Captions(Both):
    """The processor takes one picture before the words; of several, their places are written by hand."""

    def asked(self, processor, messages):
        [message] = messages
        images = [part["image"] for part in message["content"] if part["type"] == "image"]
        [text] = [part["text"] for part in message["content"] if part["type"] == "text"]
        count = self.reference.config.latent_query_num
        if len(images) < 2:
            return processor(images=images or None, text=text, num_image_tokens=count, return_tensors="pt")
        whole = [processor(images=image, text=text, num_image_tokens=count, return_tensors="pt") for image in images]
        last, start = whole[-1], count + 3  # <s>, the marks around the picture
        ids, mask = (
            torch.cat([last[name][:, :1], *(one[name][:, 1:start] for one in whole[:-1]), last[name][:, 1:]], 1)
            for name in ("input_ids", "image_embeds_position_mask")
        )  # the mark of a picture swallows the space before it
        views = torch.cat([one["pixel_values"] for one in whole])
        return {"pixel_values": views, "input_ids": ids, "attention_mask": torch.ones_like(ids),
                "image_embeds_position_mask": mask}  # fmt: skip


class Reference:
    """Without a picture the reference's language model is asked by itself: the whole demands one."""

    def __init__(self, whole):
        self.whole, self.config = whole, whole.config

    def __call__(self, **prompt):
        return (self.whole if "pixel_values" in prompt else self.whole.text_model)(**prompt)

    def generate(self, **prompt):
        return (self.whole if "pixel_values" in prompt else self.whole.text_model).generate(**prompt)

    @classmethod
    def from_pretrained(cls, folder):
        return cls(transformers.Kosmos2ForConditionalGeneration.from_pretrained(folder))


def letters():
    """As the released tokenizer: SentencePiece's unigrams, where a word begins with a mark of the space before it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*special, "\u2581", *map(chr, range(33, 127)), "\u2581An", "\u2581a", "age", "\u2581of"]
    backend = Tokenizer(models.Unigram([(one, -2.0 - (len(one) == 1)) for one in pieces], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def kosmos(vision, text, latents, tokenizer, tied=True):
    processor = transformers.Kosmos2Processor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": vision["image_size"]},
            crop_size={"height": vision["image_size"], "width": vision["image_size"]},
        ),
        tokenizer, num_patch_index_tokens=16,
    )  # fmt: skip
    config = transformers.Kosmos2Config(
        vision_config=vision, text_config={**text, "tie_word_embeddings": tied}, latent_query_num=latents,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.Kosmos2ForConditionalGeneration, config, processor


def plain():
    tokenizer = words(None)
    tokenizer.add_special_tokens({"unk_token": "<end>"})
    return kosmos(VISION, TEXT, 5, tokenizer)


def odd():
    """An odd width of positions, words without a scale, a head of its own, other activations and epsilons; unigrams."""
    vision = {**VISION, "hidden_size": 40, "num_attention_heads": 5, "image_size": 30, "hidden_act": "gelu",
              "layer_norm_eps": 1e-4}  # fmt: skip
    text = {**TEXT, "embed_dim": 63, "attention_heads": 3, "scale_embedding": False, "layer_norm_eps": 1e-3,
            "activation_function": "gelu_pytorch_tanh", "bos_token_id": 0, "pad_token_id": 1,
            "eos_token_id": 2}  # fmt: skip
    return kosmos(vision, text, 9, letters(), tied=False)


@pytest.fixture(scope="module", params=[plain, odd], ids=lambda one: one.__name__)
def both(request, tmp_path_factory):
    made = Captions.make(tmp_path_factory.mktemp("published") / "model", *request.param())
    made.reference = Reference(made.reference)
    return made


GROUNDED = "<grounding> An image of<phrase> a page</phrase><object><patch_index_0003><patch_index_0015></object> and"
PROMPTS = {
    "text": conversation("What is two and two?"),
    "one": conversation("An image of", pictures()[0]),
    "grounded": conversation(GROUNDED, pictures()[1]),
    "several": conversation("Compare them.", *pictures()),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_and_pixels_are_the_processors(both, prompt):
    theirs = both.theirs(PROMPTS[prompt])
    sequence = both.model.engine.renderer.render(messages_to_sample(PROMPTS[prompt]), generate=True)
    places = torch.zeros(len(sequence), dtype=torch.long)
    for span in sequence.spans:
        places[span.start : span.start + span.length] = 1
    ids = theirs["input_ids"][0]
    assert len(sequence) == len(ids)
    assert torch.equal(sequence.ids[places == 0], ids[places == 0])
    if prompt == "text":
        assert "pixel_values" not in theirs
        return
    assert torch.equal(places, theirs["image_embeds_position_mask"][0])
    views = torch.cat([item.data for item in sequence.items["image"]])
    torch.testing.assert_close(views, theirs["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    check_logits(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_references(both, prompt):
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["grounded"])


def test_what_the_layout_cannot_say_is_refused(both):
    family, model = family_named("kosmos-2"), both.model.network.config
    backbone, latents, tower = model.backbone, model.connectors["image"], model.encoders["image"]
    attention = backbone.block.attention.replace(inner_norm=None)
    for other, reason in (
        (model.replace(connectors={"image": latents.replace(unit=False)}), "features length 1"),
        (model.replace(encoders={"image": tower.replace(drop_last=1)}), "drop_last=1"),
        (model.replace(backbone=backbone.replace(sinusoid=None)), "sinusoid=None"),
        (model.replace(backbone=backbone.replace(block=backbone.block.replace(attention=attention))), "inner_norm"),
        (model.replace(together=("image",)), "reads them among its words"),
    ):
        with pytest.raises(UserError, match=reason):
            family.write(other)


def test_contradictory_folders_are_refused(tmp_path):
    folder = Captions.make(tmp_path / "model", *plain()).folder
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    for changes, reason in (
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, and True in text_config"),
        ({"text_config": {**text, "add_cross_attention": True}}, "add_cross_attention is True"),
        ({"text_config": {**text, "alibi": True}}, "unknown field 'alibi'"),
        ({"vision_config": {**VISION, "image_size": 35}}, "the vision tower of config.json reads 35"),
        ({"latent_query_num": 6}, r"latent_query has shape \(5, 64\)"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=reason):
            open_published(folder)
