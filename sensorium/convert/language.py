"""The language models whose layouts are known, alone and inside other models."""

from __future__ import annotations

from sensorium.convert.bloom import BLOOM
from sensorium.convert.gemma import GEMMA, GEMMA2, GEMMA3
from sensorium.convert.gpt2 import GPT2
from sensorium.convert.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from sensorium.convert.mixtral import MIXTRAL
from sensorium.convert.opt import OPT
from sensorium.convert.persimmon import PERSIMMON

LANGUAGE = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, GPT2, OPT, BLOOM, PERSIMMON)
