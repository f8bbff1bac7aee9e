"""Sensorium: every published kind of multimodal foundation model as a short recipe of shared parts."""

__version__ = "0.1.0"
