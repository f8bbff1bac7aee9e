"""The report as one page of HTML: self-contained, and usable without its script, on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sensorium.data.boxes import Box
from sensorium.evaluate.result import Outcome, Table
from sensorium.evaluate.statistics import Evaluation
from sensorium.report import svg
from sensorium.report.charts import loss_chart, rate_chart
from sensorium.report.comparison import COSTS, bar, matrices, plots, scale_of, table_of, tasks_of
from sensorium.report.curves import smoothing_window
from sensorium.report.data import ReportData, final_loss, summary, verdict
from sensorium.report.entries import STATIC, entries_json, entries_of, static_entries
from sensorium.report.pictures import Album, thumbnail
from sensorium.report.words import bare_text, compact, duration, margin_text, plain_name, score_text

SHOWS = {
    "all": "all",
    "right": "right",
    "wrong": "wrong",
    "unread": "unreadable",
    "error": "error",
    "seen": "right where blind is not",
    "blind": "right only when blind",
}

MANY = {"right": "all right", "wrong": "some wrong", "differ": "designs differ"}


def report_html(data: ReportData) -> str:
    """The page as text."""
    script, style = (_asset(name) for name in ("page.js", "page.css"))
    album = Album()
    entries, left_out = entries_of(data, album)
    names = list(dict.fromkeys(one.by for entry in entries for one in entry.answers))
    many = any(names)
    shown = {
        "data": data,
        "svg": svg,
        "summary": summary(data),
        "smoothing_window": smoothing_window,
        "final_loss": final_loss,
        "script": script,
        "style": style,
        "kind": "comparison" if data.comparison is not None else data.kind,
        "sections": _sections(data),
        "album": album,
        "entries": entries,
        "left_out": left_out,
        "static": static_entries(entries),
        "page_size": STATIC,
        "records": entries_json(entries, album),
        "many": many,
        "names": names,
        "shows": list((SHOWS | (MANY if many else {})).items()),
        "has_boxes": any(entry.boxes or any(one.boxes for one in entry.answers) for entry in entries),
        "tasks_shown": set() if many else {(entry.task, entry.split) for entry in entries},
    }
    if data.comparison is not None:
        tasks = tasks_of(data.comparison)
        shown |= {
            "tasks": tasks,
            "scales": [scale_of(data.comparison, task) for task in tasks],
            "lines": table_of(data.comparison),
            "plots": plots(data.comparison),
            "matrices": matrices(data.comparison),
            "cost_names": COSTS,
        }
    return _environment().get_template("report.html.j2").render(shown).lstrip()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("sensorium.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (
        bar, bare_text, compact, duration, loss_chart, margin_text, outcome_link, own_scale, placed, plain_name,
        rate_chart, report_link, score_text, shares, thumbnail, verdict,
    )  # fmt: skip
    made.filters |= {function.__name__: function for function in functions} | {"policy_hash": _policy_hash}
    return made


def _asset(name: str) -> Markup:
    return Markup(files("sensorium.report").joinpath(name).read_text("utf-8"))


def _sections(data: ReportData) -> list[tuple[str, str]]:
    """What the links at the top lead to."""
    run = data.kind == "run" and data.comparison is None
    wanted: list[tuple[str, str, Any]] = [
        ("comparison", "Comparison", data.comparison is not None),
        ("evaluation", "Evaluation", data.evaluations or data.comparison is None),
        ("curves", "Curves", run or data.curves),
        ("stages", "Stages and time", run or data.stages),
        ("parameters", "Parameters", run or data.parts),
        ("examples", "Answers", True),
        ("skipped", "Skipped rows", run or data.skipped),
        ("recipe", "Recipe" if run or data.recipe_yaml else "Environment", run or data.recipe_yaml or data.environment),
    ]
    return [(place, name) for place, name, there in wanted if there]


def outcome_link(table: Table, row: Sequence[str], column: int, shown: Collection[tuple[str, str]]) -> str:
    """The fragment of the view with the answers that a cell of a table by part counts; "" where it counts none, or they
    are not in the page (`shown`: tasks and splits that are)."""
    place = column - len(row) + len(table.counts)
    if table.of is None or table.of not in shown or place < 0 or not row[0] or row[column] == "0":
        return ""
    view = {"show": table.counts[place], "task": "\n".join(table.of), "part": row[0]}
    return "view:" + urlencode(view, errors="replace")  # a model may say half of a surrogate pair


def shares(table: Table, row: Sequence[str]) -> list[tuple[Outcome, float]]:
    """Of a part, in percent: how many of its answers came out in each way; empty where not all are counted."""
    if "right" not in table.counts:
        return []
    counts = [int(cell) for cell in row[len(row) - len(table.counts) :]]
    return [(one, 100 * count / (sum(counts) or 1)) for one, count in zip(table.counts, counts)]


def own_scale(evaluation: Evaluation) -> tuple[float, float]:
    """The ends of an evaluation's bar by itself: 0 to 100 %, or 0 to a little more than there is."""
    if evaluation.percent:
        return 0.0, 1.0
    values = [evaluation.low, evaluation.high, evaluation.blind or 0.0]
    return min(0.0, *values), max(0.0, *values) * 1.05


def placed(box: Box) -> str:
    """CSS that puts a box on its picture."""
    x0, y0, x1, y1 = (100 * min(max(float(edge), 0.0), 1.0) for edge in box)
    return f"left: {x0:.2f}%; top: {y0:.2f}%; width: {max(0.0, x1 - x0):.2f}%; height: {max(0.0, y1 - y0):.2f}%"


def report_link(folder: str) -> str:
    """Where the report of a row is, as a relative address: it can name no other place."""
    return "./" + quote(folder.strip("/"), errors="replace") + "/report.html"


def _policy_hash(script: str) -> str:
    """How the content policy names the one script it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
