"""A comparison: its table, plot and matrix say the same as its numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from made_reports import compared, evaluated
from read_page import HOSTILE, Page

from sensorium.compare.plot import COLOURS, plot_svg
from sensorium.evaluate.result import Comparison, Difference
from sensorium.evaluate.statistics import Evaluation, Interval
from sensorium.report.comparison import bar, cost_axis, matrices, plots, scale_of, table_of, tasks_of
from sensorium.report.data import ReportData, summary, verdict
from sensorium.report.markdown import report_markdown
from sensorium.report.scatter import HEIGHT, WIDTH, Area, Mark, Scatter, cost_label
from sensorium.report.words import margin_text, number, score_text
from sensorium.report.write import write_report


def test_three_files_of_a_comparison(tmp_path):
    data = compared(30)
    html = write_report(tmp_path, data).read_text("utf-8")
    page = Page(html)
    words = "".join(page.text)
    assert "Five designs" in words
    for absent in ("Nothing was trained", "No step was logged", "No recipe was recorded", "Nothing was evaluated"):
        assert absent not in words
    stored = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["name"] for row in stored["comparison"]["rows"]][-1] == "emu3"
    assert stored["comparison"]["differences"][0]["margin"]["low"] < 0.1
    sorted_by = [attrs for attrs in page.named("table") if "sortable" in attrs["class"]]
    assert len(sorted_by) == 1
    assert "no picture of the data fits its codec" in words


def test_every_table_has_a_caption_and_its_headings_a_scope():
    for data in (compared(30), evaluated(30)):
        from sensorium.report.page import report_html

        page = Page(report_html(data))
        tables = len(page.named("table"))
        assert (len(page.named("caption")), tables > 1) == (tables, True)
        assert all(attrs.get("scope") in ("row", "col") for attrs in page.named("th"))


def test_rows_of_seeds_are_told_apart():
    data = compared(10, seeds=3)
    assert data.comparison is not None
    lines = table_of(data.comparison)
    assert [line.name for line in lines[:3]] == ["llava, mean", "llava, seed 1", "llava, seed 2"]
    assert [line.mean for line in lines[:3]] == [True, False, False]
    assert "llava, mean" in report_markdown(data)


def test_matrix_is_turned_for_the_other_side():
    comparison = compared(10).comparison
    assert comparison is not None
    (matrix,) = matrices(comparison)
    assert (matrix.task, matrix.unit, matrix.names[0]) == ("blocks test", "percentage points", "llava")
    assert matrix.rows[0][0] is None
    above, below = matrix.rows[0][2], matrix.rows[2][0]
    assert above is not None
    assert below is not None
    assert (above.text, above.interval, above.word) == ("+20.0", "+10.0 to +30.0", "better")
    assert (below.text, below.interval, below.word) == ("−20.0", "−30.0 to −10.0", "worse")
    unsure = matrix.rows[0][1]
    assert unsure is not None
    assert (unsure.word, unsure.style) == ("not decidable", "unclear")


def test_where_lower_is_better():
    rows = compared(10).comparison.rows[:2]  # type: ignore[union-attr]
    for row, score in zip(rows, (12.5, 20.0)):
        row.scores = [
            Evaluation(task="text", split="", n=9, score=score, low=score - 1, high=score + 1, metric="perplexity",
                       percent=False, better="lower")
        ]  # fmt: skip
    margin = Interval(-7.5, -9.0, -6.0)
    one = Difference(one="llava", other="blip-2", task="text", margin=margin, better=True)
    comparison = Comparison(title="t", budget="b", data="d", rows=rows, differences=[one], notes=[])
    (matrix,) = matrices(comparison)
    cell = matrix.rows[0][1]
    assert cell is not None
    assert (cell.text, cell.word, matrix.unit) == ("−7.500", "better", "perplexity")
    data = ReportData(title="t", comparison=comparison)
    assert "On text llava scores best: 12.50 (95 % interval 11.50 to 13.50)" in summary(data)
    assert scale_of(comparison, "text") == (0.0, 21.0)
    assert "12.50 (11.50 to 13.50)" in report_markdown(data)


def test_a_design_is_not_called_best_without_saying_what_is_undecided():
    said = summary(compared(120))
    assert "is not decidable" in said
    assert "Of 10 differences between two designs on a task, 7 are decidable." in said
    equal = compared(10)
    assert equal.comparison is not None
    equal.comparison.rows = [equal.comparison.rows[0], replace(equal.comparison.rows[0], name="twin")]
    assert "llava, twin share the best score" in summary(equal)


def test_where_nothing_was_learned_the_summary_says_so_first():
    data = compared(120)
    assert data.comparison is not None
    assert "nothing was learned" not in summary(data)
    for row in data.comparison.rows:
        row.scores = [replace(one, margin=0.0, margin_low=-0.1, margin_high=0.1) for one in row.scores]
    assert "no design is above its blind control: nothing was learned that it asks." in summary(data)


def test_verdicts_and_numbers_of_other_metrics():
    lower = Evaluation(task="t", split="s", n=1, score=0.2, low=0.1, high=0.3, blind=0.9, margin=-0.7, margin_low=-0.8,
                       margin_high=-0.6, metric="WER", better="lower")  # fmt: skip
    assert verdict(lower) == "above"
    assert lower.beats_blind
    cider = Evaluation(task="t", split="s", n=1, score=0.2, low=0.1, high=0.3, metric="CIDEr", percent=False)
    assert (score_text(cider, 1.2345), margin_text(cider, -0.5), score_text(lower, 0.5)) == (
        "1.234",
        "−0.500",
        "50.0 %",
    )
    assert [number(value) for value in (0.873, 12.34, 1482)] == ["0.873", "12.34", "1,482.0"]


def test_bar_within_a_scale_of_its_own():
    score = Evaluation(task="t", split="s", n=1, score=5, low=4, high=6, metric="CIDEr", percent=False)
    root = ElementTree.fromstring(str(bar(score, (0.0, 10.0))))
    drawn = root.find("rect")
    assert drawn is not None
    assert (drawn.get("x"), drawn.get("width")) == ("6.0", "114.0")
    assert root[0].text == "score 5.000, interval 4.000 to 6.000"


def words_of(text):
    return str(text)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_names_of_a_plot_lie_on_nothing(count):
    marks = [
        Mark(
            f"design-{index}",
            1e13 * (1 + index % 3),
            0.5 + 0.01 * index,
            0.45 + 0.01 * index,
            0.55 + 0.01 * index,
            "c0",
        )
        for index in range(count)
    ]
    drawn = Scatter(marks=marks, title="t", x_label="x", y_label="y", words=lambda value: f"{value:.2f}", scale=100)
    root = ElementTree.fromstring(str(drawn.svg()))
    names = [text for text in root.iter("text") if "name" in text.get("class", "")]
    assert [text.text for text in names] != []
    boxes = []
    for text in names:
        x, y, wide = float(text.get("x", "")), float(text.get("y", "")), 7 * len(text.text or "")
        left = x - wide if text.get("text-anchor") == "end" else x
        assert left > 0
        assert left + wide < WIDTH + 40
        assert 0 < y < HEIGHT
        boxes.append((left, left + wide, y))
    for number_, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[:number_]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 12


def test_plots_need_scores_and_costs():
    assert "no design has a score" in Scatter(marks=[], title="t", x_label="", y_label="", words=words_of).svg()
    comparison = compared(10).comparison
    assert comparison is not None
    assert (
        [task for task, _ in plots(comparison)]
        == list(tasks_of(comparison))
        == ["blocks test", "emoji_choice val_artist"]
    )
    for row in comparison.rows:
        row.flops = 1e13
    assert cost_axis(comparison.rows[:5])[0] == "seconds of training"
    assert [cost_label(value) for value in (300, 12_000, 2.5e13, 1e9)] == ["300", "12k", "2.5e13", "1e9"]


def test_one_plot_is_drawn_in_the_page_and_in_a_drawing_for_itself():
    comparison = compared(10, seeds=3).comparison
    assert comparison is not None
    ((_, plot), _) = plots(comparison)
    small, large = (ElementTree.fromstring(f"<g>{''.join(plot.parts(area))}</g>") for area in
                    (Area(560, 58, 544, 14, 274), Area(900, 64, 876, 74, 366)))  # fmt: skip
    for drawn in (small, large):
        assert len([one for one in drawn.iter("g") if one.get("opacity")]) == 2 * 5  # two seeds of five designs
        assert len([one for one in drawn.iter("g") if not one.get("opacity")]) - 1 == 5
    names = [[one.text for one in drawn.iter("text") if "name" in one.get("class", "")] for drawn in (small, large)]
    assert sorted(map(str, names[0])) == sorted(map(str, names[1]))
    across = [float(one.get("cx", "")) for one in large.iter("circle")]
    assert all(64 <= place <= 876 for place in across)
    assert max(across) > 560
    drawing = plot_svg(comparison)
    for part in plot.parts(Area(900, 64, 876, 74, 366)):
        assert part in drawing
    style = files("sensorium.report").joinpath("page.css").read_text("utf-8")
    assert all(f"--c{number}: {colour};" in style for number, colour in enumerate(COLOURS))


def test_markdown_of_a_comparison_is_whole_and_quotes_what_is_not_its_own():
    text = report_markdown(compared(30))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any(row.startswith("| `cogvlm` | ") for row in rows)
    assert any("(+10.0 to +30.0), better" in row for row in rows)
    assert "## Stages" not in text
    widths = {}
    for line in text.split("\n\n"):
        table = [row for row in line.splitlines() if row.startswith("|")]
        if table:
            widths[line[:30]] = {len(re.split(r"(?<!\\)\|", row)) for row in table}
    assert all(len(found) == 1 for found in widths.values())
    hostile = report_markdown(compared(30, word=HOSTILE))
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", hostile, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<>]", outside)
