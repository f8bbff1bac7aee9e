"""Short answers, boxes, masks, objects, transcripts and needles with values that are worked by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from sensorium.data.boxes import BOX_FORMATS
from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.chair import Chair, singular
from sensorium.evaluate.metrics.coco_words import COCO_WORDS
from sensorium.evaluate.metrics.distance import common, edits
from sensorium.evaluate.metrics.distributions import fid, kid
from sensorium.evaluate.metrics.grounding import matched, overlaps
from sensorium.evaluate.metrics.retrieval import average_precisions, recalls
from sensorium.evaluate.metrics.segmentation import read_mask


def each(metric, said, *answers, **more):
    item = TaskItem(id="1", answers=answers, **more)
    return float(metric.single(metric.statistics([item], [metric.parse(said, item)]))[0])


@pytest.mark.parametrize(("said", "right", "score"), [
    ("Paris", "paris", 1), ("Paris.", "Paris", 1), (" the  cat ", "the cat", 1), ("3.5", "35", 0), ("+", "-", 0),
    ("+", "+", 1), ("«oui»", "oui", 0), ("“yes”", "yes", 1), ("Straße", "STRASSE", 1), ("", "", 0), ("a cat", "cat", 0),
    ("猫。", "猫", 1), ("...", "?", 0),
])  # fmt: skip
def test_exact(said, right, score):
    assert each(metric_of("exact"), said, right) == score


def test_exact_as_it_is():
    metric = metric_of("exact").replace(ignore_case=False, ignore_punctuation=False)
    assert each(metric, "Paris", "paris") == each(metric, "Paris.", "Paris") == 0
    assert each(metric, "Paris", "London", "Paris") == 1
    assert each(metric_of("exact"), "two", options=("one", "two"), answer=1) == 1


@pytest.mark.parametrize(("said", "right", "score"), [
    ("105", "100", 1), ("95", "100", 1), ("105.01", "100", 0), ("94.9", "100", 0), ("-105", "-100", 1),
    ("5%", "0.05", 1), ("5.2%", "5%", 1), ("50", "50%", 0), ("0", "0", 1), ("0.0", "0", 0), ("0.01", "0", 0),
    ("Yes", "yes", 1), ("nan", "100", 0), ("inf", "100", 0), ("nan", "nan", 1),
    ("1e999", "5", 0), ("1,000", "1000", 0), ("%", "5", 0),
    ("2019", "2020", 1), ("blue", "Blue ", 1), ("", "5", 0),
])  # fmt: skip
def test_relaxed(said, right, score):
    assert each(metric_of("relaxed"), said, right) == score


@pytest.mark.parametrize(("said", "right", "score"), [
    ("kitten", "sitting", 1 - 3 / 7), ("abcd", "abxy", 0), ("abcde", "abcxy", 0.6), ("ab", "ac", 0), ("Hello  World",
    "hello world", 1), ("", "x", 0), ("12/03/2020", "12/03/2021", 0.9), ("完全に違う", "answer", 0),
])  # fmt: skip
def test_anls(said, right, score):
    assert each(metric_of("anls"), said, right) == pytest.approx(score)


def test_anls_takes_the_best_reference():
    assert each(metric_of("anls"), "abcde", "zzz", "abcdx", "abcxx") == pytest.approx(0.8)


def test_edits_and_common_by_the_recursion():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    def longest(a, b):
        if not a or not b:
            return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    rng = np.random.default_rng(0)
    for _ in range(60):
        one, other = ("".join(rng.choice(list("abc"), rng.integers(0, 6))) for _ in range(2))
        assert edits(one, other) == edits(other, one) == slow(one, other)
        assert common(one, other) == longest(one, other)


@pytest.mark.parametrize("convention", sorted(BOX_FORMATS))
def test_boxes_of_every_convention_are_read(convention):
    metric, box = metric_of("grounding"), (0.125, 0.25, 0.5, 0.75)
    item = TaskItem(id="1", boxes=(box,))
    said = f"It is at {BOX_FORMATS[convention](box)} there."
    for reader in (metric, metric.replace(convention=convention)):
        rows = reader.statistics([item], [reader.parse(said, item)])
        assert reader.scores(rows.sum(0)) == pytest.approx([1, 1], abs=0.15)  # 32 cells are coarse
        assert reader.single(rows).tolist() == [1]


@pytest.mark.parametrize("said", [
    "[0.5, 0.5, 0.1, 0.9]", "[0.1, nan, 0.5, 0.5]", "[0.1, 0.2, 0.3]", "[1.5, 0.2, 0.3, 0.9]", "[0.1 0.2 0.3 0.4]",
    "<loc_1><loc_2><loc_3>", "{<1><2><300><4>}", "left of the tree", "[-0.1, 0.2, 0.3, 0.4]", "(1,2),(3", "[]",
])  # fmt: skip
def test_malformed_boxes_are_unreadable(said):
    item = TaskItem(id="1", boxes=((0.1, 0.1, 0.5, 0.5),))
    metric = metric_of("grounding")
    assert metric.parse(said, item) is None
    assert metric.scores(metric.statistics([item], [None]).sum(0)).tolist() == [0, 0]


def test_one_box_and_several():
    a, b, c = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 0.2, 0.4)
    metric = metric_of("grounding")
    one, two = TaskItem(id="1", boxes=(a,)), TaskItem(id="2", boxes=(a, b))
    assert metric.statistics([one], [[a, b]])[0] == pytest.approx([1, 1, 1])  # the first that was said
    assert metric.statistics([one], [[c, a]])[0] == pytest.approx([1, 0.5, 1])  # an overlap of 0.5 is enough
    assert metric.statistics([two], [[b, c]])[0] == pytest.approx([1, 0.75, 1])  # in whichever order
    assert metric.statistics([two], [[a]])[0] == pytest.approx([0.5, 0.5, 1])
    assert metric.statistics([two], [[b, a, c]])[0] == pytest.approx([2 / 3, 2 / 3, 1])  # one too many
    assert overlaps([(0.2, 0.2, 0.2, 0.6)], [(0.2, 0.2, 0.2, 0.6)]).item() == 0  # no area


def test_matching_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(100):
        table = rng.random((rng.integers(1, 5), rng.integers(1, 5))).round(1)
        rows, columns = table.shape
        pairs = matched(table)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == min(rows, columns)
        wide = table if rows <= columns else table.T
        ways = itertools.permutations(range(wide.shape[1]), wide.shape[0])
        best = max(sum(wide[row, column] for row, column in enumerate(way)) for way in ways)
        assert sum(table[pair] for pair in pairs) == pytest.approx(best)


def test_masks():
    right = [[0, 0, 1], [0, 255, 1]]
    item, metric = TaskItem(id="1", info={"mask": right}), metric_of("miou")
    said = metric.parse("[[0, 1, 1], [0, 1, 0]]", item)
    # background: 2 shared of 4; object: 1 shared of 3; the pixel of no class does not count
    assert metric.scores(metric.statistics([item], [said]).sum(0)) == pytest.approx([(2 / 4 + 1 / 3) / 2, 3 / 5])
    assert metric.scores(metric.statistics([item], [None]).sum(0)).tolist() == [0, 0]
    runs = json.dumps({"size": [2, 3], "counts": [4, 2]})
    assert metric.scores(metric.statistics([item], [metric.parse(runs, item)]).sum(0)).tolist() == [1, 1]
    wrong = ("[[0, 1], [0, 1]]", "[[0, 1, 2], [0, 1, 0]]", "[[0], [0, 1]]", "[[0, 0.5, 1], [0, 1, NaN]]", "{}",
             '{"size": [2, 3], "counts": [4, 3]}', '{"size": [2, 3], "counts": [-1, 7]}', "[[-1, 0, 0], [0, 0, 0]]",
             '{"size": [2, 3], "counts": "abc"}', "[" * 5000, "[]", "a mask")  # fmt: skip
    assert [one for one in wrong if metric.parse(one, item) is not None] == []
    with pytest.raises(UserError, match="item 2 has no mask of 2 classes"):
        metric.parse("[[0]]", TaskItem(id="2", info={"mask": [[7]]}))
    mask = read_mask({"size": [2, 2], "counts": [1, 2, 1]})
    assert mask is not None
    assert mask.tolist() == [[0, 1], [1, 0]]


def test_chair_by_hand():
    metric = metric_of("chair")
    items = [TaskItem(id="1", info={"objects": ["dog", "dining table"]}, answers=("A puppy and a man at a desk.",)),
             TaskItem(id="2", info={"objects": ["cat"]}), TaskItem(id="3", info={"objects": ["bus"]})]  # fmt: skip
    said = ("Two dogs and a hot dog on a table, with a woman.", "Two kittens; a kitten!", "")
    parsed = [metric.parse(one, item) for one, item in zip(said, items)]
    assert parsed == [["dog", "hot dog", "dining table", "person"], ["cat", "cat"], None]
    # one of three captions and silence; one of six mentions; dog, person, table and cat of five objects
    assert metric.scores(metric.statistics(items, parsed).sum(0)) == pytest.approx([2 / 3, 1 / 6, 4 / 5])
    own = Chair(words={"smiley": ("grinning face",)})
    assert own.mentioned("A dog, grinning faces and a smiley") == ["smiley", "smiley"]
    with pytest.raises(UserError, match="did you mean 'zebra'"):
        metric.statistics([TaskItem(id="1", info={"objects": ["zebbra"]})], [[]])


def test_every_object_of_coco_is_found_by_all_its_names():
    metric = Chair()
    assert len(COCO_WORDS) == 80
    for name, others in COCO_WORDS.items():
        for word in (name, *others):
            assert metric.mentioned(f"There is the {word} here") == [name], word
    plurals = ("buses", "knives", "cherries", "glasses", "sheep", "men", "dogs", "bus", "ties")
    singulars = ("bus", "knife", "cherry", "glass", "sheep", "man", "dog", "bus", "tie")
    assert tuple(map(singular, plurals)) == singulars


def test_error_rates():
    wer, cer = metric_of("wer"), metric_of("cer")
    assert each(wer, "the cat sat", "the cat sat down") == 0.25
    assert each(wer, "", "the cat") == 1
    assert each(wer, "a b c d", "a", "a b x d") == 0.25  # the nearest reference
    assert each(wer, "The cat.", "the cat") == 1
    assert each(wer.replace(ignore_case=True, ignore_punctuation=True), "The cat.", "the cat") == 0
    assert each(cer, "abd", "abc") == pytest.approx(1 / 3)
    assert each(wer, "something", "") == 1
    assert each(wer, "", "") == 0


def test_needles():
    metric = metric_of("needle")
    items = [TaskItem(id=str(n), answers=("San  Francisco",), info={"length": length, "depth": depth})
             for n, (length, depth) in enumerate(itertools.product((1000, 4000), (0.0, 0.5)))]  # fmt: skip
    said = ("in san francisco.", "San Franciscoan", "SAN FRANCISCO", "")
    rows = metric.statistics(items, [metric.parse(one, item) for one, item in zip(said, items)])
    assert metric.scores(rows.sum(0)).tolist() == [0.5]
    (table,) = metric.tables(items, rows)
    assert table.header == ("depth", "1,000", "4,000")
    assert table.rows == (("0%", "100%", "100%"), ("50%", "0%", "0%"))
    with pytest.raises(UserError, match="no length and depth"):
        metric.tables([TaskItem(id="9")], rows[:1])


def test_rankings_by_hand():
    scores = [[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]]
    right = [[False, True, False, True], [False, True, False, False], [False] * 4]
    assert recalls(scores, right, (1, 2)).tolist() == [[0, 1], [0, 1], [0, 0]]
    assert average_precisions(scores, right) == pytest.approx([(1 / 2 + 2 / 4) / 2, 1 / 2, 0])
    with pytest.raises(UserError, match="no numbers"):
        recalls([[float("nan")]], [[True]])
    with pytest.raises(UserError, match="queries, candidates"):
        recalls([[1.0, 2.0]], [[True]])


def test_distributions_by_hand():
    """Of normal distributions with diagonal covariances the distance is that of the means and standard deviations."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(500, 4))
    base = (base - base.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(base, rowvar=False))).T
    scale, shift = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.0, 1.0, -1.0, 2.0])
    assert fid(base, base * scale + shift) == pytest.approx(((scale - 1) ** 2).sum() + (shift**2).sum(), abs=1e-9)
    assert fid(base, base) == pytest.approx(0, abs=1e-9)
    one = kid(base, base * scale + shift, subsets=20, size=100, seed=1)
    assert one == kid(base, base * scale + shift, subsets=20, size=100, seed=1)
    assert one.mean > 10 * abs(kid(base[::2], base[1::2], subsets=20, size=100).mean)
    with pytest.raises(UserError, match="KID over subsets of 1000"):
        kid(base, base)
    with pytest.raises(UserError, match="1 values that are not finite"):
        fid(base, np.where(base == base[3, 2], np.nan, base))
    with pytest.raises(UserError, match="of one width"):
        fid(base, base[:, :3])
