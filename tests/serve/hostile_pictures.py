"""Pictures that no honest client sends: empty, cut, enormous, bombs, drawings, files that are two things at once."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FOREIGN = ("TIFF", "PPM", "ICO", "PCX", "TGA", "PDF", "EPS", "SGI", "JPEG2000", "DIB")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 2, *more: bytes) -> bytes:
    """A PNG file whose header says what it likes. more: chunks between header and data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return SIGNATURE + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@lru_cache(maxsize=64)
def honest(kind: str, size: tuple[int, int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def named(content: bytes, canary: str) -> bytes:
    """The picture with a canary behind its end, so that its bytes are nobody else's."""
    return content + canary.encode()


# ---- one maker a kind; each (rng, canary) -> the file


def _honest(rng: random.Random, canary: str) -> bytes:
    size = rng.choice([(1, 1), (2, 3), (40, 30), (64, 64), (224, 224), (300, 17)])
    return named(honest(rng.choice(KINDS), size, rng.randrange(4)), canary)


def _commented(rng: random.Random, canary: str) -> bytes:
    """The canary inside: as text of a PNG."""
    return png(4, 4, zlib.compress(bytes(4 * 13)), 8, 2, chunk(b"tEXt", b"Comment\0" + canary.encode()))


def _empty(rng: random.Random, canary: str) -> bytes:
    return rng.choice([b"", b"\0", SIGNATURE, b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"])


def _cut(rng: random.Random, canary: str) -> bytes:
    content = honest(rng.choice(KINDS), (40, 30), rng.randrange(4))
    return content[: rng.randrange(1, len(content))]


def _flipped(rng: random.Random, canary: str) -> bytes:
    content = bytearray(honest(rng.choice(KINDS), (40, 30), rng.randrange(4)))
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(min(len(content), 200) if rng.random() < 0.7 else len(content))
        content[place] = rng.randrange(256)
    return bytes(content)


def _spliced(rng: random.Random, canary: str) -> bytes:
    """The head of one format and the body of another."""
    one, other = (honest(rng.choice(KINDS), (40, 30), rng.randrange(4)) for _ in range(2))
    return one[: rng.randrange(1, 60)] + other[rng.randrange(0, 60) :]


def _enormous(rng: random.Random, canary: str) -> bytes:
    """A header of more pixels than there is memory for, and hardly anything behind it."""
    side = rng.choice([7_072, 20_000, 65_535, 2**31 - 1])
    width, height = rng.choice([(side, side), (side, 1), (1, side), (side, 65_500)])
    match rng.randrange(4):
        case 0:
            return png(width, height, zlib.compress(b"\0" * 1000))
        case 1:
            head = b"GIF89a" + struct.pack("<HHBBB", min(width, 65_535), min(height, 65_535), 0xF7, 0, 0)
            return head + bytes(768) + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\x02L\x01\0;"
        case 2:
            return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        case _:
            sides = (min(side, 2**24) - 1).to_bytes(3, "little") * 2
            head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
            return b"RIFF" + struct.pack("<I", 4 + len(head)) + b"WEBP" + head


@lru_cache(maxsize=8)
def _black(width: int, height: int) -> bytes:
    return zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)


def _bomb(rng: random.Random, canary: str) -> bytes:
    """A thousand times smaller than its pixels, of a size that is still taken, or just no longer."""
    width, height = rng.choice([(7_000, 7_000), (7_072, 7_072), (50_000, 999), (12_000, 12_000)])
    return named(png(width, height, _black(width, height), 1, 0), canary)


def _thin(rng: random.Random, canary: str) -> bytes:
    """A line: whoever makes its short side as long as an encoder wants makes its long one endless."""
    long = rng.choice([1_000, 30_000, 200_000, 1_000_000])
    width, height = rng.choice([(long, 1), (1, long), (long, 2)])
    return named(png(width, height, _black(width, height), 1, 0), canary)


def _text_bomb(rng: random.Random, canary: str) -> bytes:
    """Text, or a colour profile, that is many megabytes once it is unpacked."""
    packed = zlib.compress(bytes(rng.choice([1 << 20, 100 << 20])), 9)
    extra = rng.choice([chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed),
                        chunk(b"iTXt", b"a\0\1\0\0\0" + packed)])  # fmt: skip
    return png(4, 4, zlib.compress(bytes(4 * 13)), 8, 2, *[extra] * rng.choice([1, 3]))


def _data_bomb(rng: random.Random, canary: str) -> bytes:
    """Pixels of a small picture with a great deal behind them."""
    return png(8, 8, zlib.compress(bytes(rng.choice([1 << 20, 64 << 20])), 9))


def _drawing(rng: random.Random, canary: str) -> bytes:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))
    return rng.choice(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg'><text>{canary}</text></svg>",
            f"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY l0 '{canary}'>{laughs}]><svg><text>&l8;</text></svg>",
            "<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg><text>&x;</text></svg>",
            "<svg><image href='http://127.0.0.1:1/x'/><script>alert(1)</script></svg>",
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
            "push graphic-context\nfill 'url(https://127.0.0.1/x|ls)'\npop graphic-context\n",
        ]
    ).encode()


