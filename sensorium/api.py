"""The Python interface: open a trained model and talk to it.

model = sensorium.load("runs/quickstart")
question = [{"type": "image", "image": "cat.jpg"}, {"type": "text", "text": "What is it?"}]
print(model.chat([{"role": "user", "content": question}]))
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from sensorium.config import explain
from sensorium.convert.adapters import is_adapter, open_adapter
from sensorium.convert.gguf import open_gguf
from sensorium.convert.hubs import published_folder
from sensorium.convert.published import open_published
from sensorium.data.formats.rows import BadRow, RowReader
from sensorium.data.media import PictureFile
from sensorium.data.sound import SoundFile
from sensorium.errors import UserError, nearest
from sensorium.infer.engine import Engine
from sensorium.infer.handover import Reply, reply
from sensorium.infer.kernels.codes import Kind
from sensorium.infer.kernels.quantize import QuantWeight, check_kind, quantised
from sensorium.infer.kernels.quantize import quantize as quantize_stack
from sensorium.infer.likelihoods import Likelihoods
from sensorium.infer.painting import PLAIN, Frames, Painting, canvas, paint
from sensorium.infer.room import give_back
from sensorium.infer.sampling import Sampling
from sensorium.infer.session import Session
from sensorium.infer.speculation import DraftModel
from sensorium.infer.vectors import pair_logits, picture_vectors, text_vectors
from sensorium.models.denoiser import Denoiser
from sensorium.models.dual import Dual
from sensorium.models.wiring import Wiring
from sensorium.nn.wide import native_bfloat16
from sensorium.render import Renderer
from sensorium.sequence import Media, Sample, Segment
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.recipe import Recipe

Precision = Literal["auto", "bf16", "fp32", "stored"]
Messages = Sequence[dict[str, Any]]
"""OpenAI and Hugging Face chat messages. A picture part is {"type": "image", "image": X} or {"type": "image_url",
"image_url": {"url": X}}, where X is a path, a data: URL, encoded bytes, a PIL image or Media."""


def load(
    run: str | os.PathLike[str], precision: Precision = "auto", device: str = "cpu", console: Console | None = None,
    quantize: Kind | None = None, draft: str | os.PathLike[str] | Model | None = None,
) -> Model:  # fmt: skip
    """Open a run folder (its latest checkpoint), one checkpoint folder, or a published one (config.json, safetensors
    and tokenizer, as transformers writes them, or the folders of a pipeline, as diffusers does), which may be named as
    on the hub: "organisation/name"; an adapter in PEFT's layout, with the model that it names; or a GGUF file of a
    language model.

    precision  auto: bf16 where the hardware computes in it, else fp32; stored: as in the files
    console    where it is said what was loaded of a published folder, and what was quantised; None: standard error
    quantize   int8 or int4: the weights of the language model as codes of so many bits, for inference alone; embedding
               and head are int8 in either. What is computed besides stays in `precision`
    draft      a smaller model with the same tokenizer (sensorium.infer.speculation): it guesses how answers go on, and
               the same is said sooner where it is right. Given opened, or where it is: then as int4 on a CPU
    Raises UserError that says what is missing, or that the tokenizers differ.
    """
    if quantize is not None:
        check_kind(quantize)
    recipe, network, tokenizer = _opened(run, precision, device, console or Console(stderr=True))
    if quantize is not None:
        said = quantize_stack(network, quantize).summary()
        (console or Console(stderr=True)).print(said, markup=False, highlight=False, soft_wrap=True)
    network = network.to(device)
    give_back()
    model = Model(recipe, network, tokenizer)
    if draft is not None:
        kind = "int4" if device == "cpu" else None
        small = (draft if isinstance(draft, Model) else load(draft, precision, device, console, kind)).engine
        model.engine.drafter = DraftModel(small.model, small.renderer.tokenizer, model.engine.renderer.tokenizer)
    return model


def _opened(
    run: str | os.PathLike[str], precision: Precision, device: str, console: Console
) -> tuple[Recipe, Wiring, Tokenizer | None]:
    """What `load` opens, not on its device yet."""
    folder = Path(run)
    if folder.suffix == ".gguf" and folder.is_file():
        language, words, template = open_gguf(folder, _dtype(precision, device))
        recipe = Recipe(name="gguf", title=folder.stem, paper="", family="gguf", size="paper", model=language.config,
                        template=template, stages=())  # fmt: skip
        return recipe, language, words
    published = published_folder(run)
    if published is None and not folder.exists():
        raise UserError(f"there is no folder or file {folder}: give a run folder, for example runs/quickstart")
    if published is not None or is_adapter(folder):
        opener, place = (open_adapter, folder) if published is None else (open_published, published)
        opened = opener(place, _dtype(precision, device))
        console.print(opened.summary(), markup=False, highlight=False, soft_wrap=True)
        name = opened.family.name
        recipe = Recipe(name=name, title=folder.name or folder.resolve().name, paper="", family=name, size="paper",
                        model=opened.model.config, template=opened.template, stages=())  # fmt: skip
        return recipe, opened.model, opened.tokenizer
    return load_checkpoint(folder, _dtype(precision, device))


def _dtype(precision: Precision, device: str) -> torch.dtype | None:
    match precision:
        case "stored":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp32":
            return torch.float32
        case "auto":
            native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else native_bfloat16()
            return torch.bfloat16 if native else torch.float32
        case other:
            raise UserError(f"unknown precision {other!r}: {nearest(str(other), ('auto', 'bf16', 'fp32', 'stored'))}")


class Model:
    """A trained system: network, tokenizer, prompt format.

    tokenizer  None: it reads no text
    engine     what answers; see sensorium.infer.engine for batched use
    """

    def __init__(self, recipe: Recipe, network: Wiring, tokenizer: Tokenizer | None) -> None:
        self.recipe, self.network, self.tokenizer = recipe, network, tokenizer
        self._load = item_loader(network)
        self._engine: Engine | None = None
        if tokenizer is not None:
            self._engine = Engine(network, Renderer(tokenizer, recipe.template, recipe.model.plan, self._load))

    @property
    def engine(self) -> Engine:
        """Raises UserError for a model that reads no text."""
        if self._engine is None:
            raise UserError(f"{self.recipe.title} reads no text, so it answers nothing: use features")
        return self._engine

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.network.parameters())
        coded = [part.shape for part in self.network.modules() if isinstance(part, QuantWeight)]
        count += sum(rows * columns for rows, columns in coded)
        kind = quantised(self.network)
        return f"Model({self.recipe.name!r}, {count / 1e6:.1f} M parameters{', ' + kind if kind else ''})"

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = False, **sampling: Any) -> str: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...
    def chat(self, messages: Messages, *, stream: bool = False, **sampling: Any) -> str | Iterator[str]:
        """The assistant's next answer; with `stream` an iterator over its pieces.

        sampling  fields of sensorium.infer.sampling.Sampling: temperature, top_p, max_tokens, stop, ...
        """
        self._must_speak()
        sample, options = _open(messages), sampling_of(sampling)
        if stream:
            return self.engine.stream(sample, options)
        return self.engine.generate([sample], options)[0]

    def generate(self, prompts: Iterable[str | Messages], **sampling: Any) -> list[str]:
        """Many answers at once. A prompt is a conversation, or plain text to be continued."""
        self._must_speak()
        samples = [
            Sample((Segment("text", prompt),)) if isinstance(prompt, str) else _open(prompt) for prompt in prompts
        ]
        return self.engine.generate(samples, sampling_of(sampling))

    def paint(
        self, prompts: Sequence[str], size: tuple[int, ...] | None = None, *, pictures: Sequence[Any] | None = None,
        keep: Sequence[Image.Image | None] | None = None, **options: Any,
    ) -> list[Frames]:  # fmt: skip
        """A picture of each prompt, as a list of one frame, or a clip as its frames.

        size      (height, width) in pixels, or (frames, height, width); None: the square that was trained on
        pictures  what is changed (with `strength` below 1) or painted around (with `keep`), one for each prompt
        keep      for each prompt a picture of what stays (white) and what is painted anew (black), or None
        options   fields of sensorium.infer.painting.Painting: sampler, guider, strength, seed. Where no sampler is
                  given it is the model's own, if it has one
        Raises UserError for a model that paints nothing.
        """
        if not isinstance(self.network, Denoiser):
            raise UserError(f"{self.recipe.title} paints nothing: a denoiser does (recipe `dit`)")
        if pictures is None:
            side = next(iter(self.network.config.codecs.values())).transform.size
            samples = [canvas(text, *(size or (side, side))) for text in prompts]
        else:
            pairs = zip(pictures, prompts, strict=True)
            samples = [Sample((Segment("image", picture_of(one)), Segment("text", text))) for one, text in pairs]
        if self.network.config.sampler is not None:
            options = {"sampler": self.network.config.sampler, **options}
        return paint(self.engine, samples, Painting(**options), keep)

    def reply(self, messages: Messages, *, most: int = 1, painting: Painting = PLAIN, **sampling: Any) -> Reply:
        """The assistant's next answer as words and pictures in their order; each picture is a list of frames.

        most      pictures in it, at most; whether there are any is the model's own choice
        painting  how a generator makes them
        sampling  as in `chat`
        """
        self._must_speak()
        return reply(self.engine, [_open(messages)], sampling_of(sampling), painting, most)[0]

    def draw(self, prompt: str | Messages, **sampling: Any) -> Image.Image:
        """The picture that a prompt asks for, of a model that says pictures code by code, as it says words.

        prompt    a conversation, or what a user asks: "Draw a cat."
        sampling  as for `chat`; unless given, temperature=1, top_k=64 and guidance=3
        """
        self._must_speak()
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = sampling_of({"temperature": 1.0, "top_k": 64, "guidance": 3.0, "max_tokens": 1, **sampling})
        return self.engine.draw([_open(messages)], options)[0][0]

    def likelihoods(self, messages: Messages, options: Sequence[str]) -> Likelihoods:
        """Log-probabilities of several answers to the same conversation, in one forward pass."""
        self._must_speak()
        return self.engine.log_likelihoods([(_open(messages).segments, options)])[0]

    def logits(self, messages: str | Messages) -> tuple[Tensor, Tensor]:
        """ids (T) of the rendered conversation, and logits (T, vocab) float32: row t predicts token t + 1, or of a
        masked model token t.

        messages  a conversation, or a plain text
        The assistant's turn is opened when the last message is not the assistant's own.
        """
        self._must_speak(or_say=True)
        sample = Sample((Segment("text", messages),)) if isinstance(messages, str) else messages_to_sample(messages)
        ended = sample.segments[-1].role == "assistant" or not self.recipe.model.speaks
        return self.engine.logits(sample, generate=not ended)

    def embed(self, inputs: Any, pooled: bool = False) -> Tensor:
        """Mean of the backbone's last hidden states over all tokens of an input, float32, not normalised.

        Of a contrastive model: the unit vector of a picture or a text in the space they share.

        inputs  one text, picture (Path, PIL image, encoded bytes, Media) or conversation -> (D); a list of them
                -> (N, D). A str is text: give a picture's path as a Path.
        pooled  what the model's own pooler makes of the first token instead of the mean (BERT)
        """
        if isinstance(self.network, Denoiser):
            raise UserError(f"{self.recipe.title} paints, it embeds nothing: use paint")
        if isinstance(self.network, Dual):
            if pooled:
                raise UserError("a contrastive model has one vector of a picture or a text: leave out `pooled`")
            vectors = self._shared([inputs] if _is_one(inputs) else list(inputs))
            return vectors[0] if _is_one(inputs) else vectors
        if _is_one(inputs):
            return self.engine.embed([_embedded(inputs)], pooled)[0]
        return self.engine.embed((_embedded(value) for value in inputs), pooled)

    def match(self, pairs: Sequence[tuple[Any, str]]) -> Tensor:
        """(N) pictures with a text -> (N, 2) float32 logits that they are apart, together (ALBEF, BLIP, BLIP-2).

        A picture is given as to `features`. Raises UserError for a model that judges no pairs.
        """
        return pair_logits(self.engine, [(picture_of(one), text) for one, text in pairs])

    @torch.no_grad()
    def features(self, picture: Any, kind: str = "image") -> Tensor:
        """What an encoder or a codec makes of a picture, or of a sound (kind "audio"): (tokens, width) float32.

        Of an encoder, before any connector.

        picture  a path, encoded bytes, a PIL image, or Media; of a sound a path, or Media (a Waveform)
        """
        media = picture_of(picture) if kind != "audio" else sound_of(picture)
        read = self.network.reader(kind)
        return read.prepare_inference(read.reference().dtype)([self._load(kind, media)]).values.float()

    def _shared(self, inputs: list[Any]) -> Tensor:
        """(N, E) of pictures and texts. Raises UserError for a conversation, and where an item has many vectors."""
        rows: list[Tensor] = []
        for value in inputs:
            if isinstance(value, list | tuple):
                raise UserError("a contrastive model embeds a text or a picture, not a conversation: give one of them")
            if isinstance(value, str):
                rows.append(text_vectors(self.engine, [value]))
                continue
            vectors = picture_vectors(self.engine, [picture_of(value)])
            if vectors.shape[1] > 1:
                raise UserError(f"this model has {vectors.shape[1]} vectors for a picture: ask "
                                "sensorium.infer.vectors.picture_vectors for all of them")  # fmt: skip
            rows.append(vectors[:, 0])
        return torch.cat(rows) if rows else torch.zeros(0, int(self.recipe.model.measures["space"]))

    def _must_speak(self, or_say: bool = False) -> None:
        """or_say: logits of words are enough."""
        if not (self.recipe.model.says if or_say else self.recipe.model.speaks):
            raise UserError(
                f"{self.recipe.title} does not answer in words: use embed or paint, or sensorium eval for what its "
                "recipe asks"
            )

    def session(self, system: str | None = None, **sampling: Any) -> Session:
        """A conversation that keeps its cache: `.send(text, images=[...])` streams the next answer."""
        self._must_speak()
        start = (Segment("text", system, role="system"),) if system else ()
        return Session(self.engine, start, sampling_of(sampling), picture=picture_of)


def sampling_of(options: dict[str, Any]) -> Sampling:
    """Sampling options from keywords. Raises UserError that names the wrong one."""
    for name in options:
        if name not in Sampling.model_fields:
            raise UserError(f"unknown sampling option {name!r}: {nearest(name, Sampling.model_fields)}")
    try:
        return Sampling(**options)
    except ValidationError as error:
        raise UserError(f"sampling options: {explain(error)}") from error


# ---- messages


def messages_to_sample(messages: Messages) -> Sample:
    """Chat messages to a Sample, by the same reader as chat data. Raises UserError naming the message and the part."""
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence):
        raise UserError(f"messages must be a list of {{'role', 'content'}}, {type(messages).__name__} was given")
    try:
        return _Reader("", "messages").chat({"messages": list(messages)}, "messages")
    except BadRow as error:
        raise UserError(f"messages: {error}") from error


class _Reader(RowReader):
    """Chat data's reader, for messages in memory: pictures may be objects too."""

    def picture(self, value: Any, name: str) -> PictureFile:
        if isinstance(value, dict | str | bytes):
            return super().picture(value, name)
        return picture_of(value, name)  # type: ignore[return-value]


