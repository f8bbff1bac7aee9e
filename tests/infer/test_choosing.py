"""Which token of an answer is chosen, with which log-probability."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.errors import UserError
from sensorium.infer.choosing import FEW, Choice, Chooser
from sensorium.infer.sampling import Sampling
from sensorium.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()
# probabilities 0.5, 0.25, 0.15, 0.1 of ids 2, 0, 3, 1
LOGITS = torch.tensor([0.25, 0.1, 0.5, 0.15]).log()


def chooser(prompt=(), seed=0, **options) -> Chooser:
    return Chooser(Sampling(**options), TOKENIZER, list(prompt), seed, frozenset())


def drawn(count=2500, **options) -> list[float]:
    """How often each id is chosen."""
    one = chooser(**{"temperature": 1.0, **options})
    ids = torch.tensor([one.choose(LOGITS).id for _ in range(count)])
    return (torch.bincount(ids, minlength=4) / count).tolist()


def by_sorting(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The draw as the papers say it, over the whole vocabulary."""
    top, ids = logits.topk(min(sampling.top_k or len(logits), len(logits)))
    share = (top / sampling.temperature).softmax(-1)
    kept = (share.cumsum(-1) - share < sampling.top_p) & (share >= sampling.min_p * share[0])
    return int(ids[torch.multinomial(share * kept, 1, generator=generator)])


def test_greedy_takes_the_likeliest():
    assert chooser().choose(LOGITS) == Choice(2, None, ())
    assert chooser().greedy
    assert chooser(top_k=5, seed=3, n=4).greedy
    for wish in ({"logprobs": 0}, {"temperature": 0.1}, {"presence_penalty": 1}, {"logit_bias": {3: 1}}):
        assert not chooser(**wish).greedy


def test_draws_follow_the_probabilities():
    assert drawn() == pytest.approx([0.25, 0.1, 0.5, 0.15], abs=0.03)
    # at temperature 0.5 probabilities are squared: 25, 6.25, 2.25, 1 of 34.5
    assert drawn(temperature=0.5) == pytest.approx([0.181, 0.029, 0.725, 0.065], abs=0.03)


def test_truncation_keeps_the_likeliest():
    assert drawn(top_k=2) == pytest.approx([1 / 3, 0, 2 / 3, 0], abs=0.03)
    assert drawn(top_k=1)[2] == 1
    assert drawn(top_k=99) == pytest.approx([0.25, 0.1, 0.5, 0.15], abs=0.03)
    assert drawn(top_p=0.7) == pytest.approx([1 / 3, 0, 2 / 3, 0], abs=0.03)
    assert drawn(top_p=0.76) == pytest.approx([0.25 / 0.9, 0, 0.5 / 0.9, 0.15 / 0.9], abs=0.03)
    assert drawn(top_p=1e-9)[2] == 1
    # min_p: shares of the likeliest are 1, 0.5, 0.3, 0.2; at temperature 0.5 they are 1, 0.25, 0.09, 0.04
    assert drawn(min_p=0.25) == pytest.approx([0.25 / 0.9, 0, 0.5 / 0.9, 0.15 / 0.9], abs=0.03)
    assert drawn(min_p=0.25 - 1e-4, temperature=0.5) == pytest.approx([0.2, 0, 0.8, 0], abs=0.03)
    assert drawn(min_p=1.0)[2] == 1


SIZES = {"small": 50, "as sorted at once": FEW, "large": 20 * FEW}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", [
    {}, {"top_k": 7}, {"top_k": 3 * FEW}, {"top_p": 0.4}, {"top_p": 0.999}, {"top_k": 40, "top_p": 0.8},
    {"min_p": 0.02}, {"min_p": 1e-5, "top_p": 0.95}, {"temperature": 0.3, "top_p": 0.9}, {"temperature": 30.0},
], ids=str)  # fmt: skip
def test_draws_are_those_of_the_whole_sorted_vocabulary(size, options):
    """Whatever is left unsorted: the same seed draws the same tokens, one number of the generator for each rank."""
    sampling = Sampling(**{"temperature": 1.0, **options})
    generator = torch.Generator().manual_seed(11)
    one = Chooser(sampling, TOKENIZER, [], 11, frozenset())
    spread = torch.Generator().manual_seed(size)
    for sharpness in (0.1, 1.0, 3.0, 6.0):
        for _ in range(5):
            # distinct by construction: the order of equal logits is nobody's promise
            logits = torch.randperm(size, generator=spread) / size * 4 + torch.randn(1, generator=spread)
            logits = (logits / 4).exp() * sharpness
            assert one.choose(logits).id == by_sorting(logits, sampling, generator)


def test_a_few_candidates_decide_a_peaked_distribution():
    logits = torch.full((100 * FEW,), -30.0)
    logits[torch.arange(5) * 7] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    one = chooser(temperature=1.0)
    assert {one.choose(logits).id for _ in range(200)} <= {0, 7, 14, 21, 28}


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.sampled_from([-math.inf, -50.0, 0.0, 1.0, 1.5, 8.0]), min_size=1, max_size=30),
    top_k=st.none() | st.integers(1, 40), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1),
)  # fmt: skip
def test_what_is_ruled_out_is_never_drawn_and_something_always_is(logits, top_k, top_p, min_p):
    values = torch.tensor(logits)
    one = chooser(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    if values.max() == -math.inf:
        with pytest.raises(ValueError, match="ruled out"):
            one.choose(values)
    else:
        assert values[one.choose(values).id] > -math.inf


def test_numbers_that_overflowed_are_an_error():
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="largest logit"):
            chooser(temperature=1.0).choose(torch.tensor([0.0, wrong]))