def _two_things(rng: random.Random, canary: str) -> bytes:
    """A polyglot: a picture that is also a page, a script or an archive."""
    picture = honest(rng.choice(KINDS), (8, 8), 0)
    tail = rng.choice([b"<html><script>alert(1)</script>", b"PK\x03\x04" + bytes(26), b"%PDF-1.7\n", b"<?php x(); ?>",
                       honest("PNG", (40, 30), 1), b"#!/bin/sh\nid\n", b"GIF89a=1;alert(1)//"])  # fmt: skip
    return named(tail + picture if rng.random() < 0.3 else picture + tail, canary)


def _foreign(rng: random.Random, canary: str) -> bytes:
    """Formats that this machine's library reads, and the server does not."""
    try:
        return named(honest(rng.choice(FOREIGN), (40, 30), 0), canary)
    except (OSError, KeyError):  # not in this build of the library
        return b"II*\0" + canary.encode()


def _frames(rng: random.Random, canary: str) -> bytes:
    stream = io.BytesIO()
    many = [Image.new("P", (16, 16), shade % 256) for shade in range(rng.choice([2, 300]))]
    many[0].save(stream, "GIF", save_all=True, append_images=many[1:])
    return named(stream.getvalue(), canary)


def _odd_modes(rng: random.Random, canary: str) -> bytes:
    depth, color = rng.choice([(16, 0), (16, 6), (16, 2), (8, 3), (8, 4), (1, 0), (3, 2), (255, 9), (8, 7)])
    more = [chunk(b"tRNS", rng.randbytes(rng.choice([0, 2, 6, 300])))] if rng.random() < 0.5 else []
    more += [chunk(b"eXIf", b"II*\0" + rng.randbytes(40))] if rng.random() < 0.5 else []
    return png(4, 4, zlib.compress(rng.randbytes(400)), depth, color, *more)


def _noise(rng: random.Random, canary: str) -> bytes:
    return rng.randbytes(rng.choice([1, 3, 100, 5000])) + canary.encode()


MAKERS: tuple[tuple[Callable[[random.Random, str], bytes], float], ...] = (
    (_honest, 6), (_commented, 2), (_empty, 1), (_cut, 3), (_flipped, 4), (_spliced, 2), (_enormous, 3), (_bomb, 0.3),
    (_thin, 0.7), (_text_bomb, 0.5), (_data_bomb, 0.5), (_drawing, 2), (_two_things, 3), (_foreign, 1), (_frames, 1),
    (_odd_modes, 2), (_noise, 1),
)  # fmt: skip


def hostile(rng: random.Random, canary: str) -> bytes:
    [(maker, _)] = rng.choices(MAKERS, [weight for _, weight in MAKERS])
    return maker(rng, canary)


def address(content: bytes, rng: random.Random) -> str:
    """As a data: URL; a few are damaged."""
    kind = rng.choice(["png", "jpeg", "webp", "gif", "svg+xml", "x-icon", "*", "png;charset=utf-8"])
    text = base64.b64encode(content).decode()
    match rng.randrange(24):
        case 0:
            text = text[: rng.randrange(len(text) + 1)] + "!"
        case 1:
            text = text.replace("/", "_").replace("+", "-")
        case 2:
            text = " \n\t".join(text[place : place + 76] for place in range(0, len(text), 76))
        case 3:
            return f"data:image/{kind}," + text
        case 4:
            return f"data:text/html;base64,{text}"
        case 5:
            text += "=" * 5
    return f"data:image/{kind};base64,{text}"
