"""Multiple choice with an engine whose likelihoods are known: scores, blind control and priors by hand."""

import random
from collections import Counter

import pytest

from sensorium.data.emoji import EmojiPicture
from sensorium.evaluate import choice
from sensorium.evaluate.choice import Choice, run_choice
from sensorium.infer.likelihoods import Likelihoods

EMOJI = Choice(name="multiple_choice", family="emoji", split="val_artist", n=48)


class Fake:
    """Likelihoods from a function of (picture or None, question, options); remembers what it was asked."""

    def __init__(self, score):
        self.score, self.asked = score, []

    def log_likelihoods(self, questions, progress=None):
        results = []
        for segments, options in questions:
            media = [segment.data for segment in segments if segment.kind != "text"]
            text = " ".join(segment.data for segment in segments if segment.kind == "text")
            self.asked.append((media[0] if media else None, text, tuple(options)))
            results.append(self.score(media[0] if media else None, tuple(options)))
            if progress is not None:
                progress(len(results))
        return results


def knowing(items):
    """The right option is the likeliest for its picture, whatever is asked beside it."""
    answers = {(item.segments[0].data.key(), tuple(item.info["options"])): item.info["answer"] for item in items}

    def score(picture, options):
        answer = answers.get((picture.key(), options), 0) if picture is not None else 0
        return Likelihoods(tuple(float(index == answer) for index in range(len(options))), (1.0,) * len(options))

    return Fake(score)


def test_an_engine_that_knows_scores_one_and_at_chance_blind():
    items = EMOJI.items()
    result = run_choice(knowing(items), EMOJI)
    one = result.evaluation()
    assert (one.score, one.n, one.chance) == (1.0, 48, 0.25)
    assert one.low < 1.0 == one.high
    assert one.blind < 0.5
    assert one.task == "multiple_choice"
    assert one.split == "val_artist"


@pytest.mark.parametrize("scoring", ["sum", "mean", "prior"])
def test_an_engine_that_reads_only_the_words_is_exactly_at_chance(scoring):
    """Whatever words it prefers, each option of a group of four is right once."""

    def score(picture, options):
        drawn = random.Random(" ".join(options))
        return Likelihoods(tuple(drawn.random() for _ in options), tuple(1.0 + len(option) for option in options))

    one = run_choice(Fake(score), EMOJI.replace(scoring=scoring)).evaluation()
    assert one.score == one.blind == 0.25


def test_blind_the_same_questions_stand_beside_other_pictures_the_same_each_time():
    items = EMOJI.items()
    runs = [knowing(items), knowing(items)]
    for engine in runs:
        run_choice(engine, EMOJI)
    asked = [[(None if p is None else p.key(), text, options) for p, text, options in run.asked] for run in runs]
    assert asked[0] == asked[1]
    right, blind = asked[0][:48], asked[0][48:]
    assert [entry[1:] for entry in right] == [entry[1:] for entry in blind]
    assert Counter(entry[0] for entry in right) == Counter(entry[0] for entry in blind)
    moved = sum(left[0] != other[0] for left, other in zip(right, blind))
    assert moved >= 44
    other = knowing(items)
    run_choice(other, EMOJI.replace(seed=1))
    assert [p.key() for p, _, _ in other.asked[48:]] != [key for key, _, _ in blind]


def fixed(sums, counts, without=None):
    return Fake(lambda picture, options: Likelihoods(sums if picture is not None else without or sums, counts))


@pytest.mark.parametrize(
    ("scoring", "chosen"),
    [
        ("sum", 1),  # -4 is the largest
        ("mean", 2),  # -4/1, -4.0 ... against -6/6 = -1
        ("prior", 3),  # -5 + 9 = 4; the others gain at most 1
    ],
)
def test_each_way_of_scoring_by_hand(scoring, chosen):
    sums, counts, without = (-4.5, -4.0, -6.0, -5.0), (2.0, 1.0, 6.0, 1.0), (-5.0, -5.0, -6.0, -9.0)
    task = EMOJI.replace(scoring=scoring, n=8)
    result = run_choice(fixed(sums, counts, without), task)
    assert result.chosen == [chosen] * 8
    assert result.blind == [chosen] * 8


def test_the_prior_is_asked_once_a_question_and_without_a_picture():
    engine = fixed((0.0,) * 4, (1.0,) * 4)
    task = EMOJI.replace(scoring="prior", n=16)
    run_choice(engine, task)
    priors = [entry for entry in engine.asked if entry[0] is None]
    assert len(priors) == len({tuple(item.info["options"]) for item in task.items()}) == 4
    assert len(engine.asked) == 2 * 16 + 4


def test_progress_counts_every_prompt():
    seen = []
    run_choice(fixed((0.0,) * 4, (1.0,) * 4), EMOJI.replace(n=8), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)


@pytest.mark.parametrize(("family", "chance"), [("count", 0.2), ("position", 0.25)])
def test_scene_tasks_know_their_chance(family, chance):
    task = Choice(name=family, family=family, split="val_scene", n=20)
    one = run_choice(fixed((0.0, *(-1.0,) * 4), (1.0,) * 5), task).evaluation()
    assert one.chance == pytest.approx(chance)
    assert one.score == pytest.approx(chance)


def test_items_that_differ_in_the_picture_alone_share_a_question():
    items = EMOJI.items()
    keys = Counter(choice._question(item) for item in items)
    assert set(keys.values()) == {4}
    assert all(isinstance(item.segments[0].data, EmojiPicture) for item in items)
