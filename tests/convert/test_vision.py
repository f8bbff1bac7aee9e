"""Image encoders of transformers, opened here and written back, on real pictures of odd sizes."""

import pytest
import torch
import transformers
from published import saved
from real_pictures import real_picture
from safetensors.torch import load_file

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published, write_published

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56, "image_size": 32,
       "patch_size": 8}  # fmt: skip
CASES = {
    "vit": ("ViT", "Model", VIT, "ViT", {"size": 32}),
    "vit, odd": ("ViT", "Model", {**VIT, "hidden_size": 42, "num_attention_heads": 3, "image_size": [27, 51],
                                  "patch_size": 7, "qkv_bias": False, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new",
                                  "pooler_output_size": 20, "pooler_act": "relu"},
                 "ViT", {"size": {"height": 27, "width": 51}, "resample": 3}),
    "vit, scores": ("ViT", "ForImageClassification", {**VIT, "num_labels": 5}, "DeiT",
                    {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
}  # fmt: skip
BIT = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
ODD = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3}
CASES |= {
    "dinov2": ("Dinov2", "Model", {**DINO, "image_size": 56}, "Bit", BIT),
    "dinov2, odd": ("Dinov2", "Model", {**DINO, **ODD, "use_swiglu_ffn": True, "mlp_ratio": 3, "qkv_bias": False,
                                        "image_size": 40, "use_mask_token": False, "layer_norm_eps": 1e-3},
                    "Bit", {"size": {"shortest_edge": 50}, "crop_size": {"height": 33, "width": 59}}),
    "dinov2, scores": ("Dinov2", "ForImageClassification", {**DINO, "num_labels": 3}, "Bit", BIT),
    "registers": ("Dinov2WithRegisters", "Model", DINO, "Bit", BIT),
    "registers, odd": ("Dinov2WithRegisters", "Model", {**DINO, **ODD, "num_register_tokens": 3, "image_size": 64,
                                                        "use_swiglu_ffn": True}, "Bit",
                       {"size": {"shortest_edge": 50}, "crop_size": {"height": 33, "width": 59}}),
    "registers, scores": ("Dinov2WithRegisters", "ForImageClassification", {**DINO, "num_labels": 4}, "Bit", BIT),
    "dinov3": ("DINOv3ViT", "Model", {**VIT, "num_register_tokens": 4, "layerscale_value": 0.5}, "ViT", {"size": 32}),
    "dinov3, odd": ("DINOv3ViT", "Model", {**VIT, **ODD, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True,
                                           "proj_bias": False, "mlp_bias": False, "rope_theta": 30.0},
                    "ViT", {"size": {"height": 35, "width": 58}}),
    "dinov3, no biases": ("DINOv3ViT", "Model", {**VIT, "query_bias": False, "value_bias": False}, "ViT", {"size": 32}),
    "beit": ("Beit", "Model", {**VIT, "use_relative_position_bias": True}, "Beit", {"size": 32}),
    "beit, odd": ("Beit", "Model", {**VIT, **ODD, "use_shared_relative_position_bias": True, "use_mask_token": True,
                                    "use_absolute_position_embeddings": True, "use_mean_pooling": False,
                                    "layer_scale_init_value": 0.0, "image_size": 37, "patch_size": 9},
                  "Beit", {"size": 37}),
    "beit, both": ("Beit", "Model", {**VIT, "use_relative_position_bias": True,
                                     "use_shared_relative_position_bias": True}, "Beit", {"size": 32}),
    "beit, oblong": ("Beit", "Model", {**VIT, "image_size": [24, 40]}, "Beit", {"size": {"height": 24, "width": 40}}),
    "beit, scores": ("Beit", "ForImageClassification", {**VIT, "num_labels": 6, "use_relative_position_bias": True},
                     "Beit", {"size": 32}),
    "beit, class token scores": ("Beit", "ForImageClassification", {**VIT, "num_labels": 6, "use_mean_pooling": False},
                                 "Beit", {"size": 32}),
}  # fmt: skip
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CASES |= {
    "swin": ("Swin", "Model", SWIN, "ViT", {"size": 32}),  # the last stage is one window, and not shifted
    "swin, odd": ("Swin", "Model", {**SWIN, "image_size": [53, 70], "embed_dim": 12, "depths": [2, 3, 2],
                                    "window_size": 3, "num_heads": [3, 2, 6], "qkv_bias": False, "mlp_ratio": 2.5,
                                    "layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
                  "ViT", {"size": {"height": 53, "width": 70}}),  # nothing divides: patches, windows and merged cells
    "swin, positions": ("Swin", "Model", {**SWIN, "use_absolute_embeddings": True, "image_size": [24, 48],
                                          "window_size": 3}, "ViT", {"size": {"height": 24, "width": 48}}),
    "swin, scores": ("Swin", "ForImageClassification", {**SWIN, "num_labels": 7}, "ViT", {"size": 32}),
}  # fmt: skip
SHAPES = ((37, 101), (64, 64), (427, 640), (300, 1), (1, 150))


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    name, kind, size, pictures, prepared = CASES[request.param]
    folder = tmp_path_factory.mktemp("published") / "model"
    config = getattr(transformers, f"{name}Config")(**size)
    reference = saved(getattr(transformers, f"{name}{kind}"), config, folder)
    for words in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / words).unlink(missing_ok=True)  # none of these reads text
    processor = getattr(transformers, f"{pictures}ImageProcessorPil")(**prepared)
    processor.save_pretrained(folder)
    return folder, reference, processor, sensorium.load(folder, precision="fp32")


def base(reference):
    """The encoder, without the classifier beside it."""
    return getattr(reference, reference.base_model_prefix) if hasattr(reference, "classifier") else reference


@torch.no_grad()
def test_features_are_the_references(both):
    _, reference, processor, model = both
    for shape in SHAPES:
        picture = real_picture(*shape)
        pixels = processor(picture, return_tensors="pt").pixel_values
        ours = model.network.encoder("image").preprocess(picture)
        torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-5)
        expected = base(reference)(pixels).last_hidden_state[0]
        assert expected.std() > 0.1
        torch.testing.assert_close(model.features(picture), expected.flatten(0, -2), rtol=0, atol=2e-4)


