"""A pipeline's scheduler: how a picture is noised and what is predicted, and how it is sampled."""

from __future__ import annotations

from typing import Any

from sensorium.convert.settings import Settings
from sensorium.diffusion.predictor import Kind, Predictor
from sensorium.diffusion.sampler import DDIM, DDPM, Sampler
from sensorium.diffusion.schedule import Diffusion, Schedule
from sensorium.errors import UserError, nearest

STEPS = 50
"""Of sampling, where nobody says how many: the default of the pipeline's call."""
_BETAS = {"linear": "linear", "scaled_linear": "scaled", "squaredcos_cap_v2": "cosine"}
_KINDS: dict[str, Kind] = {"epsilon": "noise", "sample": "clean", "v_prediction": "velocity"}
_SPACINGS = {name: name for name in ("leading", "trailing", "linspace")}
_LARGE = {"fixed_small": False, "fixed_large": True}


def read_scheduler(settings: Settings) -> tuple[Diffusion, Predictor, Sampler]:
    """The fields of scheduler_config.json. Raises UserError for a scheduler that cannot be said here."""
    name = settings.take("_class_name", str)
    if name not in ("DDIMScheduler", "DDPMScheduler"):
        raise settings.error(f"_class_name is {name!r}, a scheduler that cannot be said here: "
                             f"{nearest(name, ('DDIMScheduler', 'DDPMScheduler'))}")  # fmt: skip
    settings.only("trained_betas", None)
    settings.only("thresholding", False)
    settings.only("rescale_betas_zero_snr", False)
    settings.skip("dynamic_thresholding_ratio", "sample_max_value")  # of thresholding
    schedule = Diffusion(
        steps=settings.count("num_train_timesteps", 1000, least=2),
        betas=settings.choose("beta_schedule", _BETAS, "linear"), first=settings.take("beta_start", float, 1e-4),
        last=settings.take("beta_end", float, 0.02), offset=settings.count("steps_offset", 0, least=0),
    )  # fmt: skip
    predictor = Predictor(kind=settings.choose("prediction_type", _KINDS, "epsilon"))
    shared: dict[str, Any] = {"steps": min(STEPS, schedule.steps),
                              "spacing": settings.choose("timestep_spacing", _SPACINGS, "leading")}  # fmt: skip
    clip = settings.take("clip_sample", bool, True)
    edge = settings.take("clip_sample_range", float, 1.0)
    if name == "DDPMScheduler":
        large = settings.choose("variance_type", _LARGE, "fixed_small")
        return schedule, predictor, DDPM(**shared, large=large, clip=edge if clip else None)
    settings.only("set_alpha_to_one", True)
    if clip:
        raise settings.error("clip_sample is true, which latents are not meant for; only false can be said here")
    return schedule, predictor, DDIM(**shared)


def write_scheduler(schedule: Schedule, predictor: Predictor, sampler: Sampler | None) -> dict[str, Any]:
    """The inverse; without a sampler that of DiT's pipeline, DDIM.

    Raises UserError for what these schedulers do not say.
    """
    if not isinstance(schedule, Diffusion):
        raise UserError(f"the layout of diffusers' schedulers says a Diffusion, not a {schedule.tag()}")
    kinds = {kind: name for name, kind in _KINDS.items()}
    if predictor.kind not in kinds:
        raise UserError(f"the layout of diffusers' schedulers cannot say a predictor of {predictor.kind!r}")
    sampler = DDIM(steps=STEPS, spacing="leading") if sampler is None else sampler
    fields: dict[str, Any] = {
        "num_train_timesteps": schedule.steps, "beta_start": schedule.first, "beta_end": schedule.last,
        "beta_schedule": {kind: name for name, kind in _BETAS.items()}[schedule.betas],
        "steps_offset": schedule.offset, "prediction_type": kinds[predictor.kind], "trained_betas": None,
        "timestep_spacing": sampler.spacing,
    }  # fmt: skip
    match sampler:
        case DDIM(eta=0.0):
            return {"_class_name": "DDIMScheduler", **fields, "clip_sample": False, "set_alpha_to_one": True}
        case DDPM():
            return {"_class_name": "DDPMScheduler", **fields, "clip_sample": sampler.clip is not None,
                    "clip_sample_range": sampler.clip or 1.0,
                    "variance_type": "fixed_large" if sampler.large else "fixed_small"}  # fmt: skip
        case _:
            raise UserError(f"the layout of diffusers' schedulers cannot say the sampler {sampler.tag()}: DDIM without "
                            "noise of its own, or DDPM, can be said")  # fmt: skip
