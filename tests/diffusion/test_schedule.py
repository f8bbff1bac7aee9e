"""Times that are trained at and visited, and what they leave of a latent."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import DDIM, DPMSolver, Euler
from sensorium.diffusion.schedule import Diffusion, Flow

SCHEDULES = [Diffusion(), Diffusion(betas="cosine"), Flow(), Flow(density="logistic", shift=3.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_fall_from_noise_to_the_picture(schedule):
    for sampler in (DDIM(steps=10), Euler(steps=7, spacing="linspace"), DPMSolver(steps=5)):
        trail = sampler.trail(schedule)
        assert len(trail) == sampler.steps
        assert all(a > b for a, b in pairwise(trail.times))
        assert all(a < b for a, b in pairwise(trail.alpha))
        assert trail.sigma[0] > 0.99
        assert (trail.alpha[-1], trail.sigma[-1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        schedule.times(1001)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_drawn_times_lie_within_and_follow_the_density(schedule):
    torch.manual_seed(0)
    times = schedule.draw(20_000)
    assert 0 <= float(times.min()) <= float(times.max()) <= schedule.steps
    share = times / schedule.steps
    if isinstance(schedule, Flow) and schedule.density == "logistic":
        # of a normal number, moved by log 3: half of the shares lie above 3 / 4
        assert float((share > 0.75).float().mean()) == pytest.approx(0.5, abs=0.02)
    else:
        assert float(share.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["noise", "clean", "velocity", "flow"])
def test_what_a_right_prediction_says_is_the_picture_and_the_noise(schedule, kind):
    clean, noise, time = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([50.0, 300.0, 600.0, 900.0])
    alpha, sigma = (term[:, None] for term in schedule.terms(time))
    predictor = Predictor(kind=kind)
    x = schedule.noised(clean, noise, time)
    found = predictor.estimates(predictor.target(clean, noise, alpha, sigma), x, alpha, sigma)
    assert_close(found[0], clean, rtol=1e-3, atol=1e-3)
    assert_close(found[1], noise, rtol=1e-3, atol=1e-3)
