"""The denoising wiring: latent spans of any shape, packed; conditions; what a new model says."""

import pytest
import torch
from tiny_denoiser import awake, config, document
from torch.testing import assert_close

from sensorium.models.latents import from_tokens, patched, to_tokens
from sensorium.nn.part import Grid
from sensorium.nn.rope import Rope
from sensorium.objectives.diffusion import Denoising
from sensorium.sequence import KINDS, Sequence, Span


def given(model, sequence, seed=0):
    """Noise and time that depend on the document alone."""
    latents = model.locate(sequence)
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(len(latents), model.config.channels, generator=draws), torch.tensor([100.0 * seed + 50])


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_packed_equals_separate_for_any_shape(positions):
    """Pictures of three aspect ratios and clips of two lengths side by side; one document asks for nothing."""
    more = {}
    if positions == "rotary":
        more = {"sections": None, "backbone": config().backbone.replace(rope=Rope.Config(sections=(2, 3, 3)))}
    model = awake(config(**more).build())
    shapes = [((16, 16), 5), ((8, 16), 3), ((16, 4), 0), ((4, 8, 8), 7), ((2, 16, 8), 4)]
    parts = [document(shape, words, seed) for seed, (shape, words) in enumerate(shapes)]
    parts[2].modality[0] = KINDS.index("image")  # nothing is asked for: no text at all
    drawn = [given(model, part, seed) for seed, part in enumerate(parts)]
    with torch.no_grad():
        alone = [model(part, *one) for part, one in zip(parts, drawn)]
        together = model(Sequence.pack(parts), torch.cat([n for n, _ in drawn]), torch.cat([t for _, t in drawn]))
    assert_close(together.output, torch.cat([one.output for one in alone]), rtol=1e-5, atol=1e-5)
    assert_close(together.target, torch.cat([one.target for one in alone]))
    objective, packed = Denoising(), Sequence.pack(parts)
    assert objective.count(packed) == len(together.output)
    total = sum(float(objective(one, part).sum) for one, part in zip(alone, parts))
    assert float(objective(together, packed).sum) == pytest.approx(total, rel=1e-5)


def test_changing_one_document_changes_no_other():
    model = awake(config().build())
    first, second, other = document((16, 16), 5, 0), document((8, 16), 3, 1), document((4, 8, 8), 9, 2)
    noise, time = given(model, Sequence.pack([first, second]))[0], torch.tensor([300.0, 700.0])
    length = len(model.locate(first))
    with torch.no_grad():
        before = model(Sequence.pack([first, second]), noise, time).output[:length]
        swapped = Sequence.pack([first, other])
        noise = torch.cat([noise[:length], torch.randn(len(model.locate(other)), 48)])
        after = model(swapped, noise, torch.tensor([300.0, 20.0])).output[:length]
    assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_text_and_time_both_count():
    model = awake(config().build())
    part = document((16, 16), 5)
    noise, time = given(model, part)
    with torch.no_grad():
        before = model(part, noise, time).output
        part.ids[-1] = (part.ids[-1] + 1) % 40
        assert (model(part, noise, time).output - before).abs().max() > 1e-3
        part.ids[-1] = (part.ids[-1] - 1) % 40
        assert_close(model(part, noise, time).output, before)
        assert (model(part, noise, time + 100).output - before).abs().max() > 1e-3


def test_a_new_model_predicts_zero_and_every_parameter_learns_soon():
    torch.manual_seed(0)
    model = config(drop=0.5).build().train()
    packed = Sequence.pack([document((16, 16), 5, seed) for seed in range(6)])
    outputs = model(packed)
    assert float(outputs.output.detach().abs().max()) == 0
    loss = Denoising()(outputs, packed)
    assert float(loss.count) == Denoising().count(packed) == 6 * 16
    loss.sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model = awake(model).train()
    Denoising()(model(packed), packed).sum.backward()
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0]
    assert silent == []


def test_noise_and_times_come_from_the_generator_and_from_spans():
    model = awake(config().build())
    part = document((16, 16), 5)
    torch.manual_seed(5)
    one = model(part)
    torch.manual_seed(5)
    two = model(part)
    assert_close(one.output, two.output, rtol=0, atol=0)
    assert not torch.equal(model(part).target, one.target)
    part.spans[0] = Span("image", 1, 16, 0, mode="latent", time=0.0)
    clean = model(part)
    assert clean.time.tolist() == [0.0]


def test_dropping_a_condition_is_asking_for_nothing():
    model = awake(config().build())
    part = document((16, 16), 5)
    latents, (noise, time) = model.locate(part), given(model, part)
    with torch.no_grad():
        dropped = model.predict(noise, time, latents, model.read(part, torch.tensor([True])))
        nothing = document((16, 16), 0)
        nothing.modality[0] = KINDS.index("image")
        assert_close(dropped, model.predict(noise, time, latents, model.read(nothing)), rtol=1e-5, atol=1e-6)
        asked = model.predict(noise, time, latents, model.read(part))
    assert (asked - dropped).abs().max() > 1e-2


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 4), (3, 1, 1)])
def test_patches_and_back(patch):
    grid = Grid(4, 8, frames=5)
    values = torch.randn(2 * grid.tokens, 3)
    tokens = to_tokens(values, grid, patch)
    assert tokens.shape == (2 * patched(grid, patch).tokens, 3 * patch[0] * patch[1] * patch[2])
    assert_close(from_tokens(tokens, grid, patch), values)


def test_parts_that_do_not_fit_are_refused():
    for changes, words in [
        ({"sections": (8, 8, 8)}, "must sum"),
        ({"sections": None}, "one kind of position"),
        ({"project": False}, "set `project`"),
        ({"backbone": config().text}, "modulated"),
    ]:
        with pytest.raises(ValueError, match=words):
            config(**changes)
