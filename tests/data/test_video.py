"""Clips: which frames, their order, and what a file that is none says."""

import av
import numpy as np
import pytest
from PIL import Image

from sensorium.data.formats.rows import BadRow, RowReader
from sensorium.data.video import ClipFile
from sensorium.sequence import Media, MediaError


def grey(value, size=(20, 12)):
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def animation(tmp_path):
    """Ten frames, the i-th 20 i bright."""
    path = tmp_path / "ten.webp"
    frames = [grey(20 * index) for index in range(10)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True, duration=100)
    return path


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_are_the_middles_of_equal_parts(animation):
    clip = ClipFile(animation, frames=4)
    assert isinstance(clip, Media)
    assert clip.shape() == (4, 12, 20)
    assert [frame.getpixel((3, 3))[0] for frame in clip.load()] == [20, 60, 120, 160]  # frames 1, 3, 6, 8


def test_a_short_clip_gives_what_it_has(animation):
    clip = ClipFile(animation, frames=64)
    assert clip.shape() == (10, 12, 20)
    assert len(clip.load()) == 10


def test_a_film_is_read_in_order(film):
    clip = ClipFile(film, frames=5)
    assert clip.shape() == (5, 48, 64)
    values = [np.asarray(frame).mean() for frame in clip.load()]
    assert values == pytest.approx([20, 60, 100, 140, 180], abs=6)


def test_keys_tell_content_and_frames_apart(animation, film):
    keys = {ClipFile(animation, 4).key(), ClipFile(animation, 5).key(), ClipFile(film, 4).key()}
    assert len(keys) == 3
    assert ClipFile(animation, 4).key() == ClipFile(animation, 4).key()


def test_errors_name_the_file(tmp_path, film):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[:300])
    text = tmp_path / "words.mp4"
    text.write_text("no film at all")
    for path in (cut, text, tmp_path / "gone.mp4"):
        with pytest.raises(MediaError, match=path.name):
            ClipFile(path).shape()


def test_a_video_part_of_a_message(animation):
    reader = RowReader(str(animation.parent), "test")
    content = [{"type": "video", "video": animation.name, "frames": 3}, {"type": "text", "text": "What moves?"}]
    sample = reader.chat({"messages": [{"role": "user", "content": content}]}, "row 1")
    assert [segment.kind for segment in sample.segments] == ["video", "text"]
    assert sample.segments[0].data.shape() == (3, 12, 20)
    with pytest.raises(BadRow, match="a video has a path and a number of frames"):
        reader.chat({"messages": [{"role": "user", "content": [{"type": "video", "frames": 0}]}]}, "row 2")
    del content[0]["frames"]
    sample = reader.chat({"messages": [{"role": "user", "content": content}]}, "row 3")
    assert not sample.segments[0].data.asked
    assert sample.segments[0].data.shape() == (8, 12, 20)


def test_a_clip_knows_its_times(animation, film):
    timing = ClipFile(animation, frames=4).timing()
    assert (timing.frames, timing.rate, timing.duration, timing.taken) == (10, 10.0, 1.0, (1, 3, 6, 8))
    assert timing.times == (0.1, 0.3, 0.6, 0.8)
    timing = ClipFile(film).taking((0, 19)).timing()
    assert (timing.frames, timing.rate, timing.duration, timing.times) == (20, 10.0, 2.0, (0.0, 1.9))


def test_an_animation_that_does_not_say_how_long_it_is_has_no_times(tmp_path):
    path = tmp_path / "still.gif"
    grey(0).save(path, save_all=True, append_images=[grey(90)], duration=0)
    assert ClipFile(path).shape() == (2, 12, 20)
    with pytest.raises(MediaError, match=r"still\.gif: does not say how long it is"):
        ClipFile(path).timing()


@pytest.mark.parametrize("numbers", [(), (3, 1), (4, 4), (-1, 2), (2, 10)])
def test_other_frames_are_some_that_it_has_in_order(animation, numbers):
    with pytest.raises(ValueError, match="no frames of a clip that has 10"):
        ClipFile(animation).taking(numbers)
