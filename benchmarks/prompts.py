"""What every side is asked: prompts of a known number of tokens, no two of which begin alike.

An engine that keeps what it read would otherwise answer the second round of a benchmark from what it kept.
"""

from __future__ import annotations

import random
from typing import Any

WORDS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father
    power hour game line end member law car city community name president team minute idea body information back
    parent face others level office door health person art war history party result change morning reason research
    girl guy moment
    """.split()  # noqa: SIM905
)
"""Each is one token of the language model's, with the space before it."""


def story(number: int) -> list[dict[str, Any]]:
    """A conversation that waits for a long answer, of about 64 tokens."""
    chance = random.Random(number)
    things = chance.sample(WORDS, 12)
    text = (
        f"Write a long story about a {things[0]}, a {things[1]} and a {things[2]}. Say what they think of the "
        f"{things[3]}, how the {things[4]} and the {things[5]} came to the {things[6]}, and why the {things[7]} was "
        f"never again seen near the {things[8]}. Do not stop early."
    )
    return [_said("system", f"{things[9]} {things[10]}: you tell stories."), _said("user", text)]


def words(number: int, count: int) -> list[dict[str, Any]]:
    """A conversation with `count` random words in the user's turn."""
    chance = random.Random(f"{number} {count}")
    first = f"say {chance.choice(WORDS)} {chance.choice(WORDS)}"  # a word without a space before it may be two tokens
    return [_said("system", first), _said("user", "list " + " ".join(chance.choice(WORDS) for _ in range(count)))]


def seen(number: int) -> tuple[list[dict[str, Any]], Any]:
    """A conversation about a picture, and the picture: random shapes."""
    from PIL import Image, ImageDraw

    chance = random.Random(number)
    picture = Image.new("RGB", (256, 224), tuple(chance.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = chance.randrange(220), chance.randrange(190)
        colour = tuple(chance.randrange(256) for _ in range(3))
        draw.ellipse((x, y, x + chance.randrange(10, 120), y + chance.randrange(10, 90)), fill=colour)
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe this picture at length."}]
    return [{"role": "user", "content": parts}], picture


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
