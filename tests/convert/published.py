"""Reference models of transformers with random weights, in folders as it writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sensorium.tokenizer import byte_symbols

SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<end>")
WORDS = 256 + len(SPECIAL)
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few special tokens, <s> before every text."""
    backend = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in byte_symbols().items()}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )


def saved(model_class: type, config, folder: Path, seed: int = 0, **options) -> torch.nn.Module:
    """The model with weights strong enough to matter, in evaluation mode; written to the folder with a tokenizer."""
    torch.manual_seed(seed)
    model = strengthened(model_class(config).eval())
    model.tie_weights()
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def strengthened(model: torch.nn.Module) -> torch.nn.Module:
    """With weights strong enough to matter; norms and biases are no longer what they begin as."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3 / parameter.shape[-1] ** 0.25)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def rewritten(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Another file in the place of one that may still be mapped."""
    save_file(tensors, path.with_name("draft"), metadata={"format": "pt"})
    path.with_name("draft").replace(path)
