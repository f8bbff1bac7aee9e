"""What comes back of pictures that go through a codec, and how much of its codebook that takes."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from sensorium.codecs.base import Codec, batches, to_pictures, unit
from sensorium.data.emoji import EmojiPicture, pictures
from sensorium.evaluate.result import Table, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.sequence import Item

COLUMNS = 8
"""Pictures side by side in a grid."""


class Reconstruction(EvaluationTask):
    """Pictures of a split, coded and decoded.

    The score is the share of a picture's variance that comes back (1 - error / variance about its mean colour, at least
    0), beside what another picture's reconstruction has of it. The table has the PSNR in dB of values in [0, 1], the
    mean over pictures, and of a codec with codes the share of the codebook that the split uses, and its perplexity.
    """

    name: str = "reconstruction"
    kind: str = "image"
    seed: int = 0
    holdout_dev: bool = False

    def items(self) -> list[EmojiPicture]:
        every = [EmojiPicture(member.key, artist) for member, artist in pictures(self.split, self.holdout_dev)]
        return drawn(every, self.n)

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        codec, media = subject.model.codec(self.kind), self.items()
        before: list[Tensor | None] = [None] * len(media)
        after: list[Tensor | None] = [None] * len(media)
        codes: list[Tensor] = []
        items = [Item(codec.preprocess(one.load()), one.shape(), one.key()) for one in media]
        was, done = codec.training, 0
        codec.eval()
        with torch.no_grad():
            for members, pixels in batches(items, codec.reference()):
                values = codec.encode(pixels)
                codes.append(values.flatten().cpu())
                back = codec.decode(values, pixels.shape[2])
                for member, old, new in zip(members, pixels, back):
                    before[member], after[member] = old.cpu(), new.cpu()
                done += len(members)
                if progress is not None:
                    progress(done, len(items))
        codec.train(was)
        pairs = [(old, new) for old, new in zip(before, after) if old is not None and new is not None]
        return self._result(codec, [old for old, _ in pairs], [new for _, new in pairs], torch.cat(codes))

    def _result(self, codec: Codec, before: list[Tensor], after: list[Tensor], codes: Tensor) -> TaskResult:
        transform, size = codec.config.transform, codec.config.codes
        old, new = [unit(one, transform) for one in before], [unit(one, transform) for one in after]
        errors = [float((a - b).square().mean()) for a, b in zip(old, new)]
        order = shuffled(len(new), self.seed)
        scores = [_explained(a, b) for a, b in zip(old, new)]
        blind = [_explained(a, new[other]) for a, other in zip(old, order)]
        found = [Evaluation.of(self.name, self.split, scores, blind=blind)]
        psnr = sum(-10 * math.log10(max(error, 1e-10)) for error in errors) / len(errors)
        cells = [f"{psnr:.2f} dB"]
        if size:
            counts = torch.bincount(codes.long(), minlength=size).double()
            share = counts / counts.sum()
            entropy = float(-(share * share.clamp(min=1e-12).log()).sum())
            found.append(Evaluation.of("codebook_usage", self.split, (counts > 0).double().numpy()))
            cells += [f"{float((counts > 0).double().mean()):.1%} of {size:,}", f"{math.exp(entropy):.0f}"]
        header = ("PSNR", "codes used", "perplexity")[: len(cells)]
        table = Table(f"Reconstruction of {len(old)} pictures of {self.split}", header, (tuple(cells),))
        some = drawn(range(len(before)), 2 * COLUMNS)
        rows = [[frames[index] for index in some[start : start + COLUMNS]]
                for start in range(0, len(some), COLUMNS) for frames in (before, after)]  # fmt: skip
        grid = picture_grid([[to_pictures(one, transform)[0] for one in row] for row in rows])
        return TaskResult(found, [], [table], [(f"{self.split}: pictures above their reconstructions", grid)])


def _explained(picture: Tensor, other: Tensor) -> float:
    """The share of a picture's variance that another of its size explains, at least 0; both (3, F, H, W) in [0, 1]."""
    if picture.shape != other.shape:
        return 0.0
    variance = float((picture - picture.mean(dim=(1, 2, 3), keepdim=True)).square().mean())
    return max(0.0, 1 - float((picture - other).square().mean()) / max(variance, 1e-9))


def picture_grid(rows: list[list[Image.Image]], side: int = 64, gap: int = 4) -> Image.Image:
    """Rows of pictures as one picture, each fitted into a square of `side` pixels."""
    columns = max((len(row) for row in rows), default=0)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(rows) * (side + gap) + gap), "white")
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            scale = side / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            fitted = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC)
            sheet.paste(fitted, (gap + across * (side + gap), gap + down * (side + gap)))
    return sheet
