"""BERT (Devlin et al. 2019, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692) and DistilBERT (Sanh et al.
2019, arXiv 1910.01108): encoders of text.

Three published classes share a config: the stack with its pooler; the stack with the head that says masked words; and
the stack with pooler, that head and next-sentence prediction. Which one a folder holds is seen in its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Fit, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name, said
from sensorium.errors import OtherKind, UserError
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.pooler import Pooler
from sensorium.nn.readout import Readout
from sensorium.render import Template

NO_CHAT = "{{ raise_exception('this model holds no conversations: it reads plain text') }}"
_RULE = AttentionRule("full")
_STACK = (
    Rule("embeddings.word_embeddings.weight", "embed.weight"),
    Rule("embeddings.position_embeddings.weight", "place.weight"),
    Rule("embeddings.token_type_embeddings.weight", "types.weight"),
    Rule("embeddings.LayerNorm.*", "embed_norm.*"),
    Rule("pooler.dense.*", "pooler.dense.*"),
)
_BLOCK = {"attention.self.query": "attention.q", "attention.self.key": "attention.k",
          "attention.self.value": "attention.v", "attention.output.dense": "attention.o",
          "attention.output.LayerNorm": "norm1", "intermediate.dense": "ffn.up", "output.dense": "ffn.down",
          "output.LayerNorm": "norm2"}  # fmt: skip
_SMALL = {"attention.q_lin": "attention.q", "attention.k_lin": "attention.k", "attention.v_lin": "attention.v",
          "attention.out_lin": "attention.o", "sa_layer_norm": "norm1", "ffn.lin1": "ffn.up", "ffn.lin2": "ffn.down",
          "output_layer_norm": "norm2"}  # fmt: skip
_FIELDS = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
           "intermediate_size": "hidden_dim", "hidden_act": "activation"}  # fmt: skip
"""DistilBERT's."""
_UNUSED = ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
           "pooler_size_per_head", "pooler_type", "unk_token_id", "sinusoidal_pos_embds", "qa_dropout",
           "seq_classif_dropout", "tie_weights_")  # fmt: skip
"""Fields that no released code reads, or that say how a table was filled before training."""


class Doubled(Fit):
    """Two published tensors that are one: a head's bias, which the class holds twice."""

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        if not tensors[0].equal(tensors[1]):
            raise ValueError("they are one tensor of the model, and in the files they differ")
        return tensors[:1]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0], tensors[0].clone()]


