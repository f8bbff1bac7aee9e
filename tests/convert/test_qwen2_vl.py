"""Qwen2-VL of transformers, opened here and written back, on real pictures of odd sizes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from multimodal import Both, check_greedy, check_logits, check_written, conversation, pictures
from qwen2_vl_parts import IMAGE, TEXT, VIDEO, VISION, config, words
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

import sensorium
from sensorium.api import messages_to_sample
from sensorium.convert.files import Files
from sensorium.convert.published import open_published, write_published
from sensorium.convert.qwen2_vl import QWEN2_VL
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import within
from sensorium.errors import UserError
from sensorium.nn.blank import blank


class Processor(transformers.Qwen2VLProcessor):
    """The reference's, without what prepares clips: that needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.image_token_id = "<|image_pad|>", IMAGE
        self.video_token, self.video_token_id = "<|video_pad|>", VIDEO
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def processor(**changes):
    return Processor(transformers.Qwen2VLImageProcessorPil(**changes), words())


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
    pixels = {"size": {"shortest_edge": 3 * 15**2, "longest_edge": 33 * 15**2}, "resample": 2}
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
        assert not sequence.items
        assert "pixel_values" not in theirs
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


def test_a_model_alone_is_written_with_all_that_the_reference_needs(both, tmp_path):
    """Of what the folder said only the model, the tokenizer and the prompt are left."""
    opened = open_published(both.folder)
    folder = tmp_path / "alone"
    write_published(folder, opened.family, opened.model, opened.tokenizer, opened.template)
    again = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder)
    prompt = both.theirs(PROMPTS["several"])
    pixels = both.asked(Processor.from_pretrained(folder), PROMPTS["several"])["pixel_values"]
    assert torch.equal(pixels, prompt["pixel_values"])
    with torch.no_grad():
        assert torch.equal(again(**prompt).logits, both.reference(**prompt).logits)
    assert open_published(folder).model.config == opened.model.config


SIZES = [(1, 1), (1, 200), (10, 13), (27, 29), (37, 101), (61, 97), (42, 70), (300, 2), (427, 640), (700, 30), (999, 5)]


@pytest.mark.parametrize("area", [(56 * 56, 28 * 28 * 1280), (3136, 4000), (28 * 28, 28 * 28), (4 * 784, 16 * 784)])
def test_pictures_become_as_large_as_in_the_reference(area):
    for shape in SIZES:
        assert within(shape, 28, area) == smart_resize(*shape, 28, *area)
    with pytest.raises(UserError, match="more than 200 times"):
        within((1, 201), 28, area)


# ---- clips


@pytest.fixture(scope="module", params=[1, 5])
def clip(request, tmp_path_factory):
    """A few frames of one size in a lossless file."""
    path = tmp_path_factory.mktemp("clips") / "clip.png"
    first, *others = [pictures()[2].crop((at, 2 * at, at + 90, 2 * at + 61)) for at in range(0, 20 * request.param, 20)]
    first.save(path, save_all=True, append_images=others)
    return path, request.param


