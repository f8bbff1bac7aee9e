"""The sample browser holds every record, and the page stays small, whatever is in them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import compared, drawing, evaluated, record
from PIL import Image
from read_page import HOSTILE, Page

from sensorium.data.media import PictureFile
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.parts import by_part
from sensorium.evaluate.records import Record
from sensorium.evaluate.result import Example, TaskResult, outcome_of
from sensorium.evaluate.statistics import Evaluation, Score
from sensorium.report.data import ReportData, TaskRecords, task_records
from sensorium.report.entries import STATIC, Entry, Given, entries_json, entries_of, said_text
from sensorium.report.page import placed, report_html
from sensorium.report.pictures import Album
from sensorium.report.write import write_report
from sensorium.sequence import Segment


def stored(html):
    """What the page keeps for its script."""
    (text,) = re.findall(r'<script type="application/json" id="records">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def of(record, **fields):
    data = ReportData(title="t", records=[TaskRecords(task="t", split="s", records=[record], **fields)])
    ((entry,), _) = entries_of(data, Album())
    return entry


def test_every_record_is_in_the_page_and_the_first_stand_there_without_script():
    html = report_html(evaluated(100))
    kept = stored(html)
    assert [entry["id"] for entry in kept["entries"]] == [f"made-{index:04d}" for index in range(100)]
    page = Page(html)
    cards = [attrs for attrs in page.named("article") if attrs.get("class") == "example"]
    assert len(cards) == STATIC
    assert "The first 24 of 100 items" in "".join(page.text)
    first = record(0)
    (answer,) = kept["entries"][0]["answers"]
    assert (answer["said"], answer["outcome"]) == (first.said, "right" if first.score else "wrong")
    assert kept["entries"][5]["answers"][0]["outcome"] == "unread"
    assert kept["entries"][7]["answers"][0]["outcome"] == "error"
    assert kept["entries"][7]["answers"][0]["error"] == "the endpoint timed out after 60 s"


@pytest.mark.parametrize(
    ("parsed", "score", "error", "graded", "expected"),
    [
        ("a", 1.0, "", False, "right"), ("a", 0.5, "", False, "right"), ("a", 0.3, "", False, "wrong"),
        (None, 0.0, "", False, "unread"), (None, 1.0, "", False, "unread"), ("a", 1.0, "late", False, "error"),
        ("a", 0.9, "", True, "open"), ("a", None, "", False, "open"), (None, 0.0, "", True, "unread"),
    ],
)  # fmt: skip
def test_outcomes(parsed, score, error, graded, expected):
    """What could not be read or was never said is never right, whatever its score says."""
    assert outcome_of(parsed, score, error, graded) == expected


def test_scores_that_are_not_of_right_and_wrong_are_numbers():
    cider = Evaluation(task="t", split="s", n=1, score=1.2, low=1, high=2, metric="CIDEr", percent=False)
    made = Record(id="a", said="a cat", parsed="a cat", score=1.234)
    data = ReportData(title="t", evaluations=[cider], records=[TaskRecords(task="t", split="s", records=[made])])
    ((entry,), _) = entries_of(data, Album())
    assert (entry.outcome, entry.answers[0].score) == ("open", "1.234")
    assert of(made).outcome == "right"
    assert of(made, graded=True).outcome == "open"


def test_records_of_tasks_are_taken_from_their_results():
    made, score = [record(0)], Evaluation.of("t", "s", [1.0])
    found = task_records(
        [TaskResult([score]), TaskResult([score], records=made), TaskResult([], records=made)], "llava"
    )
    assert [(one.task, one.split, one.by, one.records) for one in found] == [("t", "s", "llava", made)]


def test_items_bring_their_options_boxes_and_pictures(tmp_path):
    box = drawing(tmp_path / "a.png", 1)
    media = (Segment("image", PictureFile(tmp_path / "a.png"), "user"), Segment("text", "x", "user"))
    item = TaskItem(id="a", media=media, options=("cat", "dog"), boxes=(box,))
    data = ReportData(
        title="t", records=[TaskRecords(task="t", split="s", records=[record(0)], items={"made-0000": item})]
    )
    album = Album()
    ((entry,), _) = entries_of(data, album)
    assert (entry.options, entry.boxes, len(entry.pictures)) == (("cat", "dog"), (box,), 1)
    assert album.urls[0].startswith("data:image/webp")
    (tmp_path / "a.png").unlink()
    album = Album()
    entries_of(data, album)
    assert (album.urls, "a.png" in album.reasons[0]) == ([""], True)


def test_likelihoods_are_said_by_option():
    made = Record(id="a", said={"sums": [-3.25, -1.5], "counts": [2, 2]}, parsed=1, score=1.0)
    assert said_text(made.said) == "A -3.25, B -1.50 (log-likelihoods)"
    assert of(made).answers[0].read == "B"
    made.options, made.blind_said, made.blind_parsed = ["cat", "dog"], {"sums": [-1, -2], "counts": [2, 2]}, 0
    entry = of(made)
    (answer,) = entry.answers
    said = "B: dog; A -3.25, B -1.50 (log-likelihoods)"
    assert (entry.options, answer.said, answer.read) == (["cat", "dog"], said, "")
    assert answer.blind == "A: cat; A -1.00, B -2.00 (log-likelihoods)"


def test_boxes_are_those_of_the_record_in_any_convention():
    asked = Record(id="a", said="It is at <loc_100><loc_200><loc_500><loc_600>", expected="[0.10, 0.20, 0.50, 0.60]")
    entry = of(asked)
    assert list(entry.boxes) == [(0.1, 0.2, 0.5, 0.6)]
    np.testing.assert_allclose(entry.answers[0].boxes, [(0.1005, 0.2005, 0.5005, 0.6005)])
    read = Record(id="a", said="pixels 10 20 30 40", parsed=[[0.1, 0.2, 0.3, 0.4]], score=0.0)
    assert list(of(read).answers[0].boxes) == [(0.1, 0.2, 0.3, 0.4)]
    for no_boxes in ([[0.5, 0.2, 0.3, 0.4]], [[1, 2, 3, 4]], [["a"] * 4], [0.1, 0.2, 0.3, 0.4], []):
        assert list(of(Record(id="a", said="", parsed=no_boxes, score=0.0)).answers[0].boxes) == []


def test_boxes_stand_on_the_first_picture(tmp_path):
    box = drawing(tmp_path / "a.png", 1)
    example = Example(task="t", split="s", question="q", answer="a", expected="a", pictures=[tmp_path / "a.png"],
                      boxes=[box], said_boxes=[(0.1, 0.2, 0.4, 0.6)])  # fmt: skip
    page = Page(report_html(ReportData(title="t", examples=[example])))
    right, said = page.named("i")
    assert (right["class"], said["class"]) == ("box expected", "box said")
    assert said["style"] == "left: 10.00%; top: 20.00%; width: 30.00%; height: 40.00%"
    assert placed((-1, 0.5, 0.25, 7)) == "left: 0.00%; top: 50.00%; width: 25.00%; height: 50.00%"


def test_a_picture_is_in_the_page_once_and_pictures_stop_at_the_budget(tmp_path):
    drawing(tmp_path / "a.png", 1)
    records = [Record(id=str(number), prompt="q", pictures=[str(tmp_path / "a.png")]) for number in range(60)]
    html = report_html(ReportData(title="t", records=[TaskRecords(task="t", split="s", records=records)]))
    urls = re.findall(r"data:image/webp;base64,[\w+/=]+", html)
    assert len(set(urls)) == 1
    assert len(urls) == STATIC  # in the markup; the browser takes it from there
    assert stored(html)["pictures"] == [None]

    album = Album(budget=5_000, most=100)
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    places = [album.add(Image.fromarray(one)) for one in noise]
    album.make(places)
    assert 0 < sum(map(bool, album.urls)) < 40
    assert sum(map(len, album.urls)) < 5_000 + max(map(len, album.urls))
    assert album.left_out == 40 - sum(map(bool, album.urls))
    assert "stays small" in album.reasons[-1]


def test_each_outcome_has_pictures_before_any_has_all():
    colours = [(index % 256, index // 256, 0) for index in range(300)]
    pictures = [Segment("image", Image.new("RGB", (8, 8), colour), "user") for colour in colours]
    items = {str(index): TaskItem(id=str(index), media=(picture,)) for index, picture in enumerate(pictures)}
    records = [Record(id=str(i), said="", parsed="", score=float(i < 290)) for i in range(300)]
    data = ReportData(title="t", records=[TaskRecords(task="t", split="s", records=records, items=items)])
    album = Album(most=STATIC + 20)
    entries, _ = entries_of(data, album)
    shown = [entry.outcome for entry in entries if album.urls[entry.pictures[0]]]
    assert (len(shown), shown.count("wrong")) == (STATIC + 20, 10)


def test_long_texts_and_many_records_are_cut_and_said_to_be(monkeypatch):
    long = [Record(id="a", prompt="x" * 50_000, said="y" * 9000)]
    entry = stored(report_html(ReportData(title="t", records=[TaskRecords(task="t", split="s", records=long)])))
    assert entry["entries"][0]["question"] == "x" * 4000 + " … (46,000 more characters)"
    monkeypatch.setattr("sensorium.report.entries.MOST", 200)
    monkeypatch.setattr("sensorium.report.entries.LETTERS", 80_000)
    many = [Record(id=str(number), prompt="x" * 3000) for number in range(205)]
    album = Album()
    data = ReportData(title="t", records=[TaskRecords(task="t", split="s", records=many)])
    entries, left_out = entries_of(data, album)
    assert (len(entries), left_out) == (200, 5)
    assert len(entries_json(entries, album)) < 120_000


def test_what_there_is_room_for_is_of_every_task_and_counts_all_answers(monkeypatch):
    monkeypatch.setattr("sensorium.report.entries.MOST", 50)
    records = [record(index) for index in range(20)]
    blocks = [TaskRecords(task=task, split="s", records=records, by=by) for by in "abc" for task in ("one", "two")]
    data = ReportData(title="t", records=blocks)
    entries, left_out = entries_of(data, Album())
    assert [entry.task for entry in entries] == ["one"] * 8 + ["two"] * 8  # 48 answers
    assert left_out == 24
    assert "24 items were left out" in "".join(Page(report_html(data)).text)


def test_items_on_which_designs_differ_have_pictures():
    media = [Segment("image", Image.new("RGB", (8, 8), (i % 256, i // 256, 0)), "user") for i in range(300)]
    items = {str(index): TaskItem(id=str(index), media=(one,)) for index, one in enumerate(media)}

    def block(by, right):
        told = [Record(id=str(index), said="", parsed="", score=float(index in right)) for index in range(300)]
        return TaskRecords(task="t", split="s", records=told, items=items, by=by)

    album = Album(most=STATIC + 20)
    data = ReportData(title="t", records=[block("one", ()), block("other", range(290, 300))])
    entries, _ = entries_of(data, album)
    shown = [entry for entry in entries if album.urls[entry.pictures[0]]]
    assert (len(shown), sum(entry.differs for entry in shown)) == (STATIC + 20, 10)


def test_examples_of_tasks_with_records_are_not_shown_twice():
    data = evaluated(5)
    kept = Example(task="training rows", split="train", question="q", answer="a", expected="b", part="p", score=0.25)
    data.examples = [kept, Example(task="blocks", split="test", question="q", answer="a", expected="b")]
    entries, _ = entries_of(data, Album())
    assert [entry.task for entry in entries] == ["training rows"] + ["blocks"] * 5
    assert (entries[0].part, entries[0].answers[0].score) == ("p", "0.250")


def test_answers_of_several_designs_stand_side_by_side():
    kept = stored(report_html(compared(30)))
    assert kept["names"] == ["llava", "blip-2", "flamingo", "cogvlm", "fuyu"]
    assert len(kept["entries"]) == 30
    assert [one["by"] for one in kept["entries"][3]["answers"]] == [0, 1, 2, 3, 4]
    assert len({one["outcome"] for one in kept["entries"][0]["answers"]}) == 2


def test_the_table_by_part_counts_outcomes_and_links_to_the_answers():
    data = evaluated(60)
    (table,) = data.tables
    assert table.header == ("part", "n", "accuracy", "right", "wrong", "unreadable", "error")
    assert [row[:2] for row in table.rows] == [("colour", "20"), ("count", "20"), ("place", "20")]
    records = [record(index) for index in range(0, 60, 3)]
    assert table.rows[0][2] == f"{sum(one.score for one in records) / 20:.1%}"
    assert int(table.rows[0][3]) == sum(bool(one.score) for one in records)
    assert sum(map(int, table.rows[0][3:])) == 20
    links = [attrs["href"] for attrs in Page(report_html(data)).named("a") if "part=colour" in attrs["href"]]
    assert links[1] == "#view:show=wrong&task=blocks%0Atest&part=colour"
    assert len(links) == sum(cell != "0" for cell in table.rows[0][3:])
    data.records = []  # the answers are not in the page
    assert "part=colour" not in report_html(data)
    graded = by_part("t", "s", [record(0), record(1)], [Score("CIDEr", False)], lambda members: [1.25])[0]
    assert (graded.header[2:], graded.rows[0][2]) == (("CIDEr", "unreadable", "error"), "1.25")
    assert by_part("t", "s", [record(0), record(3)], [Score("accuracy")], lambda members: [1.0]) == []


def tags(html):
    """But for lines, which lead to names that lie elsewhere when they are longer."""
    return [(tag, sorted(attrs)) for tag, attrs in Page(html).tags if tag != "path"]


@functools.cache
def plain_tags(made):
    return tags(report_html(made(12, word="x")))


WORDS = [HOSTILE, "<!--<script>", "]]>&amp;\u003c/script>", "\ud800 \x00 \u202e\u2028", "`a` |b| [x](http://e.org)"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("made", [evaluated, compared])
def test_hostile_records_stay_text(made, word, tmp_path):
    """The same elements and attributes whatever models, users and endpoints say; and the data come back whole."""
    html = report_html(made(12, word=word))
    assert tags(html) == plain_tags(made)
    assert stored(html)["entries"][7]["answers"][0]["error"].endswith(word)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = next(attrs["content"] for attrs in Page(html).named("meta") if "http-equiv" in attrs)
    assert base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode() in policy
    assert len(scripts) == 1
    links = [attrs["href"] for attrs in Page(html).named("a")]
    assert all(link.startswith(("#", "./")) for link in links)
    write_report(tmp_path, made(3, word=word))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_nothing_in_the_data_ends_their_element(said, question):
    entry = Entry(task="t", split="s", question=question, expected="", answers=[Given(said=said, outcome="open")])
    text = str(entries_json([entry], Album()))
    assert not set("<>&") & set(text)
    (kept,) = json.loads(text)["entries"]
    assert (kept["question"], kept["answers"][0]["said"]) == (question, said)


def test_scores_that_are_not_finite_do_not_break_the_page():
    made = Record(id="a", said="x", parsed="x", score=math.nan)
    assert stored(report_html(ReportData(title="t", records=[TaskRecords(task="t", split="s", records=[made])])))
