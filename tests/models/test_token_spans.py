"""Codes among words: one rendering, ids from the codec, weights, and packed documents that do not meet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sensorium.codecs.tokens import CodeTokens
from sensorium.objectives.language import NextToken
from sensorium.sequence import Sample, Segment, Sequence

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))
from token_models import CODES, WORDS, Noise, document, engine_of, renderer_of, token_config, token_model

OPEN, CLOSE, ROW = WORDS + CODES, WORDS + CODES + 1, WORDS + CODES + 2


@pytest.fixture(scope="module")
def model():
    return token_model()


def prepared(model, *samples):
    renderer = renderer_of(model)
    return engine_of(model).prepare([renderer.render(sample) for sample in samples])


def test_a_picture_becomes_its_codes_between_its_marks_row_by_row(model):
    picture = Noise(1, height=8, width=12)
    [sequence] = prepared(model, document("a cat", picture))
    codes = model.codec("image").prepare_inference()([renderer_of(model).load("image", picture)]).values[:, 0] + WORDS
    ids = sequence.ids.tolist()
    first = codes.tolist()
    assert ids[:6] == [257, *b"a cat"]
    assert ids[6:] == [OPEN, *first[:2], ROW, *first[2:], ROW, CLOSE, 258]
    assert sequence.modality.tolist() == [0] * 6 + [1] * 8 + [0]


def test_what_the_assistant_shows_is_learned_and_what_the_user_shows_is_not(model):
    turns = (
        Segment("image", Noise(1), "user"), Segment("text", "What?", "user"), Segment("text", "a dot", "assistant"),
        Segment("text", "Draw it.", "user"), Segment("image", Noise(2), "assistant"),
    )  # fmt: skip
    sequence = renderer_of(model).render(Sample(turns))
    shown, drawn = sequence.spans
    weights = sequence.weight
    assert not weights[shown.start : shown.start + shown.length].any()
    assert weights[drawn.start : drawn.start + drawn.length].all()
    assert weights[drawn.start + drawn.length] == 1  # what ends the turn
    assert int(weights.sum()) == len("a dot") + 1 + drawn.length + 1


def test_the_tokens_of_a_picture_weigh_what_the_model_says():
    sequence = renderer_of(token_model(weight=0.5)).render(document("a", Noise(1)))
    [span] = sequence.spans
    assert sequence.weight[span.start : span.start + span.length].tolist() == [0.5] * span.length
    assert sequence.weight[-1] == 1


def test_rendering_without_media_plans_the_same_tokens(model):
    sample = document("a", Noise(1, 8, 4), "b", Noise(2))
    planned, whole = renderer_of(model).render(sample, items=False), prepared(model, sample)[0]
    assert planned.spans == whole.spans
    assert len(planned) == len(whole)


def test_packed_documents_equal_separate_ones(model):
    documents = prepared(
        model, document("a cat", Noise(1)), document(Noise(2, 4, 8), "dots", Noise(3)), document("no picture")
    )
    with torch.no_grad():
        apart = torch.cat([model(one).hidden for one in documents])
        packed = Sequence.pack(documents)
        together = model(packed).hidden
        losses = [NextToken()(model(one), one) for one in documents]
        loss = NextToken()(model(packed), packed)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.sum, torch.stack([one.sum for one in losses]).sum(), rtol=1e-4, atol=1e-4)


def test_a_picture_changes_what_follows_it_and_nothing_before(model):
    one, other = prepared(model, document("ab", Noise(1), "c"), document("ab", Noise(2), "c"))
    with torch.no_grad():
        first, second = model(one).hidden, model(other).hidden
    [span] = one.spans
    assert torch.equal(first[: span.start + 1], second[: span.start + 1])
    assert (first[-2:] - second[-2:]).abs().max() > 1e-3


def test_codes_that_were_never_filled_in_are_an_error(model):
    with pytest.raises(ValueError, match="has no codes"):
        model(renderer_of(model).render(document("a", Noise(1))))


def test_a_picture_of_another_size_than_planned_is_an_error(model):
    [sequence] = prepared(model, document("a", Noise(1)))
    [other] = prepared(model, document("a", Noise(2, 4, 4)))
    sequence.items = other.items
    with pytest.raises(ValueError, match="at token 2 was planned with 8 tokens and has 4"):
        model.config.written(sequence)


class Clip:
    """Frames of noise."""

    def __init__(self, *seeds: int) -> None:
        self.frames = [Noise(seed).image for seed in seeds]

    def key(self) -> str:
        return "".join(str(hash(frame.tobytes())) for frame in self.frames)

    def shape(self):
        return len(self.frames), 8, 8

    def load(self):
        return self.frames


def test_a_clip_goes_through_the_codec_of_pictures_frame_after_frame(model):
    shared = token_model().config.replace(share={"video": "image"}).build().eval()
    shared.load_state_dict(model.state_dict())
    [clip] = prepared(shared, Sample((Segment("text", "a"), Segment("video", Clip(1, 2)))))
    [first] = prepared(model, document("a", Noise(1)))
    [second] = prepared(model, document("a", Noise(2)))
    rows = [one.ids.tolist()[3:-2] for one in (first, second)]  # without begin, word, open, close, end
    assert clip.ids.tolist() == [257, ord("a"), OPEN, *rows[0], *rows[1], CLOSE, 258]
    assert clip.spans[0].kind == "video"


def test_text_that_looks_like_codes_stays_text(model):
    sequence = renderer_of(model).render(document("<|image|>\u0115"))
    assert int(sequence.ids.max()) < WORDS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": {}}, "need `tokens`"),
        ({"tokens": {"image": CodeTokens.after(WORDS, CODES + 1)}}, "has 17 codes, its codec 16"),
        ({"tokens": {"image": CodeTokens.after(WORDS + 1, CODES)}}, "ends at id 278: the vocabulary has 278"),
    ],
)
def test_codes_must_fit_their_codec_and_the_vocabulary(changes, message):
    with pytest.raises(ValidationError, match=message):
        token_config().replace(**changes)


def test_the_z_loss_is_the_squared_log_of_the_sum_of_exponentials(model):
    [sequence] = prepared(model, document("a cat", Noise(1)))
    with torch.no_grad():
        outputs = model(sequence)
        plain, with_z = NextToken()(outputs, sequence), NextToken(z=0.1)(outputs, sequence)
        places = (sequence.weight > 0).nonzero()[:, 0] - 1
        expected = 0.1 * outputs.logits(places).logsumexp(-1).square() * sequence.weight[places + 1]
    torch.testing.assert_close(with_z.sum - plain.sum, expected.sum(), rtol=1e-4, atol=1e-4)
    assert with_z.count == plain.count


def test_codes_that_are_said_are_doubted_while_a_model_learns_and_only_then(model):
    shown = Sample((Segment("image", Noise(1), train=False), Segment("text", "a cat", train=True)))
    drawn, read = prepared(model, document("a cat", Noise(1)), shown)
    config = model.config.tokens["image"].replace(keep=0.01)
    doubting = token_model()
    doubting.config = model.config.replace(tokens={"image": config})
    with torch.no_grad():
        torch.manual_seed(0)
        other = doubting.train()(drawn).hidden
        torch.testing.assert_close(doubting.train()(read).hidden, model.eval()(read).hidden)
        same = model(drawn).hidden
        torch.testing.assert_close(doubting.eval()(drawn).hidden, same)
    first = drawn.spans[0].start + 1
    torch.testing.assert_close(other[:first], same[:first])
    assert (other[first:] - same[first:]).abs().max() > 0.01
