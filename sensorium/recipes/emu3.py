"""Emu3: pictures, clips and words are one stream of tokens, and predicting the next one is all that is learned."""

from __future__ import annotations

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.encoders.transform import ImageTransform
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.unified import FAMILY, SMALLER, codec_for, fields_for, language_for, stages_for, tokens_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

TEMPLATE = Template(
    chat="{% for m in messages %}{{ ('User: ' if m['role'] == 'user' else ' Assistant: ') + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' Assistant:' }}{% endif %}",
    begin="<|extra_203|>", plain="<|extra_204|>", stop="<|extra_204|>",
)  # fmt: skip
TOKENS = CodeTokens(
    first=151_854, codes=32_768, open=151_852, close=151_853, row=151_846, frame=151_847, weight=0.5
)  # fmt: skip


def vision_tokenizer() -> VQ.Config:
    """Emu3's: 8 x 8 pixels and 4 frames a code, 32,768 codes of 4 numbers (arXiv 2409.18869, vision tokenizer)."""
    conv = Convolutions(channels=256, multipliers=(1, 2, 2, 4), temporal=4)
    book = Quantizer.Config(codes=32_768, width=4, learning="gradient", revive=0.0)
    return VQ.Config(transform=ImageTransform(size=512, resize="squash"), conv=conv, quantizer=book, wide=1024)


def emu3(size: Size = "tiny") -> Recipe:
    """Emu3: Next-Token Prediction is All You Need (Wang et al. 2024, arXiv 2409.18869).

    New in it: one decoder, from scratch, over text and the discrete codes of pictures and clips, without a pretrained
    language model, CLIP or diffusion. One codec for both: a 512 x 512 picture, or four such frames, become 4,096 codes.
    A picture's rows end with a mark. Documents come in both orders, so that the same weights draw and describe;
    drawing is guided by the same model without the words.
    """
    codec = codec_for(size, vision_tokenizer())
    backbone = llama(vocab=184_622, width=4096, depth=32, heads=32, kv_heads=8, hidden=14_336, theta=1_000_000.0)
    model = Fused.Config(
        codecs={"image": codec}, tokens={"image": tokens_for(size, TOKENS)}, share={"video": "image"},
        backbone=language_for(size, backbone),
    )  # fmt: skip
    stages = stages_for(size, model, {
        "codec": {"lr": 5e-5, "published": "LAION-HighRes, InternVid; squared error, LPIPS, adversarial, commitment"},
        "pretrain": {"lr": 5e-5, "published": "text, pictures, clips; lr 5e-5, cosine to 0; codes weigh 0.5"},
        "finetune": {"lr": 1e-5, "published": "quality tuning and DPO for drawing; instruction data for reading"},
    })  # fmt: skip
    figures = (
        Figure(name="features.image", published=4096, tolerance=0.0, source="arXiv 2409.18869, vision tokenizer"),
        Figure(
            name="features.image@4x512x512", published=4096, tolerance=0.0, source="arXiv 2409.18869, vision tokenizer"
        ),
        Figure(
            name="tokens.video@8x512x512",
            published=2 * (4096 + 64 + 1) + 2,
            tolerance=0.0,
            source="derived: two times 64 rows of 64 codes with their ends, and the marks around",
        ),
        Figure(name="codes.image", published=32_768, tolerance=0.0, source="arXiv 2409.18869, vision tokenizer"),
        Figure(name="cell.image", published=8, tolerance=0.0, source="arXiv 2409.18869, vision tokenizer"),
        Figure(name="frames.image", published=4, tolerance=0.0, source="arXiv 2409.18869, vision tokenizer"),
        Figure(name="vocab", published=151_643 + 211 + 32_768, tolerance=0.0, source="text, control tokens and codes"),
        Figure(name="parameters.backbone", published=8.49e9, tolerance=0.01, source="released Emu3-Gen: 8.49 B"),
        Figure(name="width", published=4096, tolerance=0.0, source="arXiv 2409.18869, architecture"),
        Figure(name="hidden", published=14_336, tolerance=0.0, source="arXiv 2409.18869, architecture"),
        Figure(name="depth", published=32, tolerance=0.0, source="arXiv 2409.18869, architecture"),
        Figure(name="kv_heads", published=8, tolerance=0.0, source="arXiv 2409.18869, architecture"),
        Figure(name="lr.pretrain", published=5e-5, tolerance=0.0, source="arXiv 2409.18869, pre-training"),
    )
    return Recipe(
        name="emu3", title="Emu3 8B", paper="arXiv 2409.18869", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=stages, figures=figures if size == "paper" else (),
        deviations=(
            *SMALLER,
            "no dropout (published: 0.1); a picture's size is not written before its codes: the grid is the codec's",
            "tiny, small: pictures alone, no clips; tuning by preference (DPO) is left out; of 16 codes each weighs as "
            "much as a byte of text (published: 0.5, of 4,096), and drawing is guided less (1.5; published: 3.0)",
        ),
        **fields_for(size),
    )  # fmt: skip