@torch.no_grad()
def test_heads_read_what_the_references_do(both):
    _, reference, processor, model = both
    picture = real_picture(61, 97)
    encoder = model.network.encoder("image")
    views = encoder.preprocess(picture)
    theirs = reference(processor(picture, return_tensors="pt").pixel_values)
    expected = {"pooler": getattr(theirs, "pooler_output", None), "classifier": getattr(theirs, "logits", None)}
    for name, head in encoder.heads.items():
        assert expected[name].std() > 0.01
        torch.testing.assert_close(encoder.readout(name, views), expected[name], rtol=0, atol=2e-4)
        assert name != "classifier" or head.config.labels == tuple(reference.config.id2label.values())
    with_scores = expected["classifier"] is not None
    assert ("classifier" in encoder.heads) == with_scores


@torch.no_grad()
def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, reference, processor, _ = both
    opened = open_published(folder)
    pixels = processor(real_picture(61, 97), return_tensors="pt").pixel_values
    before = load_file(folder / "model.safetensors")
    for name, came in (("back", opened.files), ("alone", None)):
        written = tmp_path / name
        write_published(written, family_named(opened.family.name), opened.model, None, opened.template, came)
        after = load_file(written / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].shape == after[name].shape for name in before
        )
        again, said = type(reference).from_pretrained(written, output_loading_info=True)
        assert not said["missing_keys"]
        assert not said["unexpected_keys"]
        assert again.config.id2label == reference.config.id2label
        torch.testing.assert_close(again(pixels)[0], reference(pixels)[0], rtol=0, atol=1e-5)
        prepared = transformers.AutoImageProcessor.from_pretrained(written)
        torch.testing.assert_close(
            prepared(real_picture(61, 97), return_tensors="pt").pixel_values, pixels, rtol=0, atol=0
        )
        assert open_published(written).model.config == opened.model.config
