"""Image encoders whose files contradict themselves, or that a layout has no words for: one clear error each."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from published import saved
from real_pictures import real_picture
from safetensors.torch import load_file, save_file

import sensorium
from sensorium.convert.family import family_named
from sensorium.convert.published import open_published
from sensorium.encoders.head import Head
from sensorium.encoders.swin import Swin
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack, vit
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import llama
from sensorium.nn.norm import Norm

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
PICTURES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


def folder_of(name, path, size, pictures, tensors=None, **changes):
    """A folder of a published class, with fields of its config and its tensors changed."""
    kind = name if name.endswith("Classification") else f"{name}Model"
    config = getattr(transformers, f"{name.removesuffix('ForImageClassification')}Config")(**size)
    saved(getattr(transformers, kind), config, path)
    for words in ("tokenizer.json", "tokenizer_config.json"):
        (path / words).unlink(missing_ok=True)
    said = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(said))
    if pictures is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(pictures))
    if tensors is not None:
        held = load_file(path / "model.safetensors")
        save_file({name: one for name, one in (held | tensors).items() if one is not None}, path / "model.safetensors",
                  {"format": "pt"})  # fmt: skip
    return path


OTHER = {**PICTURES, "size": {"height": 48, "width": 48}}
LONG = {**PICTURES, "size": {"height": 24, "width": 40}}
BROKEN = {
    "no picture settings": ("ViT", SIZE, None, {}, "nothing says how pictures are prepared"),
    "another size": ("ViT", SIZE, OTHER, {}, r"image_size is \(32, 32\), and the image processor makes views of \(48"),
    "a wrong size": ("ViT", SIZE, PICTURES, {"image_size": [32, 32, 3]}, "image_size is"),
    "grey pictures": ("ViT", SIZE, PICTURES, {"num_channels": 1}, "num_channels is 1"),
    "an unknown field": ("ViT", SIZE, PICTURES, {"use_rope": True}, "unknown field 'use_rope'"),
    "an unknown activation": ("ViT", SIZE, PICTURES, {"hidden_act": "mish"}, "hidden_act is 'mish'"),
    "oblong patches": ("ViT", SIZE, PICTURES, {"patch_size": [8, 4]}, "only square patches"),
    "uneven heads": ("ViT", SIZE, PICTURES, {"num_attention_heads": 5}, "not shared evenly"),
    "contradictory width": ("ViT", SIZE, PICTURES, {"intermediate_size": 40}, "they contradict each other"),
    "oblong trained positions": ("Dinov2", SIZE, PICTURES, {"image_size": [32, 48]}, "square views alone"),
    "oblong bias": ("Beit", {**SIZE, "use_relative_position_bias": True}, LONG, {"image_size": [24, 40]}, "for square"),
    "biases apart": ("DINOv3ViT", SIZE, PICTURES, {"value_bias": False}, "value_bias is False"),
    "biases left out": ("DINOv3ViT", SIZE, PICTURES, {"query_bias": False, "value_bias": None}, "only both or none"),
    "odd heads": ("DINOv3ViT", SIZE, PICTURES, {"hidden_size": 36, "num_attention_heads": 6}, "no multiple of 4"),
    "stages apart": ("Swin", SWIN, PICTURES, {"depths": [1, 1, 1]}, "one number of each for every stage"),
    "a window too large": ("Swin", SWIN, PICTURES, {"window_size": 7}, "less than a window of 7"),
    "unwhole patches": ("Swin", {**SWIN, "use_absolute_embeddings": True}, PICTURES, {"patch_size": 5}, "for whole"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_one_model_are_an_error(case, tmp_path):
    name, size, pictures, changes, message = BROKEN[case]
    with pytest.raises(UserError, match=message):
        sensorium.load(folder_of(name, tmp_path / "model", size, pictures, **changes))


def test_a_head_that_is_not_known_is_refused(tmp_path):
    head = {"lm_head.weight": torch.zeros(4, 32)}
    with pytest.raises(UserError, match=r"unexpected: 1 \(lm_head.weight\)"):
        open_published(folder_of("ViT", tmp_path / "model", SIZE, PICTURES, head))


def test_a_classifier_with_other_labels_is_an_error(tmp_path):
    size = {**SIZE, "num_labels": 5}
    labels = {"id2label": {str(at): f"word {at}" for at in range(4)}}
    with pytest.raises(UserError, match=r"classifier.weight has shape"):
        open_published(folder_of("ViTForImageClassification", tmp_path / "model", size, PICTURES, **labels))


def test_a_model_without_its_pooler_opens(tmp_path):
    without = {"pooler.dense.weight": None, "pooler.dense.bias": None}
    opened = open_published(folder_of("ViT", tmp_path / "model", SIZE, PICTURES, without))
    assert opened.model.config.encoders["image"].heads == {}


def test_the_index_that_old_files_hold_is_spare(tmp_path):
    table = {"encoder.layer.1.attention.attention.relative_position_bias.relative_position_index": torch.zeros(17, 17)}
    size = {**SIZE, "use_relative_position_bias": True}
    assert open_published(folder_of("Beit", tmp_path / "model", size, PICTURES, table)).spare == list(table)


@torch.no_grad()
def test_dinov3_reads_pictures_that_were_resized_as_floats(tmp_path):
    """Its own image processor needs a package that is not here, but for one operation, which is torch's."""
    pictures = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 40}}
    folder = folder_of("DINOv3ViT", tmp_path / "model", SIZE, pictures)
    model = sensorium.load(folder, precision="fp32")
    reference = transformers.DINOv3ViTModel.from_pretrained(folder).eval()
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for shape in ((37, 101), (427, 640), (1, 150)):
        picture = real_picture(*shape)
        values = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(*shape, 3).permute(2, 0, 1)[None] / 255
        pixels = (F.interpolate(values, (32, 40), mode="bilinear", antialias=True) - mean) / std
        torch.testing.assert_close(model.features(picture), reference(pixels)[0][0], rtol=0, atol=2e-4)
    written = family_named("dinov3_vit").write(model.network.config)
    assert written.pictures["image_processor_type"] == "DINOv3ViTImageProcessor"


