"""A published config.json, read field by field: what nobody asked for is an error, never a silent default."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sensorium.errors import UserError, nearest

REQUIRED = object()
"""No default: the field must be there."""

IDLE = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "decoder_start_token_id", "_name_or_path", "_attn_implementation_autoset", "output_attentions",
    "output_hidden_states", "return_dict", "return_dict_in_generate", "use_return_dict", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "pruned_heads", "chunk_size_feed_forward", "is_encoder_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "finetuning_task", "id2label",
    "label2id", "num_labels", "problem_type", "task_specific_params", "tokenizer_class", "prefix", "is_decoder",
    "initializer_factor", "gradient_checkpointing", "attention_dropout", "hidden_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "dropout", "classifier_dropout", "layerdrop", "pretraining_tp",
    "_class_name", "_diffusers_version",
})  # fmt: skip
"""What a config says about training, other software or the writing of answers: the same numbers come out of the model
whatever stands there. Token ids are those of the tokenizer, which is read for itself."""


class Settings:
    """The fields of one config, each of which is to be asked for.

    where  how messages name it, for example "config.json" or "config.json text_config"
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must be an object of fields, it is a {type(values).__name__}")
        self.values, self.where = dict(values), where
        self._asked: set[str] = set()

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read a config.json. Raises UserError where it is missing, no JSON, or asks for code of its own."""
        try:
            values = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}. A checkpoint folder needs its config.json.") from error
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        settings = cls(values, str(path))
        if "auto_map" in settings.values:
            raise UserError(f"{path} asks for code of its own (auto_map: {settings.values['auto_map']}). None is run "
                            "here: take the release of this model in the layout of transformers")  # fmt: skip
        return settings

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {reason}")

    def take(self, name: str, kind: type | tuple[type, ...] = int, default: Any = REQUIRED) -> Any:
        """The value of a field, of a kind (a float may be written as an integer). None is as good as absent.

        Raises UserError for a value of another kind, or where it is absent without a default.
        """
        self._asked.add(name)
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                raise self.error(f"it has no {name}: it needs one")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and type(value) is int:
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
            wanted = " or ".join(one.__name__ for one in kinds)
            raise self.error(f"{name} is {value!r}, expected {wanted}")
        return value

    def count(self, name: str, default: Any = REQUIRED, least: int = 1) -> Any:
        """A field that counts something (int), or its default. Raises UserError below `least`."""
        value = self.take(name, int, default)
        if value is not None and value < least:
            raise self.error(f"{name} is {value}, expected at least {least}")
        return value

    def choose(self, name: str, known: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """What a field's word stands for. Raises UserError for a word that is not known."""
        word = self.take(name, str, default)
        if word not in known:
            raise self.error(f"{name} is {word!r}, which cannot be said here: {nearest(word, known)}")
        return known[word]

    def only(self, name: str, *allowed: Any) -> None:
        """A field that may have these values alone; the first is what its absence means."""
        value = self.take(name, object, allowed[0])
        if value not in allowed:
            raise self.error(f"{name} is {value!r}; only {' or '.join(map(repr, allowed))} can be said here")

    def skip(self, *names: str) -> None:
        """Fields that change no number."""
        self._asked |= set(names)

    def inner(self, name: str, default: Mapping[str, Any] | None = None) -> Settings:
        """The fields of a config within this one."""
        return Settings(self.take(name, dict, REQUIRED if default is None else default), f"{self.where} {name}")

    def done(self, idle: Iterable[str] = IDLE) -> None:
        """Raises UserError for a field that was not asked for: it might change what the model computes."""
        unknown = sorted(set(self.values) - self._asked - set(idle))
        if unknown:
            raise self.error(f"unknown field {unknown[0]!r} (= {self.values[unknown[0]]!r}): "
                             f"{nearest(unknown[0], self._asked)} What a field means must be known before its model "
                             "can be believed: take it out if it changes nothing")  # fmt: skip
