"""The vector quantiser, worked out by hand; and the codec around it."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError
from sensorium.sequence import Item


class Alone:
    rank, world = 0, 1

    def sum(self, value):
        return value


BOOK = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [9.0, 9.0]])


def quantizer(**changes) -> Quantizer:
    made: Quantizer = Quantizer.Config(**{"codes": 4, "width": 2, "revive": 0.0, **changes}).build()
    with torch.no_grad():
        made.book.copy_(BOOK)
    if made.config.counts:
        made.sums.copy_(BOOK)
        made.begun.fill_(True)
    return made


def test_every_vector_becomes_the_nearest_code_and_pays_its_distance():
    vectors = torch.tensor([[0.5, 0.0], [1.5, 0.5], [0.0, 3.0]])
    chosen, codes, losses = quantizer()(vectors)
    assert codes.tolist() == [0, 1, 2]
    torch.testing.assert_close(chosen, BOOK[:3])
    torch.testing.assert_close(losses["commitment"], torch.tensor([0.125, 0.25, 0.5]))
    assert set(losses) == {"commitment"}


def test_gradients_pass_straight_through_and_the_commitment_draws_vectors_to_their_codes():
    vectors = torch.tensor([[0.5, 0.0], [1.5, 0.5]], requires_grad=True)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    chosen, _, losses = quantizer()(vectors)
    [passed] = torch.autograd.grad((chosen * weights).sum(), vectors, retain_graph=True)
    torch.testing.assert_close(passed, weights)
    [drawn] = torch.autograd.grad(losses["commitment"].sum(), vectors)
    torch.testing.assert_close(drawn, vectors.detach() - BOOK[:2])


def test_a_learned_book_is_drawn_to_its_vectors_by_its_own_loss_alone():
    made = quantizer(learning="gradient")
    vectors = torch.tensor([[0.5, 0.0], [1.5, 0.5]], requires_grad=True)
    chosen, _, losses = made(vectors)
    [book] = torch.autograd.grad(losses["codebook"].sum(), [made.book])
    torch.testing.assert_close(book[:2], BOOK[:2] - vectors.detach())
    assert torch.autograd.grad(chosen.sum(), [made.book], allow_unused=True) == (None,)


def test_codes_are_the_moving_means_of_the_vectors_they_stood_for():
    made = quantizer(decay=0.75)
    made(torch.tensor([[0.5, 0.0], [0.3, 0.0], [1.5, 0.5], [0.0, 3.0]]))
    found = made.after_step(Alone())
    # 4 vectors for 4 codes: counts are 2, 1, 1, 0; uses 0.75 + 0.25 * count; sums 0.75 * old + 0.25 * new
    torch.testing.assert_close(made.uses, torch.tensor([1.25, 1.0, 1.0, 0.75]))
    torch.testing.assert_close(made.book[0], torch.tensor([0.2 / 1.25, 0.0]))
    torch.testing.assert_close(made.book[1], torch.tensor([0.75 * 2 + 0.25 * 1.5, 0.125]))
    torch.testing.assert_close(made.book[3], torch.tensor([9.0, 9.0]))  # unused: it stays where it was
    assert found["usage"] == 0.75
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert found["perplexity"] == pytest.approx(math.exp(entropy))
    assert found["revived"] == 0


def test_micro_batches_of_a_step_move_the_book_as_one_batch_does():
    vectors = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    one, many = quantizer(), quantizer()
    one(vectors)
    for part in vectors.split(5):
        many(part)
    assert one.after_step(Alone()) == many.after_step(Alone())
    torch.testing.assert_close(one.book, many.book)


def test_codes_that_stand_for_nothing_begin_anew_at_vectors_of_the_step():
    made = quantizer(decay=0.5, revive=0.3)
    vectors = torch.tensor([[0.5, 0.0], [0.4, 0.0], [1.5, 0.5], [0.0, 3.0]])
    revived = []
    for _ in range(2):
        made(vectors)
        revived.append(made.after_step(Alone())["revived"])
    assert revived == [0, 1]  # uses of code 3: 1, 0.5, 0.25
    assert any(torch.equal(made.book[3], vector) for vector in vectors)
    assert made.uses[3] == 1


def test_a_dead_code_begins_anew_where_the_book_says_least_of_what_is_there():
    made = quantizer(decay=0.5, revive=0.3)
    vectors = torch.cat([torch.zeros(200, 2), torch.tensor([[0.0, 3.0]])])  # what is common has its code already
    for _ in range(2):
        made(vectors)
        made.after_step(Alone())
    assert made.book[3].tolist() == [0.0, 3.0]


def test_after_the_first_step_every_code_stands_at_a_vector_of_it():
    made: Quantizer = Quantizer.Config(codes=8, width=2).build()
    vectors = torch.randn(5, 2)
    made(vectors)
    assert made.after_step(Alone())["revived"] == 0
    assert all(any(torch.equal(code, vector) for vector in vectors) for code in made.book)


def test_two_ranks_hold_the_same_book_as_one_process():
    vectors = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    halves = vectors.split(5)
    alone = quantizer()
    alone(vectors)
    alone.after_step(Alone())
    counts = [torch.bincount(quantizer().codes(half), minlength=4).float() for half in halves]

    class Rank:
        world = 2

        def __init__(self, rank):
            self.rank, self.calls = rank, 0

        def sum(self, value):
            """What the other rank would add: its counts, then its sums of vectors by code."""
            self.calls += 1
            other = halves[1 - self.rank]
            if self.calls == 1:
                return value + counts[1 - self.rank]
            return value + torch.zeros(4, 2).index_add_(0, quantizer().codes(other), other)

    for rank in range(2):
        made = quantizer()
        made(halves[rank])
        made.after_step(Rank(rank))
        torch.testing.assert_close(made.book, alone.book)


def test_nothing_changes_while_nothing_is_learned():
    made = quantizer().eval()
    made(torch.randn(5, 2))
    assert made.after_step(Alone()) == {}
    torch.testing.assert_close(made.book, BOOK)


def tiny_vq(**changes) -> VQ:
    conv = Convolutions(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=False, **changes)
    transform = ImageTransform(size=8, resize="keep", multiple=2)
    torch.manual_seed(0)
    return VQ.Config(transform=transform, conv=conv, quantizer=Quantizer.Config(codes=16, width=4), wide=16).build()


def test_pictures_of_any_size_are_coded_each_as_alone():
    codec = tiny_vq()
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((8, 8), (8, 4), (8, 8), (3, 7))]
    items = [Item(codec.preprocess(one), (one.height, one.width)) for one in pictures]
    run = codec.prepare_inference()
    together = run(items)
    assert [(grid.rows, grid.cols) for grid in together.grids] == [(4, 4), (2, 4), (4, 4), (4, 2)]
    for item, values in zip(items, together.values.split(together.lengths)):
        assert torch.equal(run([item]).values, values)
        assert values.dtype == torch.int64
        assert 0 <= int(values.min()) <= int(values.max()) < 16


def test_codes_come_back_as_pictures_and_clips():
    codec = tiny_vq(temporal=2)
    frames = [Image.effect_noise((8, 8), 80).convert("RGB") for _ in range(3)]
    item = Item(codec.preprocess(frames), (3, 8, 8))
    made = codec.prepare_inference()([item])
    assert made.grids[0].frames == 2
    assert made.values.shape == (2 * 16, 1)
    back = codec.pictures(made.values, made.grids[0], frames=3)
    assert [one.size for one in back] == [(8, 8)] * 3
    assert back[0].mode == "RGB"


def test_training_output_is_what_decoding_the_codes_gives():
    codec = tiny_vq()
    pixels = torch.randn(2, 3, 1, 8, 8)
    coded = codec(pixels)
    torch.testing.assert_close(coded.pixels, codec.decode(codec.encode(pixels)), rtol=1e-5, atol=1e-5)
    assert coded.losses["commitment"].shape == (2,)


def test_a_book_of_a_checkpoint_stays_where_it_is_and_counts_nothing():
    made = quantizer(learning="gradient", begin=False).train()
    assert list(made.state_dict()) == ["book"]
    made(torch.tensor([[0.1, 0.0], [8.0, 9.0]]))
    found = made.after_step(Alone())
    assert found == {"usage": 0.5, "perplexity": pytest.approx(2.0)}
    assert torch.equal(made.book, BOOK)


def test_a_codec_without_a_decoder_makes_codes_alone():
    whole = {"transform": ImageTransform(size=8), "conv": Convolutions(channels=8, multipliers=(1, 1), groups=4)}
    codec: VQ = VQ.Config(**whole, quantizer=Quantizer.Config(codes=5, width=3), wide=6, decoder=False).build()
    codes = codec.encode(torch.randn(1, 3, 1, 8, 8))
    assert codes.shape == (1, 1, 4, 4, 1)
    assert not [name for name, _ in codec.named_parameters() if name.startswith("up.")]
    with pytest.raises(UserError, match="no decoder"):
        codec.decode(codes)


def test_codes_may_be_read_as_vectors_of_length_one():
    made = quantizer(unit=True)
    assert made.codes(torch.tensor([[1.9, 0.1], [8.0, 9.0]])).tolist() == [1, 3]  # the nearest of the book as it is
    torch.testing.assert_close(made.vectors(torch.tensor([1, 3])), torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]))