SQUARE = ImageTransform(size=32, resize="squash", filter="bilinear")
PLAIN = ViT.Config(transform=SQUARE, patch=8, class_feature=True, backbone=stack(32, 2, 4))
UNSAID = {
    "sin-cos positions": ("vit", vit(32, 2, 4, 8, 32).replace(transform=SQUARE), "its class_feature is False"),
    "registers": ("vit", PLAIN.replace(registers=2), "its registers is 2"),
    "layer scale": ("vit", PLAIN.replace(backbone=PLAIN.backbone.replace(
        block=PLAIN.backbone.block.replace(layer_scale=1.0))), "its backbone.block.layer_scale is 1.0"),
    "another head": ("vit", PLAIN.replace(heads={"mood": Head.Config(out=3)}), "its heads.mood"),
    "no layer scale": ("dinov2", PLAIN, "its backbone.block.layer_scale is None"),
    "no bias": ("beit", PLAIN, "its backbone.block.attention.key_bias is None"),
    "a normed classifier": ("vit", PLAIN.replace(heads={"classifier": Head.Config(norm=Norm.Config(), out=2)}),
                            "its heads.classifier.norm"),
    "tiles": ("vit", PLAIN.replace(transform=SQUARE.replace(tiles=((32, 64),))), "cannot say how pictures"),
    "another part": ("swin", PLAIN, r"holds an image encoder \(encoders.swin.Swin\) alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAID)
def test_an_encoder_that_a_layout_has_no_words_for_is_an_error(case):
    family, encoder, message = UNSAID[case]
    with pytest.raises(UserError, match=message):
        family_named(family).write(Wiring.Config(encoders={"image": encoder}))


def test_a_language_model_is_no_image_encoder():
    words = Fused.Config(backbone=llama(vocab=9, width=8, depth=1, heads=1, hidden=8))
    with pytest.raises(UserError, match="this model is another"):
        family_named("vit").write(words)


def test_encoders_made_here_can_be_said():
    assert family_named("vit").write(Wiring.Config(encoders={"image": PLAIN})).config["hidden_size"] == 32
    swin = Swin.Config(transform=SQUARE, dim=8, stages=((1, 2),), window=4)
    assert family_named("swin").write(Wiring.Config(encoders={"image": swin})).config["window_size"] == 4
