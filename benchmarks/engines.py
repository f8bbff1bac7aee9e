"""The three sides that answer prompts: this package, transformers, llama.cpp. Each runs in a process of its own.

All read the same ids and choose the likeliest token; nothing ends an answer before it has its tokens. `ids` are what
this package renders of a conversation, so that no side has another prompt.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.turns import Missing


@dataclass
class Answer:
    """first: seconds from the prompt to the first token; rest: from there to the last of `count` more."""

    first: float
    rest: float
    count: int
    ids: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def rate(self) -> float:
        """Tokens a second behind the first."""
        return self.count / self.rest


class Ours:
    """numbers: fp32, bf16, int8, int4."""

    def __init__(self, folder: Path, numbers: str) -> None:
        from inspect import signature

        from rich.console import Console

        import sensorium
        from sensorium.infer.sampling import Sampling

        more: dict[str, Any] = {}
        if numbers.startswith("int"):
            if "quantize" not in signature(sensorium.load).parameters:
                raise Missing("this version of the package has no quantised numbers")
            more = {"quantize": numbers}
        self.model = sensorium.load(
            folder, "fp32" if numbers == "fp32" else "bf16", console=Console(quiet=True), **more
        )
        self.model.engine.stops = frozenset()
        self.sampling = Sampling

    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        from sensorium.api import messages_to_sample

        sample = messages_to_sample(messages)
        return self.model.engine.renderer.render(sample, generate=True).ids.tolist()

    def text(self, ids: list[int]) -> str:
        assert self.model.tokenizer is not None
        return self.model.tokenizer.decode(ids)

    def answer(self, messages: list[dict[str, Any]], ids: list[int], count: int) -> Answer:
        from sensorium.api import messages_to_sample

        sample = messages_to_sample(messages)
        began = time.perf_counter()
        pieces, stamps = [], []
        for piece in self.model.engine.stream(sample, self.sampling(max_tokens=count + 1)):
            stamps.append(time.perf_counter())
            pieces.append(piece)
        ended = time.perf_counter()
        first = stamps[0] if stamps else ended
        return Answer(first - began, ended - first, count, text="".join(pieces))


class Transformers:
    """`generate` with its defaults but for the end; numbers: fp32 or bf16."""

    def __init__(self, folder: Path, numbers: str, pictures: bool = False) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind = transformers.AutoModelForImageTextToText if pictures else transformers.AutoModelForCausalLM
        self.torch = torch
        self.model = kind.from_pretrained(folder, dtype=torch.float32 if numbers == "fp32" else torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.processor = transformers.AutoProcessor.from_pretrained(folder) if pictures else None

    def answer(self, messages: list[dict[str, Any]], ids: list[int], count: int) -> Answer:
        began = time.perf_counter()
        stamps = _Stamps()
        given: dict[str, Any] = {"input_ids": self.torch.tensor([ids])}
        if self.processor is not None:
            given = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                                       return_dict=True, return_tensors="pt")  # fmt: skip
            if given["input_ids"].shape[1] != len(ids):
                raise Missing(f"its prompt has {given['input_ids'].shape[1]} tokens, ours {len(ids)}")
            given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        else:
            given["attention_mask"] = self.torch.ones_like(given["input_ids"])
        said = self.model.generate(**given, max_new_tokens=count + 1, do_sample=False, streamer=stamps)
        new = said[0, len(ids) :].tolist()
        if len(new) != count + 1:
            raise Missing(f"{len(new)} tokens came, {count + 1} were asked for")
        first = stamps.times[1]
        return Answer(first - began, stamps.times[-1] - first, count, new)


class _Stamps:
    """When each token came; the prompt is the first to come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class LlamaCpp:
    """llama.cpp by its own functions, without what its Python class adds; the likeliest token is found by numpy."""

    def __init__(self, path: Path, context: int = 2048) -> None:
        import llama_cpp
        import numpy

        self.numpy = numpy
        self.api = llama_cpp
        threads = int(os.environ["OMP_NUM_THREADS"])
        self.model = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.handle = self.model.ctx
        self.vocab = self.model.n_vocab()

    def answer(self, messages: list[dict[str, Any]], ids: list[int], count: int) -> Answer:
        api = self.api
        api.llama_memory_clear(api.llama_get_memory(self.handle), True)
        began = time.perf_counter()
        new = [self._read(ids)]
        first = time.perf_counter()
        for _ in range(count):
            new.append(self._read(new[-1:]))
        return Answer(first - began, time.perf_counter() - first, count, new)

    def _read(self, ids: list[int]) -> int:
        api = self.api
        tokens = (api.llama_token * len(ids))(*ids)
        if api.llama_decode(self.handle, api.llama_batch_get_one(tokens, len(ids))):
            raise Missing("llama_decode failed")
        logits = self.numpy.ctypeslib.as_array(api.llama_get_logits_ith(self.handle, -1), shape=(self.vocab,))
        return int(logits.argmax())
