"""Published settings of image processors: the pixels of the reference's own classes, and settings that they read."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from real_pictures import SHAPES, real_picture

from sensorium.convert.pictures import CLASSES, picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError

SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 48, "width": 48}}
CASES = {
    "clip": ("CLIP", SMALL),
    "clip, cropped": ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
    "clip, crop beyond": ("CLIP", {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 40}}),
    "clip, oblong": ("CLIP", {"size": {"shortest_edge": 33}, "crop_size": {"height": 33, "width": 16}}),
    "clip, longest": ("CLIP", {"size": {"shortest_edge": 32, "longest_edge": 50}, "crop_size": 32}),
    "clip, old": ("CLIP", {"size": 32, "crop_size": 32, "do_normalize": False}),
    "clip, only cropped": ("CLIP", {"do_resize": False, "crop_size": {"height": 40, "width": 64}}),
    "clip, squashed": ("CLIP", {**SMALL, "size": {"height": 30, "width": 45}, "rescale_factor": 1 / 127.5}),
    "vit": ("ViT", SQUARE),
    "vit, oblong": ("ViT", {"size": {"height": 32, "width": 48}, "resample": 1, "do_rescale": False}),
    "vit, old": ("ViT", {"size": 32, "resample": 0, "image_mean": [0.1, 0.2, 0.3]}),
    "siglip": ("Siglip", SQUARE),
    "blip": ("Blip", {**SQUARE, "image_std": [0.2, 0.3, 0.4]}),
    "beit": ("Beit", SQUARE),
    "beit, cropped": ("Beit", {"size": {"height": 50, "width": 40}, "do_center_crop": True, "crop_size": 32}),
    "bit": ("Bit", {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}),
    "bit, box": ("Bit", {**SMALL, "resample": 4}),
    "deit": ("DeiT", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}, "resample": 5}),
    "llava": ("Llava", {**SMALL, "do_pad": True}),
    "llava, cropped": ("Llava", SMALL),
}  # fmt: skip


def processor(kind, fields):
    """A published image processor of Pillow's kind."""
    return getattr(transformers, f"{kind}ImageProcessorPil")(**fields)


def saved_settings(reference, folder):
    reference.save_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_the_references_both_ways(case, tmp_path):
    kind, fields = CASES[case]
    reference = processor(kind, fields)
    settings = Settings(saved_settings(reference, tmp_path))
    transform = transform_of(settings)
    settings.done(idle=())
    again = processor(kind, picture_settings(transform, kind))
    for shape in SHAPES:
        if case == "clip, longest" and min(shape) == 1:
            continue  # the reference fails: its shorter side becomes 0
        picture = real_picture(*shape)
        views = transform(picture)
        assert tuple(views.shape) == (1, 3, *transform.extent(shape))
        expected = torch.from_numpy(reference(picture, return_tensors="np").pixel_values)
        if fields.get("do_rescale", True):
            assert expected.std() > (0.05 if min(shape) > 1 else 0.01)
            torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)
        else:  # numbers up to 510, of which float32 says seven digits
            torch.testing.assert_close(views, expected, rtol=2e-7, atol=1e-5)
        written = torch.from_numpy(again(picture, return_tensors="np").pixel_values)
        torch.testing.assert_close(views, written, rtol=2e-7, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in ("DINOv3ViT", "LlavaNext")])
def test_what_settings_leave_out_is_what_their_class_does(kind, tmp_path):
    whole = saved_settings(processor(kind, {}), tmp_path)
    assert transform_of(Settings({"image_processor_type": f"{kind}ImageProcessorFast"})) == transform_of(
        Settings(whole)
    )
    assert transform_of(Settings({**whole, "image_processor_type": None}), kind) == transform_of(Settings(whole))


def test_files_of_old_releases_name_a_feature_extractor():
    said = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 3}
    assert transform_of(Settings(said)) == transform_of(
        Settings({**said, "image_processor_type": "CLIPImageProcessor"})
    )
    said["feature_extractor_type"] = "ViTFeatureExtractor"
    assert transform_of(Settings(said)) == ImageTransform(size=336, resize="squash")


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_dinov3_resizes_floats_before_it_normalises(filter):
    """Its published processor needs a package of its own; the operations are those of torch."""
    said = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 48},
            "resample": 2 if filter == "bilinear" else 3}  # fmt: skip
    transform = transform_of(Settings(said))
    assert not transform.rounded
    assert transform_of(Settings(picture_settings(transform))) == transform
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for shape in SHAPES:
        picture = real_picture(*shape)
        values = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(*shape, 3).permute(2, 0, 1)[None] / 255
        expected = F.interpolate(values, (32, 48), mode=filter, antialias=True, align_corners=False)
        torch.testing.assert_close(transform(picture), (expected - mean) / std, rtol=0, atol=1e-5)


def test_floats_are_cropped_as_rounded_pixels_are():
    fields = {"size": 32, "width": 45, "scaled": 40, "filter": "bilinear"}
    for shape in SHAPES:
        picture = real_picture(*shape)
        exact, rounded = ImageTransform(**fields, rounded=False)(picture), ImageTransform(**fields)(picture)
        assert 0 < (exact - rounded).abs().max() < 0.01  # 8 bits twice, of a range of 2


BROKEN = {
    "no settings": ({}, "missing or empty"),
    "a class of its own": ({"image_processor_type": "CLIPSegImageProcessor"}, "did you mean 'CLIP'"),
    "no class, no size": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}, "it has no size"),
    "views of any size": (
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
        "sizes of their own",
    ),
    "nothing done": ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "sizes of their own"),
    "longest alone": ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 64}}, "longest_edge"),
    "another filter": ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample is 9"),
    "two channels": ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, "image_mean is"),
    "padding behind": ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad is True"),
    "no deviation": ({"image_processor_type": "ViTImageProcessor", "image_std": 0.0}, "above 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_said_is_an_error(case):
    said, message = BROKEN[case]
    with pytest.raises(UserError, match=message):
        transform_of(Settings(said))


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(size=32, resize="keep"),
        ImageTransform(size=32, tiles=((32, 64),)),
        ImageTransform(size=32, resize="pad", pad_color=(1, 2, 3)),
    ],
)
def test_a_transform_without_words_for_it_is_an_error(transform):
    with pytest.raises(UserError, match="cannot say how pictures are prepared"):
        picture_settings(transform)
