"""Real pictures of odd sizes, and tokenizers of models that read pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import sensorium

_ROOT = Path(sensorium.__file__).parent / "data/builtin/emoji"


def picture(width: int, height: int, number: int = 0) -> Image.Image:
    """A picture of the built-in set on a coloured ground, stretched to a size."""
    with zipfile.ZipFile(_ROOT / "google.zip") as archive:
        names = sorted(archive.namelist())
        drawn = Image.open(io.BytesIO(archive.read(names[number * 37]))).convert("RGBA")
    ground = Image.new("RGBA", drawn.size, (60 + 40 * number % 180, 120, 90))
    return Image.alpha_composite(ground, drawn).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def pieces(special: tuple[str, ...], known: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A unigram model as SentencePiece makes them: a mark before words, `special` tokens, others `known` by name."""
    signs = [chr(code) for code in range(0x21, 0x7F)]
    vocab = [("<unk>", 0.0), *((one, 0.0) for one in (*special, *known)), ("▁", -2.0), *((one, -3.0) for one in signs)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=special[-1], unk_token="<unk>", pad_token="<unk>"
    )
