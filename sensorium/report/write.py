"""What a run leaves for a person: `report.html` (one file, nothing fetched), `report.json` and `report.md`.

    write_report(folder, ReportData(title="LLaVA small", evaluations=[...], curves=..., stages=...))

Whatever a run does not have yet is left empty; the report then says so. Text of models and users is shown as it is and
can never become markup: the templates escape it, and a content policy in the page forbids every request and any script
but its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sensorium.report.data import Example, ReportData, final_loss, summary
from sensorium.report.markdown import report_markdown
from sensorium.report.page import report_html


def write_report(folder: Path | str, data: ReportData) -> Path:
    """Write report.html, report.json and report.md into `folder`, each whole or not at all; returns the HTML's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", json.dumps(report_json(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write(folder / "report.md", report_markdown(data))
    _write(folder / "report.html", report_html(data))
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(text.encode("utf-8", "backslashreplace"))  # a model may produce half of a surrogate pair
    os.replace(beside, path)


def report_json(data: ReportData) -> dict[str, Any]:
    """The report for programs: the same numbers, no pictures. Scores are fractions, losses that are not finite null."""
    return {
        "title": data.title,
        "summary": summary(data),
        "created": data.created.isoformat(timespec="seconds"),
        "evaluations": [evaluation.to_json() for evaluation in data.evaluations],
        "comparison": None if data.comparison is None else data.comparison.to_json(),
        "seconds": dict(data.seconds),
        "samples_per_second": {stage.name: stage.samples_per_second for stage in data.stages},
        "tokens_per_second": {stage.name: stage.tokens_per_second for stage in data.stages},
        "stages": [asdict(stage) | final_loss(data, stage.name) for stage in data.stages],
        "parts": [{**asdict(part), "trained": dict(part.trained)} for part in data.parts],
        "tables": [asdict(table) for table in data.tables],
        "skipped": [asdict(row) for row in data.skipped],
        "examples": [_example_json(example) for example in data.examples],
        "recipe": dict(data.recipe),
        "recipe_name": data.recipe_name,
        "seed": data.seed,
        "environment": dict(data.environment),
        "stopped": data.stopped,
        "notes": list(data.notes),
    }


def _example_json(example: Example) -> dict[str, Any]:
    names = ("task", "split", "part", "question", "answer", "expected", "right", "score", "blind", "blind_right")
    boxes = {name: [list(box) for box in getattr(example, name)] for name in ("boxes", "said_boxes")}
    return {**{name: getattr(example, name) for name in names}, "options": list(example.options), **boxes}
