"""All families of published checkpoints that are known."""

from __future__ import annotations

from sensorium.convert.autoencoder import AUTOENCODER
from sensorium.convert.bert import BERT, DISTILBERT, ROBERTA
from sensorium.convert.blip import BLIP
from sensorium.convert.blip2 import BLIP_2
from sensorium.convert.chameleon import CHAMELEON
from sensorium.convert.clip import CLIP, CLIP_EYES
from sensorium.convert.dit import DIT
from sensorium.convert.emu3 import EMU3
from sensorium.convert.encoders import ENCODERS
from sensorium.convert.fuyu import FUYU
from sensorium.convert.idefics import IDEFICS
from sensorium.convert.idefics3 import IDEFICS3
from sensorium.convert.instructblip import INSTRUCTBLIP
from sensorium.convert.janus import JANUS
from sensorium.convert.kosmos2 import KOSMOS2
from sensorium.convert.language import LANGUAGE
from sensorium.convert.layout import Family, text_only
from sensorium.convert.llava import LLAVA, LLAVA_NEXT, VIPLLAVA
from sensorium.convert.paligemma import PALIGEMMA
from sensorium.convert.qwen2_vl import QWEN2_VL
from sensorium.convert.settings import Settings
from sensorium.convert.siglip import NAFLEX, NAFLEX_EYES, SIGLIP, SIGLIP_EYES
from sensorium.convert.smolvlm import SMOLVLM
from sensorium.convert.t5 import T5
from sensorium.convert.whisper import WHISPER
from sensorium.errors import UserError, nearest

__all__ = ["FAMILIES", "Family", "family_named", "family_of"]

TEXT = (T5, BERT, ROBERTA, DISTILBERT)
DIFFUSERS = (AUTOENCODER, DIT)
SEEING = (
    LLAVA, LLAVA_NEXT, VIPLLAVA, PALIGEMMA, BLIP, BLIP_2, INSTRUCTBLIP, QWEN2_VL, IDEFICS, IDEFICS3, SMOLVLM, KOSMOS2,
)  # fmt: skip
TOWERS = (CLIP, CLIP_EYES, SIGLIP, SIGLIP_EYES, NAFLEX, NAFLEX_EYES)
CODED = (FUYU, CHAMELEON, EMU3, JANUS)
"""Pictures enter as patches or codes."""
FAMILIES: tuple[Family, ...] = (
    *map(text_only, LANGUAGE), *TEXT, *SEEING, *CODED, *TOWERS, *ENCODERS, WHISPER, *DIFFUSERS,
)  # fmt: skip


def family_of(settings: Settings) -> Family:
    """The family that a config.json belongs to, by what it says and never by its path.

    Raises UserError for one that is not known.
    """
    field = "_class_name" if "_class_name" in settings and "model_type" not in settings else "model_type"
    name = settings.take(field, str, "")
    known = {one: family for family in FAMILIES for one in family.types}
    if name not in known:
        raise settings.error(f"{field} is {name!r}, which cannot be opened yet: {nearest(name, known)}")
    return known[name]


def family_named(name: str) -> Family:
    """Raises UserError for a name that is not known."""
    known = {family.name: family for family in FAMILIES}
    if name not in known:
        raise UserError(f"there is no family {name!r}: {nearest(name, known)}")
    return known[name]
