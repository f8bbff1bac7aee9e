"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500): BLIP-2 whose Q-Former reads what is asked, as BERT's tokens."""

from __future__ import annotations

from sensorium.connectors.qformer import QFormer
from sensorium.convert.blip2 import MORE, fused, parts_of, qformer_of, qformer_written, rules, same_qformer, written
from sensorium.convert.blip_tower import INSTRUCTBLIP_VISION
from sensorium.convert.files import Files, Written
from sensorium.convert.layout import Family
from sensorium.convert.settings import Settings
from sensorium.models.wiring import Wiring
from sensorium.tokenizer import Tokenizer

LANGUAGE = "language_model."
READER = "qformer_tokenizer"
"""The folder of the tokenizer with which the Q-Former reads."""


def _read(files: Files) -> Wiring.Config:
    fields = files.config.inner("qformer_config", {})
    fields.only("model_type", "instructblip_qformer")
    qformer = _reading(fields, files.config.count("num_query_tokens", 32))
    reader = Tokenizer.load(files.folder / READER)
    if reader.vocab_size > qformer.vocab:
        raise fields.error(f"vocab_size is {qformer.vocab}, and {READER} has ids up to {reader.vocab_size - 1}: they "
                           "are of different models")  # fmt: skip
    return fused(files, INSTRUCTBLIP_VISION, qformer, fields)


def _reading(fields: Settings, queries: int) -> QFormer.Config:
    words = {"vocab": fields.count("vocab_size", 30_522), "positions": fields.count("max_position_embeddings", 512)}
    return qformer_of(fields, queries).replace(instructed=True, **words)


def _write(model: Wiring.Config) -> Written:
    _, connector, _ = parts_of(model, "InstructBLIP")
    said = {**qformer_written(connector), "model_type": "instructblip_qformer", "vocab_size": connector.vocab,
            "max_position_embeddings": connector.positions}  # fmt: skip
    same_qformer(_reading(Settings(said), connector.queries), connector, "InstructBLIP")
    return written(model, "instructblip", "InstructBlipProcessor", INSTRUCTBLIP_VISION, said)


INSTRUCTBLIP = Family(
    "instructblip", ("instructblip",), "InstructBlipForConditionalGeneration", _read, _write,
    lambda model: rules(model, INSTRUCTBLIP_VISION, "embeddings.layernorm"), readers={"image": READER},
    **{**MORE, "copies": {**MORE["copies"], f"{LANGUAGE}lm_head.weight": f"{LANGUAGE}model.embed_tokens.weight"}},
)  # fmt: skip