@dataclass(frozen=True)
class Encoder:
    """What tells these families apart.

    kind     model_type
    name     what the published classes begin with
    head     where the masked-word head has its linear layer, its norm, its bias and its matrix
    classes  where next-sentence prediction is; "": there is none
    counted  whether positions are counted behind the id that pads, whose rows no token takes
    gelu     whether the head's activation is always GELU, whatever the blocks' is
    small    whether there are neither token types nor an epsilon to choose, and names of its own (DistilBERT)
    """

    kind: str
    name: str
    head: tuple[str, str, str, str]
    classes: str = ""
    counted: bool = False
    gelu: bool = False
    small: bool = False

    @property
    def block(self) -> list[Rule]:
        """Names of a block's tensors."""
        layer, parts = ("transformer.layer", _SMALL) if self.small else ("encoder.layer", _BLOCK)
        return [Rule(f"{layer}.{{}}.{theirs}.*", f"blocks.{{}}.{ours}.*") for theirs, ours in parts.items()]

    def field(self, name: str) -> str:
        """What the config calls a field of BERT's."""
        return _FIELDS.get(name, name) if self.small else name

    @property
    def copies(self) -> dict[str, str]:
        """What files hold a second time where the head is the embedding."""
        _, _, bias, matrix = self.head
        return {f"{matrix}.weight": f"{self.kind}.embeddings.word_embeddings.weight", f"{matrix}.bias": bias}

    @property
    def spare(self) -> tuple[str, ...]:
        """Tables of old files that are computed."""
        names = ("embeddings.position_ids", "embeddings.token_type_ids")
        return (*names, *(f"{self.kind}.{name}" for name in names))

    def read(self, files: Files) -> Wiring.Config:
        held = files.tensors
        pooler = None
        if any(name.endswith("pooler.dense.weight") for name in held):
            pooler = Pooler.Config(classes=2 if self.classes and f"{self.classes}.weight" in held else 0)
        config = self.stack(files.config, f"{self.head[0]}.weight" in held, pooler)
        return Fused.Config(backbone=config, rule=_RULE)

    def stack(self, settings: Settings, masked: bool, pooler: Pooler.Config | None) -> Backbone.Config:
        settings.only("position_embedding_type", "absolute")
        settings.only("is_decoder", False)
        settings.only("add_cross_attention", False)
        settings.skip(*_UNUSED)
        width, kind = settings.count(self.field("hidden_size")), activation(settings, self.field("hidden_act"), "gelu")
        eps = 1e-12 if self.small else settings.take("layer_norm_eps", float, 1e-12)
        norm = Norm.Config(kind="layer", eps=eps)
        attention = Attention.Config(heads=settings.count(self.field("num_attention_heads")), bias=True)
        hidden = settings.count(self.field("intermediate_size"))
        ffn = FeedForward.Config(hidden=hidden, activation=kind, gated=False, bias=True)
        unused = settings.count("pad_token_id", 1, least=0) + 1 if self.counted else 0
        rows = settings.count("max_position_embeddings", 512, least=unused + 1)
        tied = settings.take("tie_word_embeddings", bool, True)
        readout = Readout.Config(dense="gelu" if self.gelu else kind, norm=norm, bias=True)
        return Backbone.Config(
            vocab=settings.count("vocab_size"), width=width, depth=settings.count(self.field("num_hidden_layers")),
            block=Block.Config(attention=attention, ffn=ffn, norm=norm, place="post"), positions=rows - unused,
            unused_positions=unused, types=0 if self.small else settings.count("type_vocab_size", 2), embed_norm=True,
            final_norm=False, tied=tied or not masked, pooler=pooler, readout=readout if masked else None,
        )  # fmt: skip

    def write(self, model: Wiring.Config) -> Written:
        """Raises UserError for a model that is no such encoder."""
        if not isinstance(model, Fused.Config) or model.speaks:
            raise OtherKind(f"the layout of {self.name} holds a stack in which every token sees all others "
                            f"(AttentionRule 'full'), this is {model.tag()} without that rule")  # fmt: skip
        stack = model.backbone
        sizes = {
            "hidden_size": stack.width, "num_hidden_layers": stack.depth,
            "num_attention_heads": stack.block.attention.heads, "intermediate_size": stack.block.ffn.hidden,
            "hidden_act": activation_name(stack.block.ffn.activation),
        }  # fmt: skip
        written: dict[str, Any] = {
            "model_type": self.kind, "architectures": [self.architecture(stack)], "vocab_size": stack.vocab,
            "max_position_embeddings": stack.positions + stack.unused_positions, "tie_word_embeddings": stack.tied,
            **{self.field(name): value for name, value in sizes.items()},
        }  # fmt: skip
        if not self.small:
            written |= {"layer_norm_eps": stack.block.norm.eps, "type_vocab_size": stack.types}
        if self.counted:
            written["pad_token_id"] = stack.unused_positions - 1
        masked, pooler = stack.readout is not None, stack.pooler
        said(written, lambda settings: self.stack(settings, masked, pooler), stack, self.name)
        if model != Fused.Config(backbone=stack, rule=_RULE):
            raise OtherKind(f"the layout of {self.name} holds an encoder of text alone, this model has further parts")
        return Written(written)

    def architecture(self, stack: Backbone.Config) -> str:
        """The published class that has these parts. Raises UserError where none has."""
        classes = None if stack.pooler is None else stack.pooler.classes
        match (stack.readout is not None, classes):
            case (False, 0 | None):
                return f"{self.name}Model"
            case (True, 0 | None):  # that class passes over a pooler in its files
                return f"{self.name}ForMaskedLM"
            case (True, 2) if self.classes:
                return f"{self.name}ForPreTraining"
        raise UserError(f"no published class of {self.name} has a pooler with {classes} classes "
                        f"{'beside' if stack.readout is not None else 'without'} a head for masked words")  # fmt: skip

    def rules(self, model: Wiring.Config) -> Sequence[Rule]:
        assert isinstance(model, Fused.Config)
        stack = model.backbone
        dense, norm, bias, matrix = self.head
        held = Rule(bias, "readout.bias")
        if not stack.tied and bias != f"{matrix}.bias":
            held = Rule((f"{matrix}.bias", bias), "readout.bias", Doubled())
        root = f"{self.kind}." if stack.readout is not None else ""  # a stack by itself leaves it out
        rules = [
            *under([*_STACK, *self.block], theirs=root), held, Rule(f"{matrix}.weight", "head.weight"),
            Rule(f"{dense}.*", "readout.dense.*"), Rule(f"{norm}.*", "readout.norm.*"),
            Rule(f"{self.classes}.*", "pooler.classes.*"),
        ]  # fmt: skip
        return under(rules, ours="backbone.")

    def family(self) -> Family:
        also = ("ForMaskedLM", "ForPreTraining") if self.classes else ("ForMaskedLM",)
        return Family(
            self.kind, (self.kind,), f"{self.name}Model", self.read, self.write, self.rules, self.spare, self.copies,
            older=(("*.gamma", "*.weight"), ("*.beta", "*.bias")), prompts=self.prompts,
            also=tuple(f"{self.name}{one}" for one in also),
        )  # fmt: skip

    def prompts(self, files: Files, plain: Template) -> Template:
        return plain.replace(chat=files.words().chat_template or NO_CHAT)


BERT = Encoder(
    "bert", "Bert", ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
                     "cls.predictions.decoder"), classes="cls.seq_relationship",
).family()  # fmt: skip
ROBERTA = Encoder(
    "roberta", "Roberta", ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"), counted=True,
    gelu=True,
).family()  # fmt: skip
DISTILBERT = Encoder(
    "distilbert", "DistilBert", ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
    small=True,
).family()  # fmt: skip