def test_a_clip_is_read_in_frames_of_the_tower(both, clip):
    path, count = clip
    parts = [{"type": "video", "video": str(path), "frames": count}, {"type": "text", "text": "What moves?"}]
    messages = [{"role": "user", "content": [*PROMPTS["one"][0]["content"], *parts]}]
    sequence = both.model.engine.renderer.render(messages_to_sample(messages), generate=True)
    eyes = both.processor.image_processor
    patch, merge, span = eyes.patch_size, eyes.merge_size, eyes.temporal_patch_size
    [item] = sequence.items["video"]
    area = eyes.size["shortest_edge"], eyes.size["longest_edge"]
    assert item.data.shape == (count, 3, *smart_resize(61, 90, patch * merge, *area))
    rows, grid = cut(item.data, patch, merge, span)
    text = both.processor.apply_chat_template(messages, add_generation_prompt=True)
    still = both.theirs(PROMPTS["one"])
    pads = {"<|image_pad|>": int(still["image_grid_thw"].prod()) // merge**2, "<|video_pad|>": len(rows) // merge**2}
    for pad, tokens in pads.items():
        text = text.replace(pad, pad * tokens)
    ids = both.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    given = {"image_grid_thw": still["image_grid_thw"], "video_grid_thw": torch.tensor([grid])}
    places, _ = both.reference.model.get_rope_index(ids, types, **given)
    assert torch.equal(sequence.position, places[:, 0].T)
    with torch.no_grad():
        expected = both.reference(
            ids, pixel_values=still["pixel_values"], pixel_values_videos=rows, mm_token_type_ids=types, **given
        ).logits[0]
    _, logits = both.model.logits(messages)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def cut(frames, patch, merge, span):
    """(F, 3, H, W) -> patches as the reference orders them, and their (frames, rows, columns). The last is repeated."""
    frames = torch.cat([frames, *[frames[-1:]] * (-len(frames) % span)])
    grid = [len(frames) // span, frames.shape[2] // patch, frames.shape[3] // patch]
    cells = frames.view(grid[0], span, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], -1), grid


def test_clips_are_prepared_as_the_folder_says(both, tmp_path):
    folder = shutil.copytree(both.folder, tmp_path / "clips")
    eyes = both.processor.image_processor
    sizes = {"patch_size": eyes.patch_size, "merge_size": eyes.merge_size,
             "temporal_patch_size": eyes.temporal_patch_size}  # fmt: skip
    said = {"video_processor_type": "Qwen2VLVideoProcessor", **sizes, "do_sample_frames": False, "fps": 2.0,
            "size": {"shortest_edge": 5000, "longest_edge": 9000}}  # fmt: skip
    (folder / "video_preprocessor_config.json").write_text(json.dumps(said))
    opened = open_published(folder)
    tower = opened.model.config.encoders["image"]
    assert tower.transform.area == tuple(eyes.size[edge] for edge in ("shortest_edge", "longest_edge"))
    assert (tower.clips.area, tower.clips.std[0]) == ((5000, 9000), 0.26862954)
    side = eyes.patch_size * eyes.merge_size
    assert tower.view((4, 200, 90)) == (3, *smart_resize(200, 90, side, 5000, 9000)) != tower.view((200, 90))
    write_published(tmp_path / "again", opened.family, opened.model, opened.tokenizer, opened.template)
    assert open_published(tmp_path / "again").model.config == opened.model.config
    said["cap_pixels_per_frame"] = True
    (folder / "video_preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="cap_pixels_per_frame is True"):
        open_published(folder)


# ---- older releases, and what cannot be opened


def flat(folder):
    """The folder's config.json as the first releases have it: the language model's fields at the top."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types"):
        del text[name]
    config |= text | {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = config["vision_config"]
    del vision["rope_parameters"], vision["in_channels"]
    vision |= {"model_type": "qwen2_vl", "in_chans": 3, "spatial_patch_size": vision["patch_size"]}
    path.write_text(json.dumps(config))


def nested(folder):
    """Names of tensors as the modules have them, from a release between."""
    path = folder / "model.safetensors"
    names = {name: f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.")
             for name in load_file(path)}  # fmt: skip
    save_file({names[name]: tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def pixels(folder):
    """Sizes of pictures in the words of older releases."""
    path = folder / "processor_config.json"
    eyes = json.loads(path.read_text())["image_processor"]
    path.unlink()
    size = eyes.pop("size")
    eyes |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(eyes))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    return Both.make(folder, transformers.Qwen2VLForConditionalGeneration, *plain())


@pytest.mark.parametrize("older", [flat, nested, pixels], ids=lambda one: one.__name__)
def test_folders_of_older_releases_open_as_in_the_reference(tied, tmp_path, older):
    folder = shutil.copytree(tied.folder, tmp_path / "older")
    older(folder)
    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        expected = reference(**tied.theirs(PROMPTS["one"])).logits[0]
    _, logits = sensorium.load(folder, precision="fp32").logits(PROMPTS["one"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


BROKEN = {
    "sections": ("text_config", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 4]}},
                 "must sum to half the width"),
    "width": ("vision_config", {"hidden_size": 60}, "hidden_size is 60, and that of the language model is 64"),
    "heads": ("vision_config", {"num_heads": 5}, "multiple of 4 times num_heads"),
    "patches": ("vision_config", {"patch_size": 8}, "patch_size is 7, and the vision tower of config.json has 8"),
    "eyes": ("vision_config", {"fullatt_block_indexes": [7]}, "unknown field 'fullatt_block_indexes'"),
    "words": ("text_config", {"attention_sinks": 4}, "unknown field 'attention_sinks'"),
    "token": (None, {"video_token_id": 3}, "video_token_id is 3"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_contradicts_itself_is_named(tied, tmp_path, broken):
    part, fields, message = BROKEN[broken]
    folder = shutil.copytree(tied.folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(fields)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        open_published(folder)


def test_a_model_that_the_layout_has_no_words_for_is_refused(tied, tmp_path):
    opened = open_published(tied.folder)
    config = opened.model.config
    eyes = config.encoders["image"]
    plainer = config.backbone.replace(rope=config.backbone.rope.replace(sections=None))
    for changed, message in (
        (config.replace(spread=()), "spread over rows and columns"),
        (config.replace(backbone=plainer), "rope.sections"),
        (config.replace(encoders={"image": eyes.replace(patch_bias=True)}), "cannot say these eyes"),
    ):
        with pytest.raises(UserError, match=message):
            opened.family.write(changed)


PUBLISHED = {
    "model_type": "qwen2_vl", "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
    "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768,
    "max_window_layers": 28, "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1e6, "sliding_window": 32768, "tie_word_embeddings": True,
    "use_sliding_window": False, "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
                      "hidden_size": 1536, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
                      "temporal_patch_size": 2},
}  # fmt: skip
"""config.json of Qwen2-VL-2B as it was first released."""


def test_the_released_2b_has_its_published_size():
    eyes = Settings({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14})
    files = Files(Path("2b"), Settings(PUBLISHED), eyes, Settings({}))
    config = QWEN2_VL.read(files)
    with blank():
        assert sum(parameter.numel() for parameter in config.build().parameters()) == 2_208_985_600
    plan = config.plan("image", (1080, 1920))
    assert (plan.tokens, plan.grid) == (39 * 69, (1, 39, 69))
    assert config.plan("video", (9, 280, 420)).grid == (5, 10, 15)
