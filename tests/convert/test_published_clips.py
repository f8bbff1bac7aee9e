"""Clips of SmolVLM and Qwen2-VL, against what the published processors made of them (fixtures/clips.*)."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import transformers
from clip_cases import QWEN2_VL, SMOLVLM
from moving_pictures import digest, frames, saved_clip
from published import saved
from qwen2_vl_parts import VIDEO, config
from smolvlm_parts import IMAGE
from transformers.video_utils import read_video_pyav

import sensorium
from sensorium.api import messages_to_sample
from sensorium.convert.published import open_published, write_published
from sensorium.data.moving import MovingPicture
from sensorium.data.video import ClipFile
from sensorium.errors import UserError
from sensorium.film import Film, in_words
from sensorium.sequence import Clip, Sample, Segment, Timing

FIXTURES = Path(__file__).parent / "fixtures"
SAID = json.loads((FIXTURES / "clips.json").read_text("utf-8"))
CASES = {case.name: case for case in (*SMOLVLM, *QWEN2_VL)}
Watched = namedtuple("Watched", "case folder model reference messages path made")


def reference_of(case):
    """The reference's class and config."""
    if case in QWEN2_VL:
        return transformers.Qwen2VLForConditionalGeneration, config(case.vision, case.text)
    text = transformers.LlamaConfig(**case.text)
    return transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMConfig(
        vision_config=case.vision, text_config=text, image_token_id=IMAGE, **case.more
    )


@pytest.fixture(scope="module", params=CASES)
def watched(request, tmp_path_factory):
    """A model of the reference and the same opened here, the clip in a lossless file, the processor's tensors."""
    case, base = CASES[request.param], tmp_path_factory.mktemp("clips")
    kind, made = reference_of(case)
    reference = saved(kind, made, base / "model")
    case.words().save_pretrained(base / "model")
    (base / "model/processor_config.json").write_text(json.dumps(SAID["cases"][case.name]["settings"]))
    pictures = frames(*case.shape)
    assert digest(pictures) == SAID["cases"][case.name]["frames"], "the clips are others: make the fixtures again"
    path = saved_clip(base / "clip.png", pictures, case.rate)
    count = len(case.taken) or (len(pictures) if case in QWEN2_VL else None)
    messages = case.messages(str(path), **({} if count is None else {"frames": count}))
    with np.load(FIXTURES / "clips.npz") as arrays:
        named = {name.split("/")[1]: torch.from_numpy(arrays[name]) for name in arrays.files if
                 name.startswith(f"{case.name}/")}  # fmt: skip
    model = sensorium.load(base / "model", precision="fp32")
    return Watched(case, base / "model", model, reference, messages, path, named)


def given(watched):
    """The processor's tensors as the reference's model takes them."""
    if watched.case in SMOLVLM:
        return watched.made
    return {**watched.made, "mm_token_type_ids": 2 * (watched.made["input_ids"] == VIDEO).long()}


def rows_of(views, size):
    """(F, 3, H, W) -> patches as the reference orders them; the last frame is repeated."""
    patch, merge, span = size.patch, size.merge, size.span
    views = torch.cat([views, *[views[-1:]] * (-len(views) % span)])
    grid = [len(views) // span, views.shape[2] // patch, views.shape[3] // patch]
    cells = views.view(grid[0], span, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], -1)


