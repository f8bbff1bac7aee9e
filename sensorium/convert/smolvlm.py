"""SmolVLM (Marafioti et al. 2025, arXiv 2504.05299): Idefics 3's parts, and clips, whose frames are pictures in one
view with words between them that say when each is shown."""

from __future__ import annotations

from typing import Any

from sensorium.convert.files import Files, Written
from sensorium.convert.idefics3 import COPIES, LARGEST, OWN, SPARE, longest, read, rules, squashed, tower_named, write
from sensorium.convert.keys import Rule
from sensorium.convert.layout import Family
from sensorium.convert.llava import image_prompts
from sensorium.convert.pictures import picture_settings
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError
from sensorium.film import Film
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.template import Template

CLIP = "<video>"
"""What stands for a clip in the chat template, and nowhere else."""
FILM = Film(
    opens="You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n",
    frame="\nFrame from {minutes:02d}:{seconds:02d}:", closes="\n\n", skip=1.0,
)  # fmt: skip
"""What the released processor has by heart."""
CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' ~ part['type'] ~ '>' }}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Conversations with clips are written so by the published processor, whatever the folder's own chat template says."""
_TOWERS = tower_named("smolvlm_vision", "smolvlm")
_NAME = "SmolVLM"
_STILLS = ("do_image_splitting", "return_row_col_info", "image_processor_type", "feature_extractor_type",
           "processor_class")  # fmt: skip
"""Fields of an image processor that a processor of clips does not read."""
_CLIPS = (*OWN, "fps", "num_frames", "do_sample_frames", "return_metadata", "video_metadata", "video_processor_type")
"""Fields of a processor of clips that `squashed` does not read."""


def _clip_settings(files: Files) -> Settings:
    """Those of the folder for clips; where it has none, those for pictures are also theirs."""
    if files.clips.values:
        return files.clips
    own = {name: value for name, value in files.pictures.values.items() if name not in _STILLS}
    return Settings(own, files.pictures.where)


def _clips(settings: Settings) -> tuple[ImageTransform | None, Film]:
    """How frames of clips are prepared, and which of them are read with which words; None: frames keep their sizes,
    which cannot be said here, and clips are then not read."""
    settings.skip(*_CLIPS)
    film, size = _sampling(settings)
    if not settings.take("do_resize", bool, True):
        settings.skip(*settings.values)
        return None, film
    first, view = min(LARGEST, longest(size, "size", 4 * 364)), longest(settings, "max_image_size", 364)
    made = squashed(settings, view, _CLIPS).replace(first=first, backend="torch")
    settings.done(idle=())
    return made, film


def _sampling(settings: Settings) -> tuple[Film, Settings]:
    """Which frames are taken, and where it is said what their longer side becomes."""
    older = settings.inner("video_sampling", {})
    if "video_sampling" in settings:
        rate, most = older.take("fps", float, None), older.count("max_frames", None)
        older.skip("video_size")
        older.done(idle=())
        said = settings if "size" in settings else Settings({"size": older.values.get("video_size")}, older.where)
    else:
        rate, most, said = settings.take("fps", float, None), settings.count("num_frames", None), settings
    if (rate is None) != (most is None):
        raise settings.error(f"frames of clips are taken at a rate and up to a number: fps is {rate}, the number "
                             f"(num_frames, or max_frames of video_sampling) {most}; give both")  # fmt: skip
    return FILM.replace(rate=rate, most=most), said


def _read(files: Files) -> Wiring.Config:
    model = read(files, _TOWERS)
    clips, _ = _clips(_clip_settings(files))
    if clips is None:
        return model
    assert isinstance(model, Fused.Config)
    tower, marks = model.encoders["image"], model.marks["image"]
    if clips.view != tower.transform.view:
        raise files.clips.error(f"frames become {clips.size} pixels wide, and the vision tower of config.json reads "
                                f"{tower.transform.size}: positions of other views cannot be said here")  # fmt: skip
    return model.replace(
        encoders={"image": tower.replace(clips=clips)}, share={"video": "image"},
        marks={"image": marks, "video": marks.replace(tiles=None)},
    )  # fmt: skip


def _prompts(files: Files, plain: Template) -> Template:
    template, (clips, film) = image_prompts(files, plain), _clips(_clip_settings(files))
    if clips is None:
        return template
    return template.replace(
        placeholder={**template.placeholder, "video": CLIP}, chats={"video": CHAT}, films={"video": film}
    )  # fmt: skip


def _apart(model: Wiring.Config) -> tuple[Wiring.Config, ImageTransform | None]:
    """The model as it reads pictures alone, and how it prepares frames of clips."""
    if not isinstance(model, Fused.Config) or model.share != {"video": "image"} or "image" not in model.encoders:
        return model, None
    tower, marks = model.encoders["image"], dict(model.marks)
    if tower.clips is None or marks.pop("video", None) != model.marks["image"].replace(tiles=None):
        raise UserError(f"the layout of {_NAME} marks a frame of a clip as a picture in one view, and prepares it in a "
                        f"way of its own: this model has clips={tower.clips}, marks {model.marks}")  # fmt: skip
    return model.replace(encoders={"image": tower.replace(clips=None)}, share={}, marks=marks), tower.clips


def _write(model: Wiring.Config) -> Written:
    stills, clips = _apart(model)
    written = write(stills, _TOWERS, "smolvlm", _NAME)
    if clips is not None:
        written.clips = _write_clips(clips)
    return written


def _write_clips(clips: ImageTransform) -> dict[str, Any]:
    said = picture_settings(clips.replace(first=None, backend="pillow"))
    for name in ("do_center_crop", "image_processor_type"):
        del said[name]
    said |= {
        "processor_class": f"{_NAME}Processor", "video_processor_type": f"{_NAME}VideoProcessor", "do_pad": True,
        "size": {"longest_edge": clips.first}, "max_image_size": {"longest_edge": clips.size},
    }  # fmt: skip
    if clips.first is None or _clips(Settings(said))[0] != clips:
        raise UserError(f"the layout of {_NAME} cannot say how this model prepares frames of clips: {clips}")
    return said


def _sampled(template: Template) -> dict[str, Any]:
    """Which frames of a clip are taken, as settings; of a prompt without films, what the published class has by heart.

    Raises UserError for a film with other words.
    """
    film = template.films.get("video", FILM)
    if film.replace(rate=None, most=None) != FILM:
        raise UserError(f"the layout of {_NAME} writes its own words between the frames of a clip: this model's prompt "
                        f"has {film}")  # fmt: skip
    return {} if film.rate is None else {"fps": film.rate, "num_frames": film.most}


def _rules(model: Wiring.Config) -> list[Rule]:
    return rules(_apart(model)[0])


SMOLVLM = Family(
    "smolvlm", ("smolvlm",), "SmolVLMForConditionalGeneration", _read, _write, _rules, spare=SPARE, copies=COPIES,
    tokens={"image": "image_token_id"}, prompts=_prompts, sampling=_sampled,
)  # fmt: skip
