"""The encoder of Whisper (Radford et al. 2022, arXiv 2212.04356), alone or out of a whole checkpoint."""

from __future__ import annotations

from typing import Any

from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule
from sensorium.convert.layout import Family
from sensorium.convert.stack import activation, activation_name
from sensorium.encoders.vit import stack
from sensorium.encoders.whisper import LogMel, WhisperEncoder
from sensorium.errors import OtherKind
from sensorium.models.wiring import Wiring

_HEAR, _THERE, _HERE = "encoders.audio", "layers.{}", "encoders.audio.backbone.blocks.{}"
_DECODER = ("vocab_size", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop",
            "max_target_positions", "tie_word_embeddings")  # fmt: skip
_TRAINING = (
    "encoder_layerdrop", "activation_dropout", "init_std", "use_weighted_layer_sum", "classifier_proj_size",
    "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob",
    "mask_feature_length", "mask_feature_min_masks", "median_filter_width", "num_hidden_layers", "forced_decoder_ids",
)  # fmt: skip
_RULES = (
    Rule("conv1.*", f"{_HEAR}.enter.*"),
    Rule("conv2.*", f"{_HEAR}.halve.*"),
    Rule("embed_positions.weight", f"{_HEAR}.place"),
    *(Rule(f"{_THERE}.self_attn.{one}_proj.*", f"{_HERE}.attention.{one}.*") for one in "qkv"),
    Rule(f"{_THERE}.self_attn.out_proj.*", f"{_HERE}.attention.o.*"),
    Rule(f"{_THERE}.self_attn_layer_norm.*", f"{_HERE}.norm1.*"),
    Rule(f"{_THERE}.final_layer_norm.*", f"{_HERE}.norm2.*"),
    Rule(f"{_THERE}.fc1.*", f"{_HERE}.ffn.up.*"),
    Rule(f"{_THERE}.fc2.*", f"{_HERE}.ffn.down.*"),
    Rule("layer_norm.*", f"{_HEAR}.backbone.norm.*"),
)


def _read(files: Files) -> Wiring.Config:
    config, sound = files.config, files.pictures
    config.skip(*_DECODER, *_TRAINING)
    config.only("scale_embedding", False)  # of the decoder
    backbone = stack(
        config.count("d_model", 384), config.count("encoder_layers", 4), config.count("encoder_attention_heads", 6),
        config.count("encoder_ffn_dim", 1536), activation(config, "activation_function", "gelu"), eps=1e-5,
    )  # fmt: skip
    attention = backbone.block.attention.replace(key_bias=False)
    backbone = backbone.replace(block=backbone.block.replace(attention=attention))
    sound.skip("padding_side", "padding_value", "return_attention_mask", "n_samples", "nb_max_frames", "mel_filters")
    sound.only("dither", 0.0)
    sound.only("do_normalize", None, False)
    mel = LogMel(
        rate=sound.count("sampling_rate", 16_000), mels=sound.count("feature_size", config.count("num_mel_bins", 80)),
        window=sound.count("n_fft", 400), hop=sound.count("hop_length", 160), seconds=sound.count("chunk_length", 30),
    )  # fmt: skip
    bands, places = config.count("num_mel_bins", 80), config.count("max_source_positions", 1500)
    if (mel.mels, mel.frames) != (bands, 2 * places):
        raise sound.error(f"sounds become {mel.mels} bands of {mel.frames} frames, and config.json reads {bands} of "
                          f"{2 * places}: they are of different models")  # fmt: skip
    return Wiring.Config(encoders={"audio": WhisperEncoder.Config(sound=mel, backbone=backbone)})


def _write(model: Wiring.Config) -> Written:
    encoder = model.encoders.get("audio")
    if not isinstance(encoder, WhisperEncoder.Config) or model != Wiring.Config(encoders={"audio": encoder}):
        raise OtherKind(f"the layout of Whisper's encoder holds that alone, this model is another: {model.tag()}")
    backbone, mel = encoder.backbone, encoder.sound
    block = backbone.block
    config: dict[str, Any] = {
        "model_type": "whisper", "d_model": backbone.width, "encoder_layers": backbone.depth,
        "encoder_attention_heads": block.attention.heads, "encoder_ffn_dim": block.ffn.hidden,
        "activation_function": activation_name(block.ffn.activation), "num_mel_bins": mel.mels,
        "max_source_positions": mel.frames // 2,
    }  # fmt: skip
    sounds = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mel.mels, "sampling_rate": mel.rate,
              "n_fft": mel.window, "hop_length": mel.hop, "chunk_length": mel.seconds, "padding_value": 0.0,
              "return_attention_mask": False, "n_samples": mel.seconds * mel.rate,
              "nb_max_frames": mel.frames}  # fmt: skip
    return Written(config, sounds)


WHISPER = Family(
    "whisper", ("whisper",), "WhisperEncoder", _read, _write, lambda model: _RULES,
    older=(("model.encoder.", ""), ("encoder.", "")),
    unread=("model.decoder.*", "decoder.*", "proj_out.weight"),
)  # fmt: skip
