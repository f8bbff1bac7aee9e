"""PaliGemma (Beyer et al. 2024, arXiv 2407.07726; with Gemma 2: 2412.03555): SigLIP, one linear layer, Gemma, which
reads pictures and prompt both ways and answers word by word.
"""

from __future__ import annotations

from sensorium.connectors.mlp import MLP
from sensorium.convert.files import Files, Written
from sensorium.convert.gemma import GEMMA, GEMMA2
from sensorium.convert.keys import Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.llava import parts_of, tower_rules
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.stack import part, stack_for
from sensorium.convert.towers import SIGLIP_VISION
from sensorium.errors import UserError
from sensorium.mask import SAID, AttentionRule
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.template import Template

RULE = AttentionRule(kind="prefix", until=(SAID,))
CHAT = (
    "{%- for message in messages -%}{%- for part in message['content'] if part['type'] == 'image' -%}"
    "{{ '<image>' }}{%- endfor -%}{%- endfor -%}{{ bos_token }}{%- for message in messages -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- else -%}{{ '\\n' }}{%- endif -%}{%- endfor -%}"
)
"""Pictures, then <bos>, the prompt and a line break (section 3.2.3): folders have no chat template of their own."""
_LANGUAGE = (GEMMA, GEMMA2)
_BOTH_WAYS = ("use_bidirectional_attention", "num_image_tokens")


def _read(files: Files) -> Wiring.Config:
    config = files.config
    _, tower = part(config, "vision_config", (SIGLIP_VISION,), "siglip_vision_model")
    _, backbone = part(config, "text_config", _LANGUAGE, "gemma", without=_BOTH_WAYS)
    config.inner("text_config", {}).only("use_bidirectional_attention", True)
    backbone = _mutual(backbone, True)
    wide = config.count("projection_dim", 2048)
    if wide != backbone.width:
        raise config.error(
            f"projection_dim is {wide}, and the language model's width {backbone.width}: they must agree"
        )
    config.only("tie_word_embeddings", backbone.tied, None)
    config.skip("image_token_index", "vocab_size", "hidden_size", "ignore_index", "_vocab_size")
    transform = transform_of(files.pictures)
    files.pictures.skip("image_seq_length")
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    return Fused.Config(
        encoders={"image": tower.replace(transform=transform)}, connectors={"image": MLP.Config(depth=1)},
        backbone=backbone, rule=RULE,
    )  # fmt: skip


def _mutual(backbone: Backbone.Config, on: bool) -> Backbone.Config:
    """Whether the prompt is read both ways past the windows of Gemma 2."""
    return backbone if backbone.local is None else backbone.replace(local=backbone.local.replace(mutual=on))


def _write(model: Wiring.Config) -> Written:
    if not isinstance(model, Fused.Config) or model.rule != RULE or _mutual(model.backbone, True) != model.backbone:
        raise UserError("a PaliGemma reads its prompt both ways (rule prefix, until said), at any distance; "
                        "this model does not")  # fmt: skip
    tower, connector, backbone = parts_of(model.replace(rule=AttentionRule()), "PaliGemma", MLP.Config)
    if connector != MLP.Config(depth=1) or tower.drop_last or tower.levels or not tower.normed:
        raise UserError("the layout of PaliGemma has one linear layer behind the last state of its tower, normalised; "
                        f"this model has {connector} and reads another state")  # fmt: skip
    _, vision = stack_for(tower, (SIGLIP_VISION,))
    _, text = stack_for(_mutual(backbone, False), _LANGUAGE)
    count = tower.cells[0] * tower.cells[1]
    config = {
        "model_type": "paligemma", "vision_config": {**vision, "projection_dim": backbone.width},
        "text_config": {**text, "use_bidirectional_attention": True, "num_image_tokens": count},
        "projection_dim": backbone.width, "hidden_size": backbone.width, "tie_word_embeddings": backbone.tied,
    }  # fmt: skip
    pictures = {**picture_settings(tower.transform), "image_seq_length": count, "processor_class": "PaliGemmaProcessor"}
    return Written(config, pictures, {"processor_class": "PaliGemmaProcessor"})


def _rules(model: Wiring.Config) -> list[Rule]:
    assert isinstance(model, Fused.Config)
    tower, _, backbone = parts_of(model.replace(rule=AttentionRule()), "PaliGemma", MLP.Config)
    return [
        Rule("multi_modal_projector.linear.*", "connectors.image.layers.0.*"),
        *tower_rules(tower, "vision_tower."),
        *under(stack_for(_mutual(backbone, False), _LANGUAGE)[0].rules(backbone), "language_model.", "backbone."),
    ]


def _prompts(files: Files, plain: Template) -> Template:
    chat = plain.chat if files.words().chat_template else CHAT
    return plain.replace(chat=chat, placeholder={"image": files.token("image_token", "<image>")})


PALIGEMMA = Family(
    "paligemma", ("paligemma",), "PaliGemmaForConditionalGeneration", _read, _write, _rules,
    spare=("vision_tower.embeddings.position_ids",),
    copies={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
    older=(
        ("vision_tower.vision_model.", "vision_tower."), ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
    ),
    modules=(
        ("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."), ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    prompts=_prompts, tokens={"image": "image_token_index"},
)  # fmt: skip
