"""What the tests of Idefics 3 and SmolVLM share: a small tokenizer, and sizes of small models."""

import transformers
from published import SPECIAL
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from sensorium.tokenizer import byte_symbols

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As the released one."""
AROUND = ("<fake_token_around_image>", "<end_of_utterance>")
TILES = ("<global-img>", *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)))
IMAGE = 260
VISION = {"hidden_size": 40, "intermediate_size": 66, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 7}  # fmt: skip
TEXT = {"vocab_size": 310, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 259}  # fmt: skip
GROUPED = {**TEXT, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}


def words(*more):
    """Bytes, two line breaks as one token, <s> before every text."""
    vocab = {symbol: byte for byte, symbol in byte_symbols().items()}
    line = byte_symbols()[10]
    backend = Tokenizer(models.BPE(vocab={**vocab, line * 2: 256}, merges=[(line, line)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = (*SPECIAL, *AROUND, *more)
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in names])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )
