"""Whisper's encoder of transformers, alone and in a whole checkpoint, opened here and written back."""

import wave

import numpy as np
import pytest
import torch
import transformers
from published import strengthened
from safetensors.torch import load_file

import sensorium
from sensorium.convert.published import open_published, write_published
from sensorium.encoders.whisper import LogMel, mel_filters
from sensorium.errors import UserError
from sensorium.sequence import Waveform

PLAIN = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_layers": 1,
         "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 300, "max_source_positions": 100,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
ODD = {**PLAIN, "d_model": 42, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 55,
       "num_mel_bins": 128, "activation_function": "relu", "decoder_attention_heads": 3}  # fmt: skip


def sound(seconds: float, rate: int = 16_000) -> np.ndarray:
    """A rising tone with an overtone and a little noise."""
    at = np.arange(int(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 + 300 * at) * at) + 0.1 * np.sin(2 * np.pi * 3000 * at)
    return (tone + 0.01 * np.random.default_rng(0).normal(size=len(at))).astype(np.float32)


SOUNDS = {"short": sound(0.7), "long": sound(3.1), "one sample": sound(1 / 16_000)}


@pytest.fixture(scope="module", params=["alone", "whole", "odd"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    config = transformers.WhisperConfig(**(ODD if request.param == "odd" else PLAIN))
    torch.manual_seed(0)
    model = strengthened(transformers.WhisperForConditionalGeneration(config).eval())
    reference = model.model.encoder
    (model if request.param == "whole" else reference).save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=2)
    extractor.save_pretrained(folder)
    return folder, reference, extractor, sensorium.load(folder, precision="fp32")


@pytest.mark.parametrize("name", SOUNDS)
def test_spectrograms_and_features_are_the_references(both, name):
    _, reference, extractor, model = both
    theirs = extractor(SOUNDS[name], sampling_rate=16_000, return_tensors="pt").input_features
    heard = Waveform(SOUNDS[name], 16_000)
    ours = model.network.encoder("audio").preprocess(heard)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    with torch.no_grad():
        expected = reference(theirs).last_hidden_state[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(model.features(heard, kind="audio"), expected, rtol=0, atol=2e-4)


def test_what_is_written_back_is_the_same_to_the_last_bit(both, tmp_path):
    folder, reference, _, _ = both
    opened = open_published(folder)
    write_published(tmp_path / "out", opened.family, opened.model, opened.tokenizer, opened.template, opened.files)
    after = load_file(tmp_path / "out/model.safetensors")
    assert after.keys() == reference.state_dict().keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in reference.state_dict().items())
    again = type(reference).from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in reference.state_dict().items())
    kept = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "out")
    heard = extractor_of(folder)(SOUNDS["short"], sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(kept(SOUNDS["short"], sampling_rate=16_000, return_tensors="pt").input_features, heard)


def extractor_of(folder):
    return transformers.WhisperFeatureExtractor.from_pretrained(folder)


def test_what_is_left_out_of_a_whole_checkpoint_is_said(both):
    opened = open_published(both[0])
    whole = any("decoder" in name for name in opened.files.tensors)
    assert ("of parts that are not opened" in opened.summary()) == whole
    assert opened.unread == sum("decoder" in name for name in opened.files.tensors)


def test_a_sound_of_a_file_is_brought_to_the_rate(both, tmp_path):
    _, _, _, model = both
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        tone = (sound(1.0, 44_100) * 32_000).astype("<i2")
        file.writeframes(np.repeat(tone, 2).tobytes())
    of_file = model.features(tmp_path / "tone.wav", kind="audio")
    of_samples = model.features(Waveform(sound(1.0), 16_000), kind="audio")
    apart = torch.nn.functional.cosine_similarity(of_file, of_samples, dim=-1)
    assert apart.mean() > 0.9  # noise differs, the tone does not
    with pytest.raises(UserError, match="8000 samples a second"):
        model.features(Waveform(sound(1.0, 8000), 8000), kind="audio")


def test_mel_filters_are_the_references():
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 80, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    torch.testing.assert_close(mel_filters(80, 201, 16_000, 8000.0), torch.tensor(theirs).T.float(), rtol=0, atol=1e-7)
    assert LogMel().frames == 3000
