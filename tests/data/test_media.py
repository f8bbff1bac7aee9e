"""Decoding: every odd kind of picture file is made here, and is either decoded correctly or refused by name."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from sensorium.config import from_json
from sensorium.data import media
from sensorium.data.media import Limits, PictureFile
from sensorium.sequence import Media, MediaError


def corners(size=(40, 20)) -> Image.Image:
    """Red, green, blue, white quarters: tells every rotation and flip apart."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :, : width // 2] = (10, 10, 250)
    pixels[height // 2 :, width // 2 :] = (250, 250, 250)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[media.ORIENTATION] = orientation
    return tags


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def refused(content, *words: str, **options) -> None:
    """load() raises MediaError naming the file and all the words."""
    with pytest.raises(MediaError) as caught:
        PictureFile(content, **options).load()
    name = options.get("name") or (content if not isinstance(content, bytes) else "bytes")
    for word in (str(name), *words):
        assert word in str(caught.value)


def test_is_media_and_keys_are_of_the_content(tmp_path: Path):
    data = encode(corners(), "PNG")
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(data)
    first, second = PictureFile(tmp_path / "a.png"), PictureFile(str(tmp_path / "b.jpg"))
    assert isinstance(first, Media)
    assert first.key() == second.key() == PictureFile(data).key()
    assert first.key() == __import__("hashlib").sha256(data).hexdigest()
    assert first.read() == data
    assert first.path == tmp_path / "a.png"
    assert PictureFile(data).path is None


def test_key_is_cached_until_the_file_changes(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(corners(), "PNG"))
    reads = []
    original = media.hashlib.file_digest
    monkeypatch.setattr(media.hashlib, "file_digest", lambda *given: reads.append(1) or original(*given))
    keys = [PictureFile(path).key() for _ in range(5)]
    assert len(set(keys)) == 1
    assert len(reads) == 1
    path.write_bytes(encode(corners((30, 30)), "PNG"))
    os.utime(path, ns=(1, 1))
    assert PictureFile(path).key() != keys[0]
    assert len(reads) == 2


def test_pictures_travel_to_worker_processes(tmp_path: Path):
    picture = PictureFile(encode(corners(), "PNG"), name="row 3", limits=Limits(max_pixels=1000))
    copy = pickle.loads(pickle.dumps(picture))
    assert copy.name == "row 3"
    assert copy.limits == picture.limits
    assert copy.load().tobytes() == picture.load().tobytes()


def test_shape_reads_the_header_only(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(corners(), "PNG"))
    monkeypatch.setattr(Image.Image, "load", lambda *given: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *given: pytest.fail("pixels were decoded"))
    assert PictureFile(path).shape() == (20, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_is_applied_in_load_and_in_shape(kind: str, orientation: int):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}
    data = encode(corners(), kind, exif=exif(orientation), **options)
    expected = ImageOps.exif_transpose(_tagged(corners(), orientation)).convert("RGB")
    picture = PictureFile(data)
    loaded = picture.load()
    assert picture.shape() == (expected.height, expected.width) == (loaded.height, loaded.width)
    difference = np.abs(np.asarray(loaded, int) - np.asarray(expected, int))
    assert np.median(difference) <= 3


def _tagged(image: Image.Image, orientation: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "PNG", exif=exif(orientation))))


def test_rotation_written_behind_the_pixels_of_a_png():
    plain = encode(corners(), "PNG")
    body = exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    picture = PictureFile(plain[:-12] + chunk + plain[-12:])
    assert picture.shape() == (40, 20)
    assert picture.load().size == (20, 40)


def test_undefined_rotation_is_upright():
    assert PictureFile(encode(corners(), "JPEG", exif=exif(9))).shape() == (20, 40)


def test_cmyk_jpeg_becomes_the_right_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        colour = pixel(PictureFile(encode(red, kind)).load(), 8, 8)
        assert colour[0] > 240
        assert max(colour[1:]) < 15


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.array([[0, 257, 256 * 128, 65535]], np.uint16)
    expected = [0, 1, 128, 255]  # value / 257, rounded: 32768 / 257 = 127.5
    for data in (encode(Image.fromarray(ramp), "PNG"), encode(Image.fromarray(ramp), "TIFF")):
        loaded = np.asarray(PictureFile(data).load())
        assert loaded.shape == (1, 4, 3)
        assert loaded[0, :, 0].tolist() == expected
    header = b"P5 4 1 65535\n"
    portable = np.asarray(PictureFile(header + ramp.astype(">u2").tobytes()).load())
    assert portable[0, :, 1].tolist() == expected


