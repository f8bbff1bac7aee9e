"""Schedules, predictors and samplers equal diffusers' on the same outputs of the model, noise and steps."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch.testing import assert_close

from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import DDIM, DDPM, DPMSolver, Euler
from sensorium.diffusion.schedule import Diffusion, Flow

BETAS = {
    "linear": ("linear", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "scaled": ("scaled", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
}
KINDS = {"noise": "epsilon", "clean": "sample", "velocity": "v_prediction"}
SHAPE = (2, 4, 8, 8)


def schedule(name):
    if name == "scaled":
        return Diffusion(betas="scaled", first=0.00085, last=0.012)
    return Diffusion(betas=name)


def network(x, time):
    """Any function of the state and the time, the same for both; bounded, as a denoiser's output is."""
    return torch.tanh(0.7 * x + 0.3 * math.sin(time / 100) * torch.roll(x, 1, -1))


def close(ours, theirs):
    """Within 1e-5, relative to the largest value where that is above 1."""
    theirs = theirs.float()
    assert_close(ours.float(), theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def run(sampler, plan, predictor, x, seed=7):
    """Our sampler over all its times: its trail and the states."""
    trail = sampler.trail(plan)
    draws = torch.Generator().manual_seed(seed)
    states = []
    for index in range(len(trail)):
        alpha, sigma = torch.tensor(trail.alpha[index]).float(), torch.tensor(trail.sigma[index]).float()
        clean, noise = predictor.estimates(network(x, trail.times[index]), x, alpha, sigma)
        fresh = torch.randn(x.shape, generator=draws) if sampler.random and index + 1 < len(trail) else None
        x = sampler.step(trail, index, x, clean, noise, fresh)
        states.append(x)
    return trail, states


@pytest.fixture
def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("betas", BETAS)
def test_terms_and_noised_latents(betas):
    theirs, plan = DDPMScheduler(**BETAS[betas][1]), schedule(betas)
    clean, noise = torch.randn(5, 4, 8), torch.randn(5, 4, 8)
    times = torch.tensor([0, 1, 500, 998, 999])
    close(plan.noised(clean, noise, times.float()), theirs.add_noise(clean, noise, times))
    alpha, sigma = plan.terms(times.float())
    close(alpha.square(), theirs.alphas_cumprod[times])
    close(alpha.square() + sigma.square(), torch.ones(5))
    velocity = Predictor(kind="velocity").target(clean, noise, alpha[:, None, None], sigma[:, None, None])
    close(velocity, theirs.get_velocity(clean, noise, times))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("count", [7, 10, 50])
def test_times(spacing, count):
    theirs = DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(count)
    ours = Diffusion().times(count, spacing)
    assert [round(time) for time in ours] == theirs.timesteps.tolist()


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(betas, kind, eta, start):
    theirs = DDIMScheduler(
        **BETAS[betas][1], prediction_type=KINDS[kind], clip_sample=False, timestep_spacing="leading"
    )
    theirs.set_timesteps(10)
    _, states = run(DDIM(steps=10, spacing="leading", eta=eta), schedule(betas), Predictor(kind=kind), start)
    x, draws = start, torch.Generator().manual_seed(7)
    for time, ours in zip(theirs.timesteps, states):
        fresh = torch.randn(x.shape, generator=draws) if eta and time > 0 else None
        x = theirs.step(network(x, float(time)), int(time), x, eta=eta if time > 0 else 0, variance_noise=fresh)[0]
        close(ours, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("large", "clip"), [(False, None), (False, 1.0), (True, None)])
def test_ddpm(kind, large, clip, start):
    theirs = DDPMScheduler(
        **BETAS["linear"][1], prediction_type=KINDS[kind], clip_sample=clip is not None,
        variance_type="fixed_large" if large else "fixed_small", timestep_spacing="leading",
    )  # fmt: skip
    theirs.set_timesteps(20)
    sampler = DDPM(steps=20, spacing="leading", large=large, clip=clip)
    _, states = run(sampler, schedule("linear"), Predictor(kind=kind), start)
    x, draws = start, torch.Generator().manual_seed(7)
    for time, ours in zip(theirs.timesteps, states):
        x = theirs.step(network(x, float(time)), int(time), x, generator=draws)[0]
        close(ours, x)


@pytest.mark.parametrize("betas", ["linear", "scaled"])
@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_euler(betas, kind, start):
    """Theirs keeps x / alpha; ours x. At the clean end both are the picture."""
    theirs = EulerDiscreteScheduler(**BETAS[betas][1], prediction_type=KINDS[kind], timestep_spacing="linspace")
    theirs.set_timesteps(12)
    trail, states = run(Euler(steps=12, spacing="linspace"), schedule(betas), Predictor(kind=kind), start)
    x = start / trail.alpha[0]
    for index, (time, ours) in enumerate(zip(theirs.timesteps, states)):
        scaled = theirs.scale_model_input(x, time)
        x = theirs.step(network(scaled, float(time)), time, x)[0]
        close(ours, x * trail.alpha[index + 1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_of_rectified_flow(shift, start):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(15)
    plan = Flow(shift=shift)
    trail, states = run(Euler(steps=15, spacing="linspace"), plan, Predictor(kind="flow"), start)
    assert_close(torch.tensor(trail.times[:-1]), theirs.timesteps, rtol=1e-5, atol=1e-3)  # of 1000
    x = start
    for time, ours in zip(theirs.timesteps, states):
        x = theirs.step(network(x, float(time)), time, x)[0]
        close(ours, x)
    clean, noise = torch.randn(3, 5), torch.randn(3, 5)
    chosen = theirs.timesteps[[0, 4, 9]]
    close(plan.noised(clean, noise, chosen), theirs.scale_noise(clean, chosen, noise))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, 20])
def test_dpm_solver(betas, kind, count, start):
    theirs = DPMSolverMultistepScheduler(**BETAS[betas][1], prediction_type=KINDS[kind])
    theirs.set_timesteps(count)
    trail, states = run(DPMSolver(steps=count), schedule(betas), Predictor(kind=kind), start)
    assert trail.times[:-1] == theirs.timesteps.tolist()
    x = start
    for time, ours in zip(theirs.timesteps, states):
        x = theirs.step(network(x, float(time)), time, x)[0]
        close(ours, x)
