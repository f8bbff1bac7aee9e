"""Clips of moving emoji: what moves, where to, and captions that say so."""

import numpy as np
import pytest

from sensorium.data.emoji import split_of
from sensorium.data.moving import STEPS, MovingCaptions, MovingPicture


@pytest.mark.parametrize("direction", STEPS)
def test_the_drawing_goes_where_the_caption_says_in_equal_steps(direction):
    clip = MovingPicture("1F34E", "google", direction, frames=5, side=32)
    frames = clip.load()
    assert clip.shape() == (5, 32, 32)
    assert [frame.size for frame in frames] == [(32, 32)] * 5
    inks = [np.argwhere((np.asarray(frame) < 250).any(2)) for frame in frames]
    centres = np.array([(ink.min(0) + ink.max(0)) / 2 for ink in inks])
    moved = np.diff(centres, axis=0)
    across, down = STEPS[direction]
    assert np.allclose(moved[:, 0], 4 * down, atol=1.5)
    assert np.allclose(moved[:, 1], 4 * across, atol=1.5)
    assert np.abs(moved.sum(0) - 16 * np.array([down, across])).max() <= 1.5


def test_captions_rounds_and_splits():
    source = MovingCaptions(rounds=4, frames=3, side=24).build()
    per_round = len(source) // 4
    four = [source[7 + turn * per_round] for turn in range(4)]
    assert {sample.info["direction"] for sample in four} == set(STEPS)
    assert len({sample.segments[0].data.key() for sample in four}) == 4
    for sample in four:
        clip, words = sample.segments
        assert clip.kind == "video"
        assert words.data.endswith(f" moving {sample.info['direction']}")
    assert len({sample.id for sample in four}) == 4
    assert all(split_of(source[index].info["key"]) == "train" for index in range(0, len(source), 97))
    with pytest.raises(IndexError):
        source[len(source)]
