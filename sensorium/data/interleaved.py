"""Pictures and their names in both orders, for models that say pictures as they say words.

Emu3 learns from documents in both orders (arXiv 2409.18869, section 2.4), Chameleon from any interleaving
(arXiv 2405.09818, section 2.2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sensorium.data import builtin_phrases as phrases
from sensorium.data.builtin_names import draw, named_pictures
from sensorium.data.emoji import EmojiPicture, Split
from sensorium.data.source import SourceConfig
from sensorium.sequence import Sample, Segment

Order = Literal["draw", "name"]


class Interleaved(SourceConfig):
    """Every picture of a split once in each order and round.

    orders   draw: the name, then the picture, which is learned; name: the picture, then the name
    pairs    pairs of name and picture in one sample, in the order of the first, all learned
    without  share of the samples to be drawn whose name is left out: what guidance compares with
    plain    documents; otherwise requests ("Draw a cat.") and questions, which are not learned themselves
    wordings what is written of a name that is asked for
    said     what an answer says of it before its picture, with {name}; "": the picture alone
    """

    split: Split = "train"
    orders: tuple[Order, ...] = Field(default=("draw", "name"), min_length=1)
    rounds: int = Field(default=1, ge=1)
    pairs: int = Field(default=1, ge=1)
    without: float = Field(default=0.1, ge=0, le=1)
    plain: bool = True
    wordings: tuple[str, ...] = Field(default=phrases.DRAW, min_length=1)
    said: str = ""
    holdout_dev: bool = False
    seed: int = 0

    def build(self) -> _Interleaved:
        return _Interleaved(self)


class _Interleaved:
    def __init__(self, config: Interleaved) -> None:
        self.config = config
        self.names, self.rows = named_pictures(config.split, "en", config.holdout_dev)

    def __len__(self) -> int:
        return len(self.rows) * len(self.config.orders) * self.config.rounds

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        if not 0 <= index < len(self):
            raise IndexError(index)
        turn, place = divmod(index, len(self.rows))
        round, order = divmod(turn, len(config.orders))
        member, artist = self.rows[place]
        id = f"interleaved/{config.split}/{artist}/{member.key}/{config.orders[order]}/{round}"
        rng = draw(id, config.seed)
        chosen = [(member, artist), *(rng.choice(self.rows) for _ in range(config.pairs - 1))]
        without = config.orders[order] == "draw" and rng.random() < config.without
        segments: list[Segment] = []
        for one, by in chosen:
            name, picture = self.names[one.key], EmojiPicture(one.key, by)
            if config.orders[order] == "draw":
                wanted = "" if without else name if config.plain else rng.choice(config.wordings).format(name=name)
                asked = [] if config.plain or not config.said else [Segment("text", config.said.format(name=name))]
                segments += self._pair(Segment("text", wanted), *asked, Segment("image", picture), said=1 + len(asked))
            else:
                asked = [] if config.plain else [Segment("text", rng.choice(phrases.CAPTION["en"]))]
                segments += self._pair(Segment("image", picture), *asked, Segment("text", name))
        info = {"key": member.key, "artist": artist, "split": config.split, "answer": self.names[member.key]}
        return Sample(tuple(segments), id=id, source="interleaved", info=info)

    def _pair(self, *parts: Segment, said: int = 1) -> list[Segment]:
        """A pair with who says it, the last `said` parts the assistant; of plain pairs the last part is learned, of
        several all."""
        if not self.config.plain:
            roles = ["user"] * (len(parts) - said) + ["assistant"] * said
            return [Segment(part.kind, part.data, role) for part, role in zip(parts, roles)]
        learned = self.config.pairs > 1
        last = len(parts) - 1
        return [Segment(part.kind, part.data, train=learned or at == last) for at, part in enumerate(parts)]
