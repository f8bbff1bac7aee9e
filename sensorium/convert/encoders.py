"""Image encoders that are published by themselves."""

from __future__ import annotations

from sensorium.convert.beit import BEIT
from sensorium.convert.dino import DINOV2, DINOV2_REGISTERS, DINOV3
from sensorium.convert.layout import Family
from sensorium.convert.swin import SWIN
from sensorium.convert.vision import VIT

ENCODERS: tuple[Family, ...] = tuple(one.family() for one in (VIT, DINOV2, DINOV2_REGISTERS, DINOV3, BEIT, SWIN))
