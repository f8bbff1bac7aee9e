"""Clips written frame by frame: where words and frames stand, which carry loss, and what cannot be written."""

from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError

from sensorium.film import Film
from sensorium.render import Renderer, Template
from sensorium.sequence import Clip, Item, Plan, Sample, Segment, Timing
from sensorium.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()
FILM = Film(opens="{count} of {duration}:", frame=" {minutes}.{seconds:02d} ", closes=" end", rate=0.5, most=3)


@dataclass
class Numbered:
    """A clip of 200 frames, two a second, whose frames are their numbers."""

    taken: tuple[int, ...] = tuple(range(0, 200, 25))
    asked: bool = False
    decoded: int = 0

    def key(self):
        return f"numbered {self.taken}"

    def shape(self):
        return len(self.taken), 4, 6

    def timing(self):
        return Timing(200, 2.0, 100.0, self.taken)

    def taking(self, numbers):
        return replace(self, taken=tuple(numbers), asked=True)

    def load(self):
        self.decoded += 1
        return list(self.taken)


def renderer(**template):
    """A frame takes two tokens."""
    return Renderer(
        TOKENIZER, Template(films={"video": FILM}, **template), lambda kind, shape: Plan(2 * shape[0]),
        lambda kind, media: Item(torch.tensor(media.load()), media.shape(), media.key()),
    )  # fmt: skip


def test_words_and_frames_take_turns():
    assert isinstance(Numbered(), Clip)
    clip = Segment("video", Numbered(), role="user")
    asked = (clip, Segment("text", "Who?", role="user"), Segment("text", "Ann.", role="assistant"))
    sequence = renderer().render(Sample(asked))
    assert TOKENIZER.decode([id for id in sequence.ids.tolist() if id < 256]) == (
        "user\nthree of 0:01:40: 0.00  0.49  1.39  endWho?\nassistant\nAnn."
    )
    frames = sequence.items["video"]
    assert [item.data.tolist() for item in frames] == [[0], [99], [199]]
    assert [item.shape for item in frames] == [(1, 4, 6)] * 3
    assert [(span.item, span.length) for span in sequence.spans] == [(0, 2), (1, 2), (2, 2)]
    assert sequence.weight.sum() == len("Ann.") + 1


def test_frames_that_a_user_asks_for_are_taken_and_decoded_once():
    clip = replace(Numbered(taken=(7, 150)), asked=True)
    sequence = renderer().render(Sample((Segment("video", clip), Segment("text", "so"))))
    assert [item.data.tolist() for item in sequence.items["video"]] == [[7], [150]]
    assert clip.decoded == 1
    plan = renderer().render(Sample((Segment("video", clip), Segment("text", "so"))), items=False)
    assert clip.decoded == 1
    assert torch.equal(plan.ids, sequence.ids)
    other = renderer().render(Sample((Segment("video", replace(clip, taken=(0, 7))),)))
    assert other.items["video"][1].key == sequence.items["video"][0].key  # the same frame of the same clip


def test_other_frames_stand_where_both_ends_are_left_out():
    film = FILM.replace(skip=1.0, most=4)
    assert film.sampled(Timing(200, 2.0, 100.0, (0,))) == (2, 67, 132, 198)
    assert film.sampled(Timing(4, 2.0, 2.0, (0,))) == (0,)  # a frame in two seconds
    assert Film().sampled(Timing(3, 2.0, 1.5, (0,))) == (0, 1, 2)


def test_conversations_with_clips_have_a_template_of_their_own():
    plain = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    made = renderer(chat=plain, chats={"video": "Clip: " + plain})
    words = Segment("text", "so", role="user")
    assert TOKENIZER.decode(made.render(Sample((words,)), generate=True).ids.tolist()) == "so"
    clip = Segment("video", Numbered(taken=(7,)).taking((7,)), role="user")
    ids = made.render(Sample((words, clip)), generate=True).ids.tolist()
    assert TOKENIZER.decode([id for id in ids if id < 256]) == "Clip: soone of 0:01:40: 0.03  end"


@pytest.mark.parametrize("fields", [{"rate": 1.0}, {"most": 3}, {"opens": "{frames}"}, {"frame": "{seconds"}])
def test_films_that_cannot_be_written_are_refused(fields):
    with pytest.raises(ValidationError, match=r"give both or neither|opens knows"):
        Film(**fields)