def picture_of(value: Any, name: str = "picture") -> Media:
    """Media of a path, encoded bytes, a PIL image, or Media itself. Raises UserError for anything else."""
    if isinstance(value, Media):
        return value
    if isinstance(value, bytes):
        return PictureFile(value, name=name)
    if isinstance(value, str | os.PathLike):
        return PictureFile(value)
    if isinstance(value, Image.Image):
        return PictureFile(_encoded(value), name=f"{name} (PIL image)")
    raise UserError(f"{name} must be a path, encoded bytes, a PIL image or Media, {type(value).__name__} was given")


def sound_of(value: Any) -> Media:
    """Media of a path, or Media itself. Raises UserError for anything else."""
    if isinstance(value, Media):
        return value
    if isinstance(value, str | os.PathLike):
        return SoundFile(value)
    raise UserError(f"a sound must be a path or Media, for example Waveform(samples, rate); {type(value).__name__} was "
                    "given")  # fmt: skip


def _encoded(image: Image.Image) -> bytes:
    """Lossless, upright bytes of any mode."""
    upright = ImageOps.exif_transpose(image)
    stream = io.BytesIO()
    png = upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    upright.save(stream, "PNG" if png else "TIFF", **({"compress_level": 1} if png else {}))
    return stream.getvalue()


def _open(messages: Messages) -> Sample:
    """A conversation that waits for an answer."""
    sample = messages_to_sample(messages)
    if sample.segments[-1].role == "assistant":
        raise UserError("the last message is the assistant's: end with what the user says")
    return sample


def _is_one(inputs: Any) -> bool:
    if isinstance(inputs, list | tuple):
        return bool(inputs) and all(isinstance(value, dict) for value in inputs)
    return isinstance(inputs, str | bytes | os.PathLike | Image.Image | Media)


def _embedded(value: Any) -> Sample:
    if isinstance(value, str):
        return Sample((Segment("text", value),))
    if isinstance(value, list | tuple):
        return messages_to_sample(value)
    return Sample((Segment("image", picture_of(value)),))
