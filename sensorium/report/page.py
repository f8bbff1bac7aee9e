"""The report as one page of HTML."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined

from sensorium.report import svg
from sensorium.report.charts import loss_chart, rate_chart
from sensorium.report.curves import smoothing_window
from sensorium.report.data import ReportData, final_loss, summary, verdict
from sensorium.report.pictures import thumbnail
from sensorium.report.words import compact, duration, percent, plain_name, points


def report_html(data: ReportData) -> str:
    """The page: self-contained, works without its script, on a phone and on paper."""
    made = Environment(
        loader=PackageLoader("sensorium.report", "."),
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