def test_ids_and_pixels_are_the_processors(watched):
    sequence = watched.model.engine.renderer.render(messages_to_sample(watched.messages), generate=True)
    ids, items = sequence.ids.clone(), sequence.items["video"]
    if watched.case in QWEN2_VL:
        for span in sequence.spans:
            ids[span.start : span.start + span.length] = VIDEO
    assert ids.tolist() == watched.made["input_ids"][0].tolist()
    taken = SAID["cases"][watched.case.name]["taken"]
    if watched.case in SMOLVLM:
        assert len(items) == len(taken)
        views = torch.cat([item.data for item in items])
        torch.testing.assert_close(views, watched.made["pixel_values"][0], rtol=0, atol=1e-6)
        return
    [item] = items
    assert item.shape == (len(taken), *watched.case.shape[:2])
    eyes = watched.reference.config.vision_config
    size = namedtuple("Size", "patch merge span")(eyes.patch_size, eyes.spatial_merge_size, eyes.temporal_patch_size)
    torch.testing.assert_close(rows_of(item.data, size), watched.made["pixel_values_videos"], rtol=0, atol=1e-6)


def test_logits_are_the_references(watched):
    with torch.no_grad():
        expected = watched.reference(**given(watched)).logits[0]
    _, logits = watched.model.logits(watched.messages)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_greedy_text_is_the_references(watched):
    with torch.no_grad():
        said = watched.reference.generate(**given(watched), max_new_tokens=20, do_sample=False)
    answer = said[0, watched.made["input_ids"].shape[1] :]
    words = watched.case.words().decode(answer, skip_special_tokens=True)
    assert watched.model.chat(watched.messages, max_tokens=20) == words


def test_what_is_written_back_reads_clips_the_same(watched, tmp_path):
    opened = open_published(watched.folder)
    for name, came in (("kept", opened.files), ("alone", None)):
        folder = tmp_path / name
        write_published(folder, opened.family, opened.model, opened.tokenizer, opened.template, came)
        again = open_published(folder)
        assert again.model.config == opened.model.config
        assert again.template == opened.template
        said = json.loads((folder / "video_preprocessor_config.json").read_text())
        theirs = SAID["cases"][watched.case.name]["settings"]["video_processor"]
        names = ("size", "max_image_size", "resample", "image_mean", "image_std", "do_resize", "video_processor_type")
        assert [said.get(name) for name in names] == [theirs.get(name) for name in names]
        if watched.case in SMOLVLM:
            assert [said.get(name) for name in ("fps", "num_frames")] == [theirs.get(name) for name in
                                                                         ("fps", "num_frames")]  # fmt: skip


# ---- SmolVLM: which frames, and words for them


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    """A folder that opens, to be copied."""
    case, folder = CASES["smolvlm_wide"], tmp_path_factory.mktemp("smolvlm") / "model"
    saved(*reference_of(case), folder)
    case.words().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(SAID["cases"][case.name]["settings"]))
    return folder


@pytest.mark.parametrize("case", SAID["sampled"], ids=lambda one: "{fps}-{total}-{rate}".format(**one))
def test_frames_are_those_that_the_published_processor_takes(case):
    film = Film(rate=case["fps"], most=case["most"], skip=1.0)
    timing = Timing(case["total"], case["rate"], case["total"] / case["rate"], (0,))
    assert list(film.sampled(timing)) == case["taken"]


def test_numbers_are_written_as_the_reference_writes_them():
    assert len(SAID["numbers"]) > 200
    assert {number: in_words(int(number)) for number in SAID["numbers"]} == SAID["numbers"]
    with pytest.raises(UserError, match="1000000 is not written in words"):
        in_words(1_000_000)


