"""Idefics 3 and SmolVLM of transformers, opened here and written back: pictures in tiles, whole, within a view."""

import json

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_written, conversation, pictures
from published import saved
from smolvlm_parts import CHAT, GROUPED, IMAGE, TEXT, TILES, VISION, words
from transformers.models.smolvlm import processing_smolvlm

from sensorium.api import messages_to_sample
from sensorium.connectors.mlp import MLP
from sensorium.convert.published import open_published
from sensorium.errors import UserError


class Stills(transformers.SmolVLMProcessor):
    """The processor without films: its part for them needs a package that is not here."""

    apply_chat_template = transformers.ProcessorMixin.apply_chat_template

    def __init__(self, image_processor, tokenizer, image_seq_len=169, chat_template=None):
        super().__init__(image_processor, tokenizer, None, image_seq_len, chat_template)


def made(name, vision, text, factor, longest, more=TILES, tied=False, **shown):
    """The class, its config and its processor. vision: of a view, whose side is what pictures are cut to."""
    view, patch = vision["image_size"], vision["patch_size"]
    prepare = getattr(transformers, f"{name}ImageProcessorPil")(
        size={"longest_edge": longest}, max_image_size={"longest_edge": view}, **shown
    )
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision, text_config=transformers.LlamaConfig(**text), image_token_id=IMAGE, scale_factor=factor,
        tie_word_embeddings=tied,
    )  # fmt: skip
    count = (view // patch // factor) ** 2
    if name == "SmolVLM":
        processor = Stills(prepare, words(*more), image_seq_len=count)
    else:
        processor = transformers.Idefics3Processor(prepare, words(*more), image_seq_len=count)
    return getattr(transformers, f"{name}ForConditionalGeneration"), config, processor


def idefics3():
    return made("Idefics3", VISION, TEXT, 2, 100)


def idefics3_odd():
    """A factor of 3, patches cut off, grouped heads with biases; pictures within one view, never in tiles."""
    vision = {**VISION, "image_size": 27, "patch_size": 4, "num_attention_heads": 5, "hidden_act": "gelu"}
    return made("Idefics3", vision, {**GROUPED, "attention_bias": True, "mlp_bias": True}, 3, 27, tied=True)


def idefics3_spelled():
    """A tokenizer without tokens of tiles spells them; the longer side is odd and no multiple; another filter."""
    vision = {**VISION, "image_size": 25, "patch_size": 5}
    return made("Idefics3", vision, GROUPED, 5, 63, more=(), resample=3, image_mean=[0.4, 0.5, 0.6])


def smolvlm():
    return made("SmolVLM", VISION, GROUPED, 4, 56)


def smolvlm_whole():
    """No tiles; one head for words and their embeddings."""
    return made("SmolVLM", VISION, TEXT, 1, 60, tied=True, do_image_splitting=False)


def smolvlm_as_it_is():
    """Tiles of a picture that keeps its size until it is cut."""
    return made("SmolVLM", {**VISION, "image_size": 112, "patch_size": 28}, TEXT, 2, 90, do_resize=False)


CASES = (idefics3, idefics3_odd, idefics3_spelled, smolvlm, smolvlm_whole, smolvlm_as_it_is)


@pytest.fixture(scope="module")
def numbers_as_words():
    """The processor of SmolVLM wants a package that spells the number of frames; there are no films here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str)
        yield


@pytest.fixture(scope="module", params=CASES, ids=lambda one: one.__name__)
def both(request, tmp_path_factory, numbers_as_words):
    return Both.make(tmp_path_factory.mktemp("published") / "model", *request.param())


PROMPTS = {
    "text": conversation("What is two and two?"),
    "one": conversation("What is this?", pictures()[0]),
    "several": conversation("Compare them.", *pictures()),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_and_views_are_the_processors(both, prompt):
    theirs = both.theirs(PROMPTS[prompt])
    sequence = both.model.engine.renderer.render(messages_to_sample(PROMPTS[prompt]), generate=True)
    assert sequence.ids.tolist() == theirs["input_ids"][0].tolist()
    items = sequence.items.get("image", [])
    if not items:
        assert theirs.get("pixel_values") is None
        return
    views = torch.cat([item.data.roll(-1, 0) for item in items])  # the whole picture stands last there
    torch.testing.assert_close(views, theirs["pixel_values"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_the_references(both, prompt):
    check_logits(both, PROMPTS[prompt])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_references(both, prompt):
    check_greedy(both, PROMPTS[prompt])


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    check_written(both, tmp_path / "written", PROMPTS["several"])


@pytest.fixture
def folder(tmp_path):
    """A folder that opens, to be changed."""
    reference, config, processor = idefics3()
    saved(reference, config, tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, file, **fields):
    """Fields of a JSON file; a value None takes one out."""
    said = json.loads((folder / file).read_text("utf-8"))
    said = {name: value for name, value in {**said, **fields}.items() if value is not None}
    (folder / file).write_text(json.dumps(said), "utf-8")


def test_released_files_say_the_same_in_other_words(folder):
    """Files of their own for pictures and the chat template, fields that nothing reads, an older name of the tower."""
    before = open_published(folder)
    said = json.loads((folder / "config.json").read_text("utf-8"))
    old = {"max_image_size": {"longest_edge": 28}, "size": {"longest_edge": 100}, "use_base_siglip": False}
    change(
        folder, "config.json", vision_config={**said["vision_config"], "model_type": "idefics3", **old},
        text_config={**said["text_config"], "is_llama_config": True, "perceiver_config": {"model_type": "vllama3"},
                     "pixel_shuffle_factor": 4, "qk_layer_norms": False, "_flash_attn_2_enabled": True},
    )  # fmt: skip
    inner = json.loads((folder / "processor_config.json").read_text("utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps(inner["image_processor"]), "utf-8")
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 4}), "utf-8")
    (folder / "chat_template.jinja").rename(folder / "chat_template.json")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}), "utf-8")
    after = open_published(folder)
    assert after.model.config == before.model.config
    assert after.template == before.template
    reference = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(reference.lm_head.weight, after.model.backbone.head.weight)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"scale_factor": 3}, "scale_factor is 3, and a view has 4 x 4 patches"),
        ("config.json", {"image_token_id": 261}, "image_token_id is 261"),
        ("config.json", {"resampler": 1}, "unknown field 'resampler'"),
        ("config.json", {"vision_config": {**VISION, "image_size": 32, "patch_size": 8}}, "28 pixels wide.*reads 32"),
        ("config.json", {"vision_config": {**VISION, "image_size": 38, "patch_size": 2}, "scale_factor": 1},
         "19 x 19 patches, of which the published class takes some for their neighbours"),
        ("processor_config.json", {"image_seq_len": 9}, "image_seq_len is 9"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_here_is_refused(folder, file, changes, reason):
    change(folder, file, **changes)
    with pytest.raises(UserError, match=reason):
        open_published(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": {"longest_edge": 5000}}, "no more than 4096"),
        ({"size": {"height": 28, "width": 28}}, "no longest_edge"),
        ({"do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, "crop"),
        ({"do_sharpen": True}, "do_sharpen"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected Idefics3 or SmolVLM"),
    ],
)
def test_pictures_that_cannot_be_prepared_here_are_refused(folder, changes, reason):
    inner = json.loads((folder / "processor_config.json").read_text("utf-8"))
    change(folder, "processor_config.json", image_processor={**inner["image_processor"], **changes})
    with pytest.raises(UserError, match=reason):
        open_published(folder)


def test_the_published_class_takes_patches_for_their_neighbours_where_it_is_refused():
    """Of 19 x 19 patches two rows share their positions there; of 27 x 27, as released, none do."""
    for cells, alike in ((19, True), (27, False)):
        config = transformers.Idefics3Config(
            vision_config={**VISION, "image_size": cells, "patch_size": 1}
        ).vision_config
        embeddings = transformers.models.idefics3.modeling_idefics3.Idefics3VisionEmbeddings(config)
        with torch.no_grad():
            whole = torch.ones(1, cells, cells, dtype=torch.bool)
            rows = embeddings(torch.zeros(1, 3, cells, cells), whole).view(cells, cells, -1)
            row_major = embeddings.position_embedding.weight.view(cells, cells, -1) + embeddings.patch_embedding.bias
        assert torch.equal(rows[12], rows[11]) == alike
        assert torch.allclose(rows, row_major) != alike


def test_settings_that_are_left_out_are_those_of_the_published_class(folder):
    inner = json.loads((folder / "processor_config.json").read_text("utf-8"))["image_processor"]
    before = open_published(folder).model.config.encoders["image"].transform
    left = {name: inner[name] for name in ("size", "max_image_size", "image_processor_type")}
    assert len(left) < len(inner) - 5
    change(folder, "processor_config.json", image_processor=left)
    assert open_published(folder).model.config.encoders["image"].transform == before
    change(folder, "processor_config.json", image_processor={**left, "size": None, "do_convert_rgb": True})
    assert open_published(folder).model.config.encoders["image"].transform == before.replace(first=1456)


def test_other_models_are_not_written_as_one(folder):
    opened = open_published(folder)
    config, write = opened.model.config, opened.family.write
    tower, connector = config.encoders["image"], config.connectors["image"]
    shuffle = connector.inner.replace(inner=MLP.Config(depth=1))
    for changes, reason in (
        ({"marks": {}}, "ids that mark the views"),
        ({"marks": {"image": config.marks["image"].replace(tiles=None)}}, "split=True"),
        ({"connectors": {"image": connector.replace(inner=shuffle)}}, "one linear layer without bias"),
        ({"encoders": {"image": tower.replace(drop_last=1, normed=False)}}, "last states"),
        ({"encoders": {"image": tower.replace(transform=tower.transform.replace(pad_color=(1, 1, 1)))}}, "prepare|say"),
        ({"together": ("image",)}, "this model is another"),
    ):
        with pytest.raises(UserError, match=reason):
            write(config.replace(**changes))
