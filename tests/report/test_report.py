"""The report is whole, says what is missing, and no text in it can become markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from read_page import HOSTILE, Page

from sensorium.evaluate.result import Example
from sensorium.evaluate.statistics import Evaluation
from sensorium.report import svg
from sensorium.report.curves import Curve, StageSpeed, smoothed, smoothing_window, thinned
from sensorium.report.data import PartRow, ReportData, SkippedRows, summary
from sensorium.report.environment import environment
from sensorium.report.markdown import code_span, report_markdown
from sensorium.report.pictures import thumbnail
from sensorium.report.write import report_json, write_report


def picture(color: str | int = "red", mode="RGB", size=(600, 300)):
    return Image.new(mode, size, color)


def full(word="val_artist"):
    steps = list(range(1, 101))
    loss = [2 + 7 * math.exp(-step / 20) for step in steps]
    loss[49] = math.nan
    return ReportData(
        title=f"LLaVA {word}",
        recipe_name=word,
        evaluations=[
            Evaluation.of("multiple_choice", word, [1] * 80 + [0] * 20, blind=[1, 0, 0, 0] * 25, chance=0.25),
            Evaluation.of(f"caption {word}", "scenes", [0.25, 0.5]),
        ],
        curves=[Curve(stage=word, steps=steps, loss=loss, lr={"connectors.*": [1e-3] * 100, word: [1e-5] * 100})],
        stages=[StageSpeed(name=word, steps=100, samples=1600, tokens=80_000, seconds=32.0, planned_steps=200)],
        parts=[
            PartRow(name="encoders.image", parameters=3_371_008, origin=word),
            PartRow(name="connectors.image", parameters=1_000, trained={word: 1_000}),
        ],
        examples=[
            Example(
                task=word, split=word, question=word, options=[word, "b"], answer=word, expected=word, right=True,
                blind=word, blind_right=False, pictures=[picture()],
            ),
            Example(task="count", split="scenes", question="How many?", answer="", expected="3", right=False),
            Example(task="caption", split="scenes", question="Say it.", answer="a cat", expected="a dog"),
        ],
        skipped=[SkippedRows(source=word, reason=word, count=3, first=word)],
        seconds={"fetch": 12.5, word: 33.0},
        recipe={"type": "Recipe", "name": word},
        recipe_yaml=f"name: {word}\n```\n",
        seed=7,
        environment={"torch": "2.13", "cpu": word},
        stopped=word,
        notes=[word],
    )  # fmt: skip


def test_three_files_and_the_promised_keys(tmp_path):
    path = write_report(tmp_path / "run", full())
    assert path == tmp_path / "run" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    stored = json.loads((path.parent / "report.json").read_text("utf-8"))
    (first, second) = stored["evaluations"]
    assert {"task", "split", "n", "score", "low", "high", "blind", "chance"} <= set(first)
    assert (first["n"], first["score"], first["blind"], first["chance"]) == (100, 0.8, 0.25, 0.25)
    assert first["low"] < 0.8 < first["high"]
    assert first["margin"] == pytest.approx(0.55)
    assert first["margin_low"] < 0.55 < first["margin_high"]
    assert second["blind"] is None
    assert stored["seconds"] == {"fetch": 12.5, "val_artist": 33.0}
    assert stored["samples_per_second"] == {"val_artist": 50.0}
    assert stored["tokens_per_second"] == {"val_artist": 2500.0}
    assert stored["stages"][0]["bad_steps"] == 1
    assert stored["stages"][0]["final_loss"] == pytest.approx(2 + 7 * math.exp(-98 / 20), rel=0.01)
    assert stored["parts"][1]["trained"] == {"val_artist": 1000}
    assert stored["seed"] == 7
    assert stored["recipe"] == {"type": "Recipe", "name": "val_artist"}


def test_page_shows_everything_and_fetches_nothing(tmp_path):
    text = write_report(tmp_path, full()).read_text("utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    words = " ".join(" ".join(page.text).split())
    for shown in ("80.0 %", "+55.0", "25.0 %", "100 of 200", "50 ", "2.5k", "3,371,008", "frozen", "not scored"):
        assert shown in words
    for shown in ("How many?", "(empty)", "a cat", "a dog", "steps had a loss that is not finite", "name: val_artist"):
        assert shown in words
    attributes = [(name, value or "") for _, attrs in page.tags for name, value in attrs.items()]
    assert all(value.startswith(("data:image/", "#")) for name, value in attributes if name in ("src", "href"))
    assert not re.search(r"url\(|@import|https?://", text)
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert len(page.named("img")) == 1
    assert {attrs["class"] for attrs in page.named("svg") if "class" in attrs} >= {"chart", "interval", "stacked"}


def test_policy_allows_the_pages_own_script_only(tmp_path):
    text = write_report(tmp_path, full()).read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = next(attrs["content"] for attrs in Page(text).named("meta") if "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize(
    "word", [HOSTILE, "|`a` @user #1 [x](http://e.org) ``` \n# h\n", "\ud800 \x00 \u202e", "العربية"]
)
def test_hostile_text_stays_text(tmp_path, word):
    plain = Page(write_report(tmp_path / "plain", full()).read_text("utf-8"))
    page = Page(write_report(tmp_path / "hostile", full(word)).read_text("utf-8"))
    # The same elements with the same attribute names: nothing the text says adds any.
    assert [(tag, sorted(attrs)) for tag, attrs in page.tags] == [(tag, sorted(attrs)) for tag, attrs in plain.tags]
    assert json.loads((tmp_path / "hostile" / "report.json").read_text("utf-8"))["recipe_name"] == word
    if word == HOSTILE:
        assert HOSTILE in "".join(page.text)


def test_markdown_quotes_hostile_text_as_code():
    text = report_markdown(full(HOSTILE))
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
    assert "alert" in outside  # the title is prose, with its marks escaped
    assert not re.search(r"(?<!\\)[<>]", outside.replace("<details><summary>", "").replace("</summary>", "")
                         .replace("</details>", ""))  # fmt: skip
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| -- | -- | -- | --: | --: | --: | --: | --: |" in rows
    assert any("**80.0 %**" in row and "+55.0 (" in row for row in rows)


@given(st.text(alphabet="`|a \n<@\\", max_size=30))
def test_code_span_is_one_cell_and_one_span(text):
    span = code_span(text)
    assert "\n" not in span
    assert not re.search(r"(?<!\\)\|", span)
    fence = re.match("`+", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])]
    assert all(len(run) != len(fence[0]) for run in re.findall("`+", inner))


def test_nothing_yet_is_said(tmp_path):
    write_report(tmp_path, ReportData(title="Empty"))
    page = " ".join(Page((tmp_path / "report.html").read_text("utf-8")).text)
    for said in ("Nothing was trained yet", "Nothing was evaluated", "No step was logged", "No answers were recorded"):
        assert said in page
    assert "Nothing was evaluated" in (tmp_path / "report.md").read_text("utf-8")
    stored = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (stored["evaluations"], stored["seconds"], stored["samples_per_second"]) == ([], {}, {})


def test_summary_does_not_praise_what_the_interval_does_not_show():
    good = Evaluation.of("count", "scenes", [1.0] * 90 + [0.0] * 10, blind=[0.0] * 80 + [1.0] * 20, chance=0.2)
    poor = Evaluation.of("count", "scenes", [1.0, 0.0] * 50, blind=[0.0, 1.0] * 50, chance=0.5)
    assert "does not exclude zero" not in summary(ReportData(title="t", evaluations=[good]))
    said = summary(ReportData(title="t", evaluations=[good]))
    assert "with pictures shuffled across questions scores 20.0 % and guessing" in said
    assert "does not exclude zero" in summary(ReportData(title="t", evaluations=[poor]))
    assert summary(ReportData(title="t", summary="Mine.", evaluations=[poor])) == "Mine."


def test_losses_that_are_not_finite_keep_the_json_valid():
    curve = Curve(stage="a", steps=[1, 2], loss=[math.nan, math.inf], lr={"all": [math.nan, 0.0]})
    data = ReportData(title="t", curves=[curve], stages=[StageSpeed(name="a", steps=2, samples=2, tokens=2, seconds=0)])
    stored = json.loads(json.dumps(report_json(data), allow_nan=False))
    assert stored["stages"][0]["final_loss"] is None
    assert stored["samples_per_second"] == {"a": 0.0}


def test_numpy_truth_values_are_taken():
    example = Example(task="t", split="s", question="q", answer="a", expected="a", right=np.bool_(True))  # type: ignore
    assert (
        json.loads(json.dumps(report_json(ReportData(title="t", examples=[example]))))["examples"][0]["right"] is True
    )


def decoded(url):
    assert url.startswith("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1", "I;16", "LA"])
def test_thumbnails_of_any_mode(mode):
    url, reason = thumbnail(picture(0, mode))
    assert reason == ""
    assert decoded(url).size == (256, 128)


def test_thumbnail_puts_transparency_on_white_and_leaves_the_picture_alone():
    clear = Image.new("RGBA", (512, 512), (255, 0, 0, 0))
    image = decoded(thumbnail(clear)[0])
    assert np.asarray(image.convert("RGB")).min() > 250
    assert clear.size == (512, 512)
    small = picture(size=(40, 20))
    thumbnail(small)
    assert small.size == (40, 20)
    large = picture(size=(512, 256))
    thumbnail(large)
    assert large.size == (512, 256)


def test_thumbnail_of_files_and_media(tmp_path):
    turned = Image.new("RGB", (100, 50), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path / "turned.jpg")[0]).size == (50, 100)

    class Media:
        def load(self):
            return picture(size=(256, 64))

    assert decoded(thumbnail(Media())[0]).size == (256, 64)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    url, reason = thumbnail(tmp_path / "broken.png")
    assert url == ""
    assert "broken.png" in reason
    example = Example(task="t", split="s", question="q", answer="a", expected="a", pictures=[tmp_path / "none.png"])
    html = write_report(tmp_path, ReportData(title="t", examples=[example])).read_text("utf-8")
    assert "picture cannot be shown" in html


def test_smoothing_by_hand():
    assert smoothed([1.0, 2.0, 6.0, 4.0, 5.0], 3) == pytest.approx([1.0, 3.0, 4.0, 5.0, 4.5])
    assert smoothed([1.0, math.nan, 3.0], 3)[1] == 2.0
    assert math.isnan(smoothed([math.nan], 1)[0])
    assert [smoothing_window(n) for n in (1, 19, 20, 40, 100, 400)] == [1, 1, 1, 3, 5, 21]


def test_thinning_keeps_peaks_gaps_and_ends():
    values = np.random.default_rng(0).random(20_000).tolist()
    values[12_345], values[777], values[5_000] = 9.0, -9.0, math.nan
    kept = thinned(list(range(20_000)), values)
    assert len(kept) < 510
    assert {(12_345, 9.0), (777, -9.0), (0, values[0]), (19_999, values[-1])} <= set(kept)
    assert [x for x, y in kept if math.isnan(y)] == [5_000]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-0.3, 0.3, [-0.2, 0, 0.2]), (5, 5, [5])],
)
def test_ticks(low, high, expected):
    assert svg.ticks(low, high) == expected


def test_log_ticks():
    assert svg.log_ticks(1e-5, 1e-2) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    assert svg.log_ticks(0.9, 11) == [1, 2, 5, 10]
    assert svg.log_ticks(3.1, 4.2) == svg.ticks(3.1, 4.2)
    assert len(svg.log_ticks(1e-12, 1e3)) <= 8


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=0, max_size=30),
    st.booleans(),
)
def test_any_curve_draws_inside_its_box(values, log):
    chart = svg.line_chart(
        [svg.Line(list(enumerate(values)))], title="<&", x_label="step", y_label='"', log=log, height=200
    )
    root = ElementTree.fromstring(str(chart))  # well-formed: html is not enough for a standalone check
    assert root[0].text == "<&"
    assert "nan" not in chart.lower().replace("nothing to draw", "")
    assert "inf" not in chart.lower()
    path = root.find("path[@class='line c0']")
    if path is not None and path.get("d"):
        places = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", ""))
        assert all(0 <= float(x) <= svg.WIDTH and 0 <= float(y) <= 200 for x, y in places)
        drawable = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        assert len(places) == len(drawable)


def test_interval_bar_by_hand():
    root = ElementTree.fromstring(str(svg.interval_bar(0.5, 0.25, 0.75, blind=0.0, chance=1.0)))
    bar = root.find("rect")
    assert bar is not None
    assert (bar.get("x"), bar.get("width")) == ("6.0", "114.0")  # half of 240 less 6 at both ends
    whisker = root.find("path[@class='whisker']")
    assert whisker is not None
    assert whisker.get("d", "").startswith("M63.0 15H177.0")
    assert root[0].text == "score 50.0%, interval 25.0% to 75.0%, chance 100.0%, blind 0.0%"


def test_environment_needs_no_torch():
    code = (
        "import sys, sensorium.report.environment as r; facts = r.environment(); "
        "print('torch' in sys.modules, facts['torch'] != '', 'threads' in facts)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == ["False", "True", "False"]
    assert environment()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_template_ships_with_the_package():
    patterns = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert {"report/*.j2", "report/*.css", "report/*.js"} <= set(re.findall(r"report/[*.a-z0-9]+", patterns))
