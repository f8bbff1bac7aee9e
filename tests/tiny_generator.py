"""A tiny fused model whose answers hold pictures of a generator."""

import tiny_denoiser
import tiny_fused

from sensorium.codecs.tokens import Signals
from sensorium.connectors.resampler import Resampler
from sensorium.models.generator import Generator
from sensorium.nn.backbone import bert, llama
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader

SIGNALS = Signals(first=259, count=3)


def denoiser(**changes):
    text = bert(vocab=259, width=tiny_denoiser.TEXT, depth=1, heads=2, hidden=32, positions=64)
    return tiny_denoiser.config(**{"text": text, "share": {}, "drop": 0.0, **changes})


def config(length=0, layers=(1,), **changes):
    made = Generator.Config(
        connector=Resampler.Config(latents=5, depth=1, heads=2, head_width=8), denoiser=denoiser(length=length),
        signals=SIGNALS, layers=layers, size=(8, 8),
    )  # fmt: skip
    backbone = llama(vocab=262, width=32, depth=2, heads=4, kv_heads=2, hidden=64)
    return tiny_fused.config(**{"backbone": backbone, "generators": {"image": made}, **changes})


def make(**changes):
    model = tiny_fused.strong(config(**changes))
    tiny_denoiser.awake(model.generators["image"].denoiser)
    return model


def renderer_of(model):
    return Renderer(Tokenizer.bytes(), Template(), model.config.plan, item_loader(model))


def asked(words, answer, seed=None):
    """A request with its answer; with a seed a picture belongs to the answer."""
    said = [Segment("text", words, "user"), Segment("text", answer, "assistant")]
    return Sample((*said, *([] if seed is None else [Segment("image", tiny_fused.Picture(seed), "assistant")])))


def shown(seed, words, answer):
    """A question about a picture."""
    return Sample((*tiny_fused.ask(words, seed), Segment("text", answer, "assistant")))
