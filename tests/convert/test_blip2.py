"""BLIP-2 and InstructBLIP of transformers, opened here and written back, on real pictures of odd sizes."""

import json
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from multimodal import Both, check_prompt, check_written, conversation, pictures
from published import WORDS, saved, tokenizer
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

import sensorium
from sensorium.api import messages_to_sample
from sensorium.connectors.mlp import MLP
from sensorium.connectors.qformer import QFormer
from sensorium.convert.family import family_named
from sensorium.convert.files import Files
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError

TOWER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
         "patch_size": 7}  # fmt: skip
ODD_TOWER = {**TOWER, "hidden_size": 36, "num_attention_heads": 3, "image_size": 30, "num_hidden_layers": 3,
             "qkv_bias": False, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
BERT = {"vocab_size": WORDS, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 60}  # fmt: skip
ODD_BERT = {**BERT, "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 4,
            "cross_attention_frequency": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}  # fmt: skip
OPT = {"model_type": "opt", "vocab_size": WORDS + 3, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 120, "word_embed_proj_dim": 64, "bos_token_id": 256,
       "eos_token_id": 257, "pad_token_id": 258}  # fmt: skip
ODD_OPT = {**OPT, "hidden_size": 42, "word_embed_proj_dim": 42, "num_attention_heads": 3, "enable_bias": False,
           "tie_word_embeddings": False, "eos_token_id": 10}  # fmt: skip
LLAMA = {"model_type": "llama", "vocab_size": WORDS + 3, "hidden_size": 64, "intermediate_size": 96,
         "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 256, "eos_token_id": 257,
         "pad_token_id": 258}  # fmt: skip
ODD_LLAMA = {**LLAMA, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 14,
             "tie_word_embeddings": True}  # fmt: skip
IMAGE = 259
"""<image> of the small tokenizer."""


def bare():
    """The small tokenizer without a chat template, as the published folders have none."""
    made = tokenizer()
    made.chat_template = None
    return made


def eyes(side):
    return transformers.BlipImageProcessorPil(size={"height": side, "width": side})


def blip_2():
    config = transformers.Blip2Config(vision_config=TOWER, qformer_config=BERT, text_config=OPT, num_query_tokens=6,
                                      image_token_index=IMAGE)  # fmt: skip
    return transformers.Blip2ForConditionalGeneration, config, transformers.Blip2Processor(eyes(28), bare(), 6)


def blip_2_odd():
    """No biases of queries, keys and values; feed-forwards of words that nothing reads; pixels beyond the last patch;
    an answer that ends with its line."""
    config = transformers.Blip2Config(
        vision_config=ODD_TOWER, qformer_config={**ODD_BERT, "use_qformer_text_input": True}, text_config=ODD_OPT,
        num_query_tokens=5, image_token_index=IMAGE,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration, config, transformers.Blip2Processor(eyes(30), bare(), 5)


def asker():
    """A tokenizer as BERT's: words in lower case, marks around a text."""
    letters = "abcdefghijklmnopqrstuvwxyz?:.,"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "##s", *letters, *(f"##{one}" for one in letters)]
    backend = tokenizers.Tokenizer(models.WordPiece({one: at for at, one in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in pieces[:4]])
    marks = [(one, pieces.index(one)) for one in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def instructblip():
    config = transformers.InstructBlipConfig(vision_config=TOWER, qformer_config=BERT, text_config=LLAMA,
                                             num_query_tokens=6, image_token_index=IMAGE)  # fmt: skip
    processor = transformers.InstructBlipProcessor(eyes(28), bare(), asker(), 6)
    return transformers.InstructBlipForConditionalGeneration, config, processor


def instructblip_odd():
    """Shared keys, one matrix of words and head, everything odd."""
    config = transformers.InstructBlipConfig(
        vision_config=ODD_TOWER, qformer_config=ODD_BERT, text_config=ODD_LLAMA, num_query_tokens=5,
        image_token_index=IMAGE,
    )  # fmt: skip
    processor = transformers.InstructBlipProcessor(eyes(30), bare(), asker(), 5)
    return transformers.InstructBlipForConditionalGeneration, config, processor


@dataclass
class Queries(Both):
    """A processor that takes words as they are, and puts the queries of pictures before them."""

    @classmethod
    def make(cls, folder, reference, config, processor):
        made = saved(reference, config, folder)
        (folder / "chat_template.jinja").unlink()
        processor.save_pretrained(folder)
        return cls(folder, made, processor, sensorium.load(folder, precision="fp32"))

    def asked(self, processor: Any, messages: list[dict[str, Any]]) -> Any:
        parts = messages[0]["content"]
        images = [part["image"] for part in parts if part["type"] == "image"]
        made = processor(images=images or None, text=parts[-1]["text"], return_tensors="pt")
        if len(images) > 1:  # the processor has one picture a text; the model reads several
            more = torch.full((1, (len(images) - 1) * self.processor.num_query_tokens), IMAGE)
            made["input_ids"] = torch.cat([more, made["input_ids"]], dim=1)
            made["attention_mask"] = torch.ones_like(made["input_ids"])
            for name in ("qformer_input_ids", "qformer_attention_mask"):
                if name in made:
                    made[name] = made[name].expand(len(images), -1)
        return made

    def logits(self, messages: list[dict[str, Any]]) -> torch.Tensor:
        """Of the reference; it takes no text alone, but its language model does."""
        prompt = self.theirs(messages)
        with torch.no_grad():
            if "pixel_values" in prompt:
                return self.reference(**prompt).logits[0]
            return self.reference.language_model(prompt["input_ids"]).logits[0]


@pytest.fixture(
    scope="module", params=[blip_2, blip_2_odd, instructblip, instructblip_odd], ids=lambda one: one.__name__
)
def both(request, tmp_path_factory):
    return Queries.make(tmp_path_factory.mktemp("published") / "model", *request.param())


PROMPTS = {
    "text": conversation("Question: what is two and two? Answer:"),
    "one": conversation("Question: what is this? Answer:", pictures()[0]),
    "tall": conversation("a photo of", pictures()[1]),
    "several": conversation("Compare them.", *pictures()),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_and_pixels_are_the_processors(both, prompt):
    check_prompt(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", ["one", "tall", "several"])
def test_a_q_former_reads_the_words_of_the_turn(both, prompt):
    sequence = both.model.engine.renderer.render(messages_to_sample(PROMPTS[prompt]), generate=True)
    theirs = both.theirs(PROMPTS[prompt])
    if "qformer_input_ids" not in theirs:
        assert all(item.text is None for item in sequence.items["image"])
        return
    ids = theirs["qformer_input_ids"]
    assert len(set(ids[0].tolist())) > 8
    assert [item.text.tolist() for item in sequence.items["image"]] == ids.tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    expected = both.logits(PROMPTS[prompt])
    _, logits = both.model.logits(PROMPTS[prompt])
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prompt", ["one", "tall", "several"])
def test_greedy_text_is_the_references(both, prompt):
    asked = both.theirs(PROMPTS[prompt])
    said = both.reference.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    answer = both.model.chat(PROMPTS[prompt], max_tokens=20)
    assert answer == both.processor.tokenizer.decode(said, skip_special_tokens=True)


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])


def test_a_model_that_never_was_published_is_written_from_its_value_alone(both, tmp_path):
    opened, folder = open_published(both.folder), tmp_path / "written"
    family = family_named(opened.family.name)
    write_published(folder, family, opened.model, opened.tokenizer, opened.template)
    again = type(both.reference).from_pretrained(folder)
    prompt = both.asked(type(both.processor).from_pretrained(folder), PROMPTS["one"])
    with torch.no_grad():
        assert torch.equal(again(**prompt).logits[0], both.logits(PROMPTS["one"]))
    asked = {name: value for name, value in prompt.items() if "input_ids" not in name and "mask" not in name}
    asked |= {name: value for name, value in prompt.items() if name.startswith("qformer")}
    captions = [model.generate(**asked, max_new_tokens=20, do_sample=False) for model in (again, both.reference)]
    assert torch.equal(*captions)


def test_a_picture_alone_gets_a_caption(both):
    alone = [{"role": "user", "content": conversation("", pictures()[2])[0]["content"][:1]}]
    pixels, reader = both.theirs(PROMPTS["several"])["pixel_values"], getattr(both.processor, "qformer_tokenizer", None)
    told = {} if reader is None else {"qformer_input_ids": reader("", return_tensors="pt").input_ids}
    said = both.reference.generate(pixels[2:3], **told, max_new_tokens=20, do_sample=False)
    said = said[0, both.processor.num_query_tokens + 1 :]
    assert both.model.chat(alone, max_tokens=20) == both.processor.tokenizer.decode(said, skip_special_tokens=True)


def changed(folder, to, name, **fields):
    """The folder with fields of one of its files changed; a field within another as `outer__inner`."""
    shutil.copytree(folder, to)
    said = json.loads((to / name).read_text())
    for path, value in fields.items():
        *outer, last = path.split("__")
        place = said
        for part in outer:
            place = place[part]
        place[last] = value
    (to / name).write_text(json.dumps(said))
    return to


@pytest.mark.parametrize(("name", "fields", "message"), [
    ("config.json", {"qformer_config__encoder_hidden_size": 77}, "encoder_hidden_size is 77, and the vision tower is"),
    ("config.json", {"qformer_config__position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("config.json", {"image_token_index": 258}, "image_token_index is 258, and the tokenizer's '<image>' is 259"),
    ("config.json", {"vision_config__image_size": 35}, "pictures become .* pixels wide, and the vision tower"),
    ("config.json", {"vision_config__model_type": "clip_vision_model"}, "model_type is 'clip_vision_model'"),
    ("config.json", {"num_query_tokens": 7}, "num_query_tokens is ., and that of config.json 7"),
    ("config.json", {"vision_config__tilt": 1}, "unknown field 'tilt'"),
])  # fmt: skip
def test_what_contradicts_itself_is_one_clear_error(both, tmp_path, name, fields, message):
    with pytest.raises(UserError, match=message):
        sensorium.load(changed(both.folder, tmp_path / "model", name, **fields))


def test_what_the_layout_cannot_say_is_not_written(both, tmp_path):
    opened = open_published(both.folder)
    model = opened.model.config
    qformer, tower = model.connectors["image"], model.encoders["image"]
    for part, message in (
        ({"connectors": {"image": qformer.replace(norm=True)}}, "its norm is True"),
        ({"connectors": {"image": MLP.Config()}}, "holds a ViT, a Q-Former"),
        ({"encoders": {"image": tower.replace(drop_last=1)}}, "reads the last state of its tower"),
        ({"encoders": {"image": tower.replace(class_token=False, class_feature=False)}}, "class token included"),
    ):
        with pytest.raises(UserError, match=message):
            opened.family.write(model.replace(**part))


def test_configs_of_older_releases_leave_out_what_their_class_has(tmp_path):
    """The released config names the tower's type alone, and fields that no model reads any more."""
    tower = {"dropout": 0.0, "initializer_factor": 1.0, "num_channels": 3, "projection_dim": 512,
             "model_type": "blip_2_vision_model"}  # fmt: skip
    qformer = {"model_type": "blip_2_qformer", "classifier_dropout": None}
    config = {"model_type": "blip-2", "vision_config": tower, "qformer_config": qformer, "text_config": OPT,
              "num_query_tokens": 32, "use_decoder_only_language_model": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    eyes(224).save_pretrained(tmp_path)
    files = Files.open(tmp_path)
    model = family_named("blip-2").read(files)
    files.done()
    assert (model.encoders["image"].backbone.depth, model.encoders["image"].backbone.width) == (39, 1408)
    assert model.connectors["image"] == QFormer.Config(vocab=0, text_ffn=False)


def test_a_reader_of_another_vocabulary_is_refused(tmp_path):
    both = Queries.make(tmp_path / "model", *instructblip())
    told = r"vocab_size is 40, and qformer_tokenizer has ids up to \d+: they are of different models"
    with pytest.raises(UserError, match=told):
        sensorium.load(changed(both.folder, tmp_path / "other", "config.json", qformer_config__vocab_size=40))
    shutil.rmtree(both.folder / "qformer_tokenizer")
    with pytest.raises(UserError, match=r"qformer_tokenizer/tokenizer_config\.json is missing"):
        sensorium.load(both.folder)
    model = both.model
    with pytest.raises(UserError, match="a tokenizer of the connector's own for \\['image'\\], this model has none"):
        write_published(tmp_path / "written", family_named("instructblip"), model.network,
                        model.tokenizer.with_readers({}), model.recipe.template)  # fmt: skip