def test_sixteen_bit_colour_png_is_scaled():
    raw = b"\0" + struct.pack(">6H", 65535, 32768, 0, 257, 65535, 0)
    assert np.asarray(PictureFile(png(2, 1, raw, depth=16, colour=2)).load())[0, 0].tolist() == [255, 128, 0]


def png(width: int, height: int, raw: bytes, depth: int, colour: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_float_pixels_need_a_known_range():
    half = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(PictureFile(encode(half, "TIFF")).load())[0, :, 0].tolist() == [0, 128, 255]
    refused(encode(Image.fromarray(np.array([[0.0, 300.0]], np.float32)), "TIFF"), "[0, 300]", "expected [0, 1]")
    refused(encode(Image.fromarray(np.array([[np.nan]], np.float32)), "TIFF"), "not finite")
    refused(encode(Image.fromarray(np.array([[-5, 70000]], np.int32)), "TIFF"), "[-5, 70000]")


def test_palette_and_two_tone():
    palette = corners().quantize(8)
    assert palette.mode == "P"
    assert pixel(PictureFile(encode(palette, "PNG")).load(), 2, 2)[0] > 200
    two = corners().convert("1")
    assert PictureFile(encode(two, "PNG")).load().mode == "RGB"


def test_alpha_is_composited_on_white():
    clear_black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert pixel(PictureFile(encode(clear_black, "PNG")).load(), 0, 0) == (255, 255, 255)
    assert pixel(PictureFile(encode(half_black, "PNG")).load(), 0, 0) == (127, 127, 127)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert pixel(PictureFile(encode(grey, "PNG")).load(), 0, 0) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putpixel((1, 1), 1)
    loaded = PictureFile(encode(palette, "PNG", transparency=0)).load()
    assert pixel(loaded, 0, 0) == (255, 255, 255)
    assert pixel(loaded, 1, 1) == (200, 10, 10)
    keyed = encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixel(PictureFile(keyed).load(), 0, 0) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = PictureFile(data)
    assert picture.shape() == (8, 8)
    assert pixel(picture.load(), 4, 4) == (255, 0, 0)


def test_the_content_decides_not_the_extension(tmp_path: Path):
    path = tmp_path / "really_a_jpeg.png"
    path.write_bytes(encode(corners(), "JPEG"))
    assert PictureFile(path).load().size == (40, 20)
    odd = tmp_path / "no_extension"
    odd.write_bytes(encode(corners(), "WEBP"))
    assert PictureFile(odd).shape() == (20, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, b"", depth=8, colour=0))
    refused(path, "pixels")
    with pytest.raises(MediaError, match=r"bomb\.png"):
        PictureFile(path).shape()
    small = encode(Image.new("RGB", (101, 100)), "PNG")
    refused(small, "101 x 100 = 10,100 pixels", "10,000", limits=Limits(max_pixels=10_000))
    assert PictureFile(small, limits=Limits(max_pixels=10_100)).shape() == (100, 101)


def test_one_pixel_and_thin_pictures():
    assert PictureFile(encode(Image.new("RGB", (1, 1), "red"), "PNG")).load().size == (1, 1)
    assert PictureFile(encode(Image.new("L", (3000, 1)), "PNG")).shape() == (1, 3000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello, this is text", "not a picture"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_what_is_not_a_picture_says_what_it_is(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    refused(path, words)
    refused(content, words, name="row 7 of data.parquet")


def test_missing_folder_pipe_and_unreadable_paths(tmp_path: Path):
    refused(tmp_path / "none.png", "no such file")
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    refused("a\0b", "cannot be read")
    for call in (PictureFile.key, PictureFile.shape, PictureFile.read):
        with pytest.raises(MediaError, match=r"none\.png"):
            call(PictureFile(tmp_path / "none.png"))


KINDS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM"]
SEEDS = [encode(corners(), kind) for kind in KINDS + (["AVIF"] if features.check("avif") else [])]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_decode_or_raise_media_error(data: bytes, edits, keep: float):
    damaged = bytearray(data)
    for place, value in edits:
        damaged[int(place * (len(damaged) - 1))] = value
    picture = PictureFile(bytes(damaged[: max(1, int(len(damaged) * max(keep, 0.5)))]), limits=Limits(max_pixels=10**6))
    try:  # any other exception fails the test
        shape = picture.shape()
        loaded = picture.load()
    except MediaError:
        return
    assert loaded.mode == "RGB"
    assert (loaded.height, loaded.width) == shape


def test_limits_are_a_typed_value():
    assert from_json(Limits(max_pixels=5).to_json(), Limits) == Limits(max_pixels=5)
