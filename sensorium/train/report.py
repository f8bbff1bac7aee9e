"""What a run leaves for a person: `report.html` (one file, nothing fetched), `report.json` and `report.md`.

    write_report(folder, ReportData(title="LLaVA small", evaluations=[...], curves=..., stages=...))

Whatever a run does not have yet is left empty; the report then says so. Text of models and users is shown as it is and
can never become markup: the templates escape it, and a content policy in the page forbids every request and any script
but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps, UnidentifiedImageError

import sensorium
from sensorium.train import svg
from sensorium.train.curves import Curve, smoothed, smoothing_window, thinned
from sensorium.train.log import compact, duration
from sensorium.train.report_data import (
    Example,
    Loadable,
    PartRow,
    Picture,
    ReportData,
    SkippedRows,
    final_loss,
    percent,
    plain_name,
    points,
    summary,
    verdict,
)
from sensorium.train.report_markdown import report_markdown

__all__ = [
    "Example",
    "Loadable",
    "PartRow",
    "Picture",
    "ReportData",
    "SkippedRows",
    "environment",
    "report_json",
    "summary",
    "write_report",
]

THUMBNAIL = 256  # pixels of the longer side


def environment() -> dict[str, str]:
    """Versions and machine of this process. Never imports torch; threads are torch's when it is loaded."""
    torch = sys.modules.get("torch")
    facts = {"sensorium": sensorium.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tokenizers"):
        facts[package] = importlib.metadata.version(package)
    facts["system"] = f"{platform.system()} {platform.release()}"
    facts["cpu"] = _cpu()
    facts["cores"] = str(os.cpu_count())
    if torch is not None:
        facts["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE) if listing.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


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
    names = ("task", "split", "question", "answer", "expected", "right", "blind", "blind_right")
    return {**{name: getattr(example, name) for name in names}, "options": list(example.options)}


def thumbnail(picture: Picture) -> tuple[str, str]:
    """(data URL, "") of a picture's thumbnail, or ("", reason): one bad picture must not cost a run its report."""
    try:
        if isinstance(picture, Path | str):
            with Image.open(picture) as opened:
                image = ImageOps.exif_transpose(opened)
        else:
            image = picture if isinstance(picture, Image.Image) else picture.load()
        image = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        data = BytesIO()
        image.save(data, "WEBP", quality=80)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return "", f"{type(error).__name__}: {error}"
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode(), ""


def loss_chart(curve: Curve) -> Markup:
    """Raw loss faint, its mean over `smoothing_window` steps strong, validation dots; logarithmic when it falls far."""
    window = smoothing_window(len(curve.loss))
    mean = smoothed(curve.loss, window)
    lines = [
        svg.Line(thinned(curve.steps, curve.loss), "raw"),
        svg.Line(thinned(curve.steps, mean), "c0"),
        svg.Line(curve.validation, "c1", "dots"),
    ]
    title = f"Training loss of stage {curve.stage} by step"
    log = svg.wants_log(mean) and all(loss > 0 for loss in curve.loss if math.isfinite(loss))
    label = "loss (log scale)" if log else "loss"
    return svg.line_chart(lines, title=title, x_label="step", y_label=label, log=log, bad=curve.bad_steps)


def rate_chart(curve: Curve) -> Markup:
    """Learning rate by glob; logarithmic when the globs' highest rates lie far apart."""
    peaks = [max((rate for rate in rates if math.isfinite(rate)), default=0.0) for rates in curve.lr.values()]
    log = svg.wants_log(peaks)
    # A logarithmic axis stops at a hundredth of the lowest peak: the end of a cosine goes on down for ever.
    floor = min(peaks) / 100 if log else -math.inf
    lines = []
    for number, rates in enumerate(curve.lr.values()):
        shown = [rate if rate >= floor else math.nan for rate in rates]
        lines.append(svg.Line(thinned(curve.steps, shown), f"c{number % 8}"))
    title = f"Learning rate of stage {curve.stage} by step"
    label = "rate (log scale)" if log else "learning rate"
    return svg.line_chart(lines, title=title, x_label="step", y_label=label, height=170, log=log)


def report_html(data: ReportData) -> str:
    """The page: self-contained, works without its script, on a phone and on paper."""
    made = Environment(
        loader=PackageLoader("sensorium.train", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (percent, points, plain_name, verdict, duration, compact, thumbnail, loss_chart, rate_chart)
    made.filters |= {function.__name__: function for function in functions} | {"policy_hash": _policy_hash}
    made.globals |= {"svg": svg, "summary": summary(data), "smoothing_window": smoothing_window}
    made.globals["final_loss"] = final_loss
    return made.get_template("report.html.j2").render(data=data).lstrip()


def _policy_hash(script: str) -> str:
    """How the content policy names the one script it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
