"""A real model, tiny: the same records whatever the batch and the order, and behind our own server the same again."""

import io
import random

import pytest
import torch
from asking import Exactly, Likeliest, Noise, Scripted, hold, sees, shows, task
from serve.serving import server
from tiny_fused import make, renderer_of

from sensorium.api import Model
from sensorium.data.media import PictureFile
from sensorium.evaluate.answerer import Local, fingerprint_of, seeded
from sensorium.evaluate.endpoint import Endpoint
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.runner import run_asked
from sensorium.evaluate.task import Subject
from sensorium.infer.sampling import Sampling
from sensorium.recipes.llava import llava
from sensorium.sequence import Sample, Segment
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits
from sensorium.train.ask import subject_of
from sensorium.train.build import build_model, tokenizer_of


@pytest.fixture(scope="module")
def subject():
    model = make()
    return Subject(model, renderer_of(model))


def questions(count):
    rng = random.Random(0)
    return [
        TaskItem(id=f"i{n}", question="".join(rng.choices("abc défg两?", k=rng.randint(1, 60))),
                 media=shows(*(rng.sample(range(20), n % 3))), options=("yes", "no", f"{n} more", "日本")[: 2 + n % 3],
                 answers=("x",), answer=n % 2)
        for n in range(count)
    ]  # fmt: skip


BROKEN = TaskItem(id="broken", question="?", media=shows(Noise(50, "pixels")), options=("a", "b"), answers=("x",))


def records(subject, source, batch, **changes):
    result = run_asked(task(source, **changes), Local(subject, batch=batch))
    return {one.id: vars(one) for one in result.records}


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), Sampling(max_tokens=6, temperature=1.0, top_p=0.9)])
def test_answers_do_not_depend_on_batch_or_order(subject, sampling):
    every = [*questions(14), BROKEN]
    expected = records(subject, hold("local", every), 16, sampling=sampling)
    assert len({one["said"] for one in expected.values()}) > 10
    assert "cannot be decoded" in expected["broken"]["error"]
    assert expected["broken"]["score"] == 0.0
    for batch in (1, 2, 7, 32):
        turned = random.Random(batch).sample(every, len(every))
        assert records(subject, hold("turned", turned), batch, sampling=sampling) == expected


def test_likelihoods_do_not_depend_on_batch_or_order(subject):
    every = [*questions(14), BROKEN]
    expected = records(subject, hold("local", every), 16, metric=Likeliest())
    assert "cannot be decoded" in expected["broken"]["error"]
    assert all(len(one["said"]["sums"]) > 1 for one in expected.values() if not one["error"])
    for batch in (1, 2, 7, 32):
        turned = random.Random(batch).sample(every, len(every))
        assert records(subject, hold("turned", turned), batch, metric=Likeliest()) == expected


def test_a_model_in_training_goes_on_in_its_mode(subject):
    subject.model.train()
    task(hold("mode", questions(3)), sampling=Sampling(max_tokens=2)).run(subject)
    assert subject.model.training
    subject.model.eval()


def test_a_fingerprint_is_of_weights_and_words_and_precision(subject):
    first = fingerprint_of(subject)
    assert Local(subject).fingerprint == first == fingerprint_of(subject)
    assert Local(subject, fingerprint="given").fingerprint == "given"
    other = make()
    assert fingerprint_of(Subject(other, renderer_of(other))) == first
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-3
    assert fingerprint_of(Subject(other, renderer_of(other))) != first
    assert fingerprint_of(Subject(make().bfloat16(), subject.renderer)) != first


def test_what_is_drawn_depends_on_the_prompt_and_the_seed():
    one, other = (Sample((Segment("text", text, "user"),)) for text in ("a", "b"))
    hot = Sampling(temperature=1.0)
    assert seeded(hot, one) == seeded(hot, Sample(one.segments, id="another id"))
    assert seeded(hot, one).seed != seeded(hot, other).seed
    assert seeded(hot.replace(seed=1), one).seed != seeded(hot, one).seed
    assert seeded(Sampling(), one) == Sampling()


def test_the_same_model_behind_our_server_gives_the_same_records():
    recipe = llava("tiny")
    model, tokenizer = build_model(recipe).eval(), tokenizer_of(recipe)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "backbone" in name and parameter.dim() > 1:  # strong enough that answers differ
            torch.nn.init.normal_(parameter, std=2 / parameter.shape[-1] ** 0.5)

    def picture(seed):
        stream = io.BytesIO()
        Noise(seed, size=24).load().save(stream, "PNG")
        return PictureFile(stream.getvalue(), name=f"picture {seed}")

    every = [
        TaskItem(id=f"s{n}", question=f"What is {n}?", answers=("x",),
                 media=(Segment("image", picture(n), "user"),) if n % 3 else ())
        for n in range(9)
    ]  # fmt: skip
    one = task(hold("served", every), sampling=Sampling(max_tokens=5), shots=1)
    local = run_asked(one, Local(subject_of(recipe, model, tokenizer)))
    hosted = Hosted.of("tiny", Model(recipe, model, tokenizer), Limits())
    try:
        with server([hosted]) as running:
            served = run_asked(one, Endpoint(running.url, "tiny", concurrency=3))
    finally:
        hosted.close()
    assert served.records == local.records
    assert served.evaluations == local.evaluations
    assert len({record.said for record in local.records}) > 1


def test_the_default_run_of_a_task_asks_the_subject(subject):
    one = task(hold("run", questions(4)), sampling=Sampling(max_tokens=3))
    seen = []
    result = one.run(subject, lambda *pair: seen.append(pair))
    assert [record.id for record in result.records] == ["i0", "i1", "i2", "i3"]
    assert seen[-1] == (6, 6)
    assert run_asked(one.replace(metric=Exactly()), Scripted(sees)).records[0].said == "nothing"
