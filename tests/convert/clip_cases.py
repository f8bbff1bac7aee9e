"""Clips that the published processors were asked about (scripts/clip_fixtures.py), and models that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import qwen2_vl_parts
import smolvlm_parts

RATES = (0.5, 8.0, 29.97, 60.0)
"""Frames a second."""


@dataclass(frozen=True)
class ClipCase:
    """A clip, a processor, and a model.

    shape     (height, width, frames) of the clip; rate: frames a second
    words     makes the tokenizer
    pictures, clips  settings of the processors of pictures and of clips
    taken     frames of the clip that are given, as its user says how many; (): as the processor samples
    sampled   whether it samples; otherwise all are given
    turns     the clip stands among words of an earlier turn; otherwise before a question
    vision, text, more  fields of config.json
    tokens    of a frame (SmolVLM)
    """

    name: str
    shape: tuple[int, int, int]
    rate: float
    words: Callable[[], Any]
    pictures: dict[str, Any]
    clips: dict[str, Any]
    vision: dict[str, Any]
    text: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    taken: tuple[int, ...] = ()
    sampled: bool = True
    turns: bool = False
    tokens: int = 0

    def messages(self, video: Any, **options: Any) -> list[dict[str, Any]]:
        """The conversation. options: further keys of the part that is the clip."""
        part = {"type": "video", "video": video, **options}
        if not self.turns:
            return [{"role": "user", "content": [part, _text("What moves?")]}]
        return [
            {"role": "system", "content": [_text("You watch.")]},
            {"role": "user", "content": [_text("Look at this: "), part, _text("Who is it?")]},
            {"role": "assistant", "content": [_text("Several.")]},
            {"role": "user", "content": [_text("And where do they go?")]},
        ]


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


# ---- SmolVLM: clips of one second and of minutes, sampled and as given

_VISION, _TEXT, _GROUPED = smolvlm_parts.VISION, smolvlm_parts.TEXT, smolvlm_parts.GROUPED
_STILL = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}


def _words() -> Any:
    return smolvlm_parts.words(*smolvlm_parts.TILES)


SMOLVLM = (
    ClipCase("smolvlm_wide", (61, 90, 40), 12.5, _words, _STILL,
             {**_STILL, "video_sampling": {"fps": 2, "max_frames": 5, "video_size": {"longest_edge": 40}}},
             _VISION, _GROUPED, {"scale_factor": 2}, tokens=4),
    ClipCase("smolvlm_long", (101, 37, 200), 2.0, smolvlm_parts.words, {"size": {"longest_edge": 63},
             "max_image_size": {"longest_edge": 25}}, {"size": {"longest_edge": 75}, "max_image_size":
             {"longest_edge": 25}, "fps": 1, "num_frames": 6, "resample": 3, "image_mean": [0.4, 0.5, 0.6]},
             {**_VISION, "image_size": 25, "patch_size": 5}, _TEXT, {"scale_factor": 5}, turns=True, tokens=1),
    ClipCase("smolvlm_asked", (33, 32, 30), 0.25, _words, _STILL, {**_STILL, "fps": 1, "num_frames": 64,
             "resample": 2}, _VISION, _TEXT, {"scale_factor": 4}, taken=(3, 11, 18, 26), tokens=1),
    ClipCase("smolvlm_whole", (120, 121, 3), 60.0, _words, _STILL, _STILL, _VISION, _TEXT, {"scale_factor": 1},
             sampled=False, turns=True, tokens=16),
)  # fmt: skip

# ---- Qwen2-VL

_EYES = {"patch_size": 5, "merge_size": 3, "temporal_patch_size": 1}
_ROPE = {"rope_type": "default", "rope_theta": 3e4, "mrope_section": [1, 2, 3]}
_SIDES = {"shortest_edge": 8 * 14**2, "longest_edge": 20 * 14**2}

QWEN2_VL = (
    ClipCase("qwen2_vl_wide", (61, 90, 3), 2.0, qwen2_vl_parts.words, {"patch_size": 7, "size": _SIDES},
             {"patch_size": 7, "size": _SIDES}, qwen2_vl_parts.VISION, qwen2_vl_parts.TEXT, sampled=False),
    ClipCase("qwen2_vl_small", (33, 20, 4), 2.0, qwen2_vl_parts.words, {"patch_size": 7, "size": _SIDES},
             {"patch_size": 7, "size": _SIDES}, qwen2_vl_parts.VISION, qwen2_vl_parts.TEXT, sampled=False, turns=True),
    ClipCase("qwen2_vl_tall", (101, 37, 10), 2.0, qwen2_vl_parts.words, {**_EYES, "size":
             {"shortest_edge": 3 * 15**2, "longest_edge": 33 * 15**2}},
             {**_EYES, "size": {"shortest_edge": 3 * 15**2, "longest_edge": 12 * 15**2}, "resample": 2,
              "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]},
             {**qwen2_vl_parts.VISION, "embed_dim": 60, "hidden_size": 72, "num_heads": 5, "mlp_ratio": 3,
              "patch_size": 5, "spatial_merge_size": 3, "temporal_patch_size": 1},
             {**qwen2_vl_parts.TEXT, "hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 3,
              "rope_parameters": _ROPE}, taken=(1, 5, 8)),
)  # fmt: skip
