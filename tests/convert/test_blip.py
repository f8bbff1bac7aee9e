"""BLIP's captioner of transformers, opened here and written back, on real pictures of odd sizes."""

import json
import shutil

import pytest
import torch
import transformers
from multimodal import conversation, pictures
from published import saved
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import sensorium
from sensorium.api import messages_to_sample
from sensorium.connectors.mlp import MLP
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published
from sensorium.errors import UserError
from sensorium.models.fused import Fused

LETTERS = "abcdefghijklmnopqrstuvwxyz?:.,"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", *LETTERS[1:], *(f"##{one}" for one in LETTERS)]
START, STOP = len(PIECES), 3
"""[DEC], which begins a caption, and [SEP], which ends it."""
TOWER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
         "patch_size": 7}  # fmt: skip
TEXT = {"vocab_size": len(PIECES) + 2, "hidden_size": 40, "intermediate_size": 60, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 60, "bos_token_id": START, "sep_token_id": STOP,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
CASES = {
    "plain": (TOWER, TEXT),
    "odd": ({**TOWER, "image_size": 37, "patch_size": 9, "hidden_size": 36, "num_attention_heads": 3,
             "hidden_act": "quick_gelu", "layer_norm_eps": 1e-4},
            {**TEXT, "hidden_size": 42, "num_attention_heads": 7, "num_hidden_layers": 3, "hidden_act": "relu",
             "layer_norm_eps": 1e-5}),
}  # fmt: skip


def words():
    """A tokenizer as BERT's with [DEC] behind its vocabulary: marks around a text, and none that ends an answer."""
    backend = Tokenizer(models.WordPiece({one: at for at, one in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in [*PIECES[:4], "[DEC]"]])
    marks = [(one, PIECES.index(one)) for one in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def published(cls, case, folder, **config):
    """A model of `cls` in its folder, with its processor; both, and what is opened here."""
    tower, text = CASES[case]
    reference = saved(cls, transformers.BlipConfig(vision_config=tower, text_config=text, **config), folder)
    (folder / "chat_template.jinja").unlink()
    side = tower["image_size"]
    eyes = transformers.BlipImageProcessorPil(size={"height": side, "width": side})
    processor = transformers.BlipProcessor(eyes, words())
    processor.save_pretrained(folder)
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    return published(transformers.BlipForConditionalGeneration, request.param, folder)


def asked(processor, text, picture):
    """What the processor makes of it, the first token as the reference's `generate` writes it."""
    made = processor(images=picture, text=text, return_tensors="pt")
    assert made["input_ids"][0, 0] == 2
    made["input_ids"][:, 0] = START
    return made


PROMPTS = [("a photo of", 0), ("what is it?", 1), ("", 2), ("two cats,", 3)]


@pytest.mark.parametrize(("text", "number"), PROMPTS)
def test_ids_pixels_and_logits_are_the_references(both, text, number):
    _, reference, processor, model = both
    picture = pictures()[number]
    theirs = asked(processor, text, picture)
    sample = messages_to_sample(conversation(text or " ", picture))
    sequence = model.engine.renderer.render(sample, generate=True)
    assert sequence.ids.tolist() == theirs["input_ids"][0, :-1].tolist()
    torch.testing.assert_close(sequence.items["image"][0].data, theirs["pixel_values"], rtol=0, atol=1e-5)
    _, logits = model.engine.logits(sample, generate=True)
    with torch.no_grad():
        expected = reference(theirs["pixel_values"], theirs["input_ids"][:, :-1]).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("text", ["a photo of", "two birds"])
def test_without_a_picture_the_decoder_reads_none(both, text):
    """The reference's whole model asks for a picture; its decoder by itself does not."""
    _, reference, processor, model = both
    ids = torch.tensor([[START, *processor.tokenizer(text, add_special_tokens=False).input_ids]])
    _, logits = model.logits(conversation(text))
    with torch.no_grad():
        torch.testing.assert_close(logits, reference.text_decoder(ids).logits[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("text", "number"), PROMPTS)
def test_greedy_captions_are_the_references(both, text, number):
    _, reference, processor, model = both
    picture = pictures()[number]
    theirs = asked(processor, text, picture)
    said = reference.generate(**theirs, max_new_tokens=20, do_sample=False)[0, theirs["input_ids"].shape[1] - 1 :]
    answer = model.chat(conversation(text or " ", picture), max_tokens=20)
    assert answer == processor.tokenizer.decode(said, skip_special_tokens=True)


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, processor, _ = both
    opened = open_published(folder)
    prompt = asked(processor, "a photo of", pictures()[0])
    for came in (opened.files, None):
        written = tmp_path / f"written_{came is None}"
        write_published(written, family_named("blip"), opened.model, opened.tokenizer, opened.template, came)
        before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        again = transformers.BlipForConditionalGeneration.from_pretrained(written)
        other = asked(transformers.BlipProcessor.from_pretrained(written), "a photo of", pictures()[0])
        assert all(torch.equal(prompt[name], other[name]) for name in ("input_ids", "pixel_values"))
        with torch.no_grad():
            assert torch.equal(again(**other).logits, reference(**prompt).logits)
        assert torch.equal(again.generate(**other, max_new_tokens=9), reference.generate(**prompt, max_new_tokens=9))


def test_what_the_layout_cannot_say_is_not_written(both):
    model, family = open_published(both[0]).model.config, family_named("blip")
    tower, stack = model.encoders["image"], model.backbone
    parts = {"encoders": model.encoders, "connectors": {"image": MLP.Config()}}
    for other, message in (
        (
            Fused.Config(**parts, backbone=stack.replace(block=stack.block.replace(cross=None))),
            "holds a ViT and a decoder",
        ),
        (model.replace(connectors={"image": MLP.Config()}), "holds a ViT and a decoder"),
        (model.replace(encoders={"image": tower.replace(drop_last=1)}), "reads the last state of its tower"),
        (model.replace(backbone=stack.replace(embed_norm=False)), "its embed_norm is False, and True"),
    ):
        with pytest.raises(UserError, match=message):
            family.write(other)


def test_other_classes_of_blip_and_contradictions_are_refused(both, tmp_path):
    folder, reference, _, _ = both
    asking = tmp_path / "asking"
    saved(transformers.BlipForQuestionAnswering, reference.config, asking)
    with pytest.raises(UserError, match="its class is BlipForQuestionAnswering; of BLIP the captioner can be opened"):
        sensorium.load(asking)
    for number, (path, value, message) in enumerate((
        (("text_config", "encoder_hidden_size"), 77, "encoder_hidden_size is 77, and the vision tower is"),
        (("text_config", "bos_token_id"), 5, "bos_token_id is 5, which is no special token"),
        (("vision_config", "image_size"), 56, "the vision tower of config.json reads 56"),
        (("text_config", "is_decoder"), False, "is_decoder is False"),
    )):  # fmt: skip
        other = shutil.copytree(folder, tmp_path / str(number))
        config = json.loads((other / "config.json").read_text())
        config[path[0]][path[1]] = value
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            sensorium.load(other)