def test_settings_of_pictures_are_those_of_clips_where_there_are_no_others(smolvlm, tmp_path):
    """As released: one file, with a field for clips."""
    folder = shutil.copytree(smolvlm, tmp_path / "older")
    said = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": said["image_seq_len"]}))
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 48}}
    pictures = {**said["image_processor"], "video_sampling": sampling}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    opened = open_published(folder)
    eyes, film = opened.model.config.encoders["image"], opened.template.films["video"]
    assert (eyes.clips.first, eyes.clips.size, eyes.clips.filter, eyes.clips.backend) == (56, 28, "lanczos", "torch")
    assert (film.rate, film.most) == (1.0, 64)
    del pictures["size"]
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    assert open_published(folder).model.config.encoders["image"].clips.first == 48


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"video_sampling": None, "num_frames": None}, "fps is 2.0, the number"),
        ({"max_image_size": {"longest_edge": 35}}, "frames become 35 pixels wide.*reads 28"),
        ({"do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, "crop"),
        ({"do_sharpen": True}, "do_sharpen"),
    ],
)
def test_clips_that_cannot_be_prepared_here_are_refused(smolvlm, tmp_path, fields, reason):
    folder = shutil.copytree(smolvlm, tmp_path / "broken")
    said = json.loads((folder / "processor_config.json").read_text())
    said["video_processor"] |= fields
    (folder / "processor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=reason):
        open_published(folder)


def test_frames_that_keep_their_sizes_are_not_read(smolvlm, tmp_path):
    folder = shutil.copytree(smolvlm, tmp_path / "kept")
    said = json.loads((folder / "processor_config.json").read_text())
    said["video_processor"]["do_resize"] = False
    (folder / "processor_config.json").write_text(json.dumps(said))
    model = sensorium.load(folder, precision="fp32")
    clip = saved_clip(tmp_path / "clip.png", frames(20, 20, 3), 2.0)
    with pytest.raises(UserError, match=r"reads \['image'\], not video"):
        model.chat([{"role": "user", "content": [{"type": "video", "video": str(clip)}]}])


def test_a_clip_without_times_is_refused(smolvlm, tmp_path):
    renderer = sensorium.load(smolvlm, precision="fp32").engine.renderer
    clip = MovingPicture("1F600", "fluent", "left")
    with pytest.raises(UserError, match=r"this one has no times.*MovingPicture"):
        renderer.render(Sample((Segment("video", clip, role="user"),)), generate=True)
    still = tmp_path / "still.png"
    frames(20, 20, 1)[0].save(still)
    with pytest.raises(UserError, match="does not say how long it is"):
        renderer.render(Sample((Segment("video", ClipFile(still), role="user"),)), generate=True)


def test_models_with_other_words_or_marks_are_not_written_as_one(smolvlm, tmp_path):
    opened = open_published(smolvlm)
    film = opened.template.films["video"]
    other = opened.template.replace(films={"video": film.replace(closes="\n")})
    with pytest.raises(UserError, match="its own words between the frames"):
        write_published(tmp_path / "a", opened.family, opened.model, opened.tokenizer, other)
    model = opened.model.config
    tower = model.encoders["image"]
    for changes, reason in (
        ({"marks": {"image": model.marks["image"], "video": model.marks["image"]}}, "marks a frame of a clip"),
        ({"encoders": {"image": tower.replace(clips=None)}}, "in a way of its own"),
        ({"encoders": {"image": tower.replace(clips=tower.clips.replace(first=None))}}, "cannot say how this model"),
        ({"encoders": {"image": tower.replace(clips=tower.clips.replace(backend="pillow"))}}, "cannot say how this"),
    ):
        with pytest.raises(UserError, match=reason):
            opened.family.write(model.replace(**changes))


# ---- files of clips


def test_a_film_has_the_times_and_frames_that_the_reference_reads(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in frames(48, 64, 31):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    numbers = [0, 4, 5, 30]
    video, metadata = read_video_pyav(str(path), lambda metadata, **kwargs: numbers)
    whole = ClipFile(path)
    clip = whole.taking(numbers)
    assert isinstance(clip, Clip)
    assert (whole.asked, clip.asked) == (False, True)
    timing = clip.timing()
    assert (timing.frames, timing.rate, timing.duration) == (metadata.total_num_frames, metadata.fps, metadata.duration)
    assert list(timing.times) == metadata.timestamps
    assert np.array_equal(np.stack([np.asarray(one) for one in clip.load()]), video)
    assert clip.key() != whole.key() != whole.taking((0,)).key()
    with pytest.raises(ValueError, match="no frames of a clip that has 31"):
        whole.taking((0, 31))