def test_the_repetition_penalty_lowers_what_was_seen_whatever_its_sign():
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    assert chooser([0], repetition_penalty=2.0).choose(logits).id == 1
    assert chooser([], repetition_penalty=2.0).choose(logits).id == 0
    assert chooser([0], repetition_penalty=2.0).choose(torch.tensor([-1.0, -1.1])).id == 1
    assert logits[0] == 2.0  # the caller's logits are not touched
    one = chooser([], repetition_penalty=2.0)
    one.take(0)
    assert one.choose(logits).id == 1
    assert chooser([0, 4], repetition_penalty=2.0).choose(logits).id == 1  # a mark that the model only reads


def test_presence_and_frequency_count_the_answer_alone():
    logits = torch.tensor([2.0, 1.5, 0.9])
    presence, frequency = chooser([0], presence_penalty=0.6), chooser([0], frequency_penalty=0.3)
    assert presence.choose(logits).id == frequency.choose(logits).id == 0
    for one in (presence, frequency):
        one.take(0)
    assert presence.choose(logits).id == 1  # 1.4, 1.5, 0.9
    assert frequency.choose(logits).id == 0  # 1.7, 1.5, 0.9
    for one in (presence, frequency):
        one.take(0)
        one.take(0)
    assert presence.choose(logits).id == 1  # still 1.4
    assert frequency.choose(logits).id == 1  # 1.1
    frequency.take(1)
    frequency.take(1)
    frequency.take(1)
    assert frequency.choose(logits).id == 0  # 1.1, 0.6, 0.9
    assert chooser(presence_penalty=-2.0).choose(logits).id == 0


def test_choosing_changes_nothing_but_the_generator():
    one = chooser(frequency_penalty=2.0, repetition_penalty=1.5)
    logits = torch.tensor([2.0, 1.9, 0.0])
    assert [one.choose(logits).id for _ in range(3)] == [0, 0, 0]


def test_a_bias_is_added():
    assert chooser(logit_bias={1: 0.2, 0: 0.1}).choose(torch.tensor([1.0, 1.0, 0.9])).id == 1
    assert chooser(logit_bias={0: -100}).choose(torch.tensor([1.0, 0.5])).id == 1
    assert chooser(logit_bias={len(TOKENIZER) - 1: 100}).choose(torch.tensor([1.0, 0.5])).id == 0
    with pytest.raises(UserError, match="no token 999"):
        chooser(logit_bias={999: 1.0})


def test_penalties_come_after_the_bias():
    # 1 + 1 = 2 is halved; halving first would leave 1.5 and win
    assert chooser([0], logit_bias={0: 1.0}, repetition_penalty=2.0).choose(torch.tensor([1.0, 1.2])).id == 1


def test_log_probabilities_are_the_models_own():
    expected = LOGITS.log_softmax(-1)
    for options in ({}, {"temperature": 0.2, "top_k": 1}, {"logit_bias": {2: 5.0}}, {"repetition_penalty": 9.0}):
        choice = chooser([2], logprobs=2, **options).choose(LOGITS + 3.0)
        assert choice.logprob == pytest.approx(float(expected[choice.id]), abs=1e-6)
        assert [id for id, _ in choice.top] == [2, 0]
        assert [value for _, value in choice.top] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-6)
    assert chooser(logprobs=0).choose(LOGITS).top == ()
    assert len(chooser(logprobs=99).choose(LOGITS).top) == 4
    said = chooser(logprobs=1, logit_bias={2: -100}).choose(LOGITS)
    assert said.id == 0  # chosen, and the likeliest is still told
    assert said.top[0][0] == 2
    assert chooser(logprobs=1).logprobs(LOGITS, 3) == Choice(3, pytest.approx(math.log(0.15)), said.top)


def test_codes_are_drawn_without_penalties():
    one = chooser([0], repetition_penalty=50.0, logit_bias={1: 100})
    assert one.draw(torch.tensor([2.0, 1.0])) == 0
    assert chooser(seed=4, temperature=1.0).draw(LOGITS) == chooser(seed=4, temperature=1.0).choose(LOGITS).id


@pytest.mark.parametrize("wrong", [
    {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": math.nan}, {"presence_penalty": 2.1}, {"frequency_penalty": -3},
    {"logit_bias": {1: 101}}, {"logit_bias": {1: math.nan}}, {"logit_bias": {-1: 1}}, {"logit_bias": {"a": 1}},
    {"n": 0}, {"logprobs": -1}, {"logprobs": True}, {"best_of": 2},
], ids=str)  # fmt: skip
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_options_come_from_json():
    sampling = Sampling(logit_bias={"7": -1}, min_p=0.1, n=2, logprobs=3)
    assert sampling.logit_bias == {7: -1.0}
    assert Sampling.model_validate_json(sampling.to_json()) == sampling
