"""The log survives kills, resumes exactly, and the display says what is true."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboardX.record_writer import masked_crc32c

from sensorium.errors import UserError
from sensorium.train.log import MetricsLog, Phases, Progress, read_log


def run(log, stage, index, steps):
    for step in steps:
        metrics = {"tokens": 100 * step, "samples": 4, "loss": 1 / (step + index), "lr": {"connectors.*": 1e-3 / step}}
        log.write(stage, index, step, metrics, seconds=0.5, wait=0.1)


def events(folder):
    """Scalars (tag, step, value) and purge marks of all event files, by the TFRecord layout."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            header = data[:8]
            length = int.from_bytes(header, "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(header)
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status:
                found.append(("purge", event.step))
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def test_one_line_per_step_and_timing_apart(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("align", 0, 1, {"tokens": 7, "samples": 2, "loss": np.float32(0.1), "lr": 1e-3}, seconds=0.25)
        # Flushed: another process sees the line while the log is open.
        assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {
        **{"stage": "align", "stage_index": 0, "step": 1, "tokens": 7, "samples": 2},
        **{"loss": float(np.float32(0.1)), "lr": 1e-3},
    }
    (timing,) = read_log(tmp_path / "timing.jsonl")
    assert timing["seconds"] == 0.25
    assert timing["time"] > 1.7e9


@pytest.mark.parametrize(
    "half", [b'{"stage": "instruct", "stage_index": 1, "st', b'{"stage": "x"}', b"\x00\x00\x00", b"12\n"]
)
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (1, 0), (1, 2), (1, 4)])
def test_resume_gives_the_bytes_of_an_uninterrupted_run(tmp_path, place, half):
    stages = [("align", 0), ("instruct", 1)]
    with MetricsLog(tmp_path / "whole", tensorboard=False) as log:
        for stage, index in stages:
            run(log, stage, index, range(1, 5))
    with MetricsLog(tmp_path / "cut", tensorboard=False) as log:
        for stage, index in stages:
            run(log, stage, index, range(1, 5))
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (tmp_path / "cut" / name).open("ab") as file:
            file.write(half)
    index, step = place
    with MetricsLog(tmp_path / "cut", tensorboard=False) as log:
        assert log.resume(step, index) == 4 * index + step
        assert len(read_log(tmp_path / "cut" / "timing.jsonl")) == 4 * index + step
        for stage, number in stages[index:]:
            run(log, stage, number, range(step + 1 if number == index else 1, 5))
    whole, cut = (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path):
    code = (
        "import os, sys\n"
        "from sensorium.train.log import MetricsLog\n"
        "log = MetricsLog(sys.argv[1], tensorboard=False)\n"
        "for step in range(1, 100):\n"
        "    log.write('align', 0, step, {'loss': 1 / step}, seconds=0.1)\n"
        "    if step == 57: os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert len(read_log(tmp_path / "metrics.jsonl")) == 57
    with MetricsLog(tmp_path, tensorboard=False) as log:
        assert log.resume(50, 0) == 50
        log.write("align", 0, 51, {"loss": 1 / 51}, seconds=0.1)
    assert [line["step"] for line in read_log(tmp_path / "metrics.jsonl")] == list(range(1, 52))


def test_a_line_out_of_order_is_refused(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    run(log, "align", 0, [1, 2])
    with pytest.raises(ValueError, match="does not come after"):
        run(log, "align", 0, [2])
    with pytest.raises(ValueError, match="does not come after"):
        run(MetricsLog(tmp_path, tensorboard=False), "align", 0, [1])
    with pytest.raises(ValueError, match="stage"):
        log.write("align", 0, 3, {"stage": "other"}, seconds=1)
    run(log, "instruct", 1, [1])
    assert len(read_log(tmp_path / "metrics.jsonl")) == 3


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        run(log, "align", 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        MetricsLog(tmp_path, tensorboard=False)


def test_numbers_that_are_not_finite_stay_json_and_come_back(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("NaN", 0, 1, {"loss": math.nan, "norms": {"a": math.inf, "b": -math.inf}}, seconds=0.1)

    def refuse(name):
        raise AssertionError(name)

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (line,) = read_log(tmp_path / "metrics.jsonl")
    assert math.isnan(line["loss"])
    assert line["norms"] == {"a": math.inf, "b": -math.inf}
    assert line["stage"] == "NaN"


def test_tensorboard_counts_over_stages_and_purges(tmp_path):
    with MetricsLog(tmp_path) as log:
        run(log, "align", 0, [1, 2, 3])
        run(log, "instruct", 1, [1, 2])
    with MetricsLog(tmp_path) as log:
        log.resume(1, 1)
        run(log, "instruct", 1, [2])
    seen = events(tmp_path)
    assert [event for event in seen if event[0] in ("align/loss", "instruct/loss", "purge")] == [
        *(("align/loss", step) for step in (1, 2, 3)),
        *(("instruct/loss", step) for step in (4, 5)),
        ("purge", 5),
        ("instruct/loss", 5),
    ]
    assert ("align/lr/connectors._", 1) in seen  # TensorBoard allows no star in a tag
    with MetricsLog(tmp_path) as log:
        log.resume(0, 0)
        run(log, "align", 0, [1])
    assert [event for event in events(tmp_path) if event[0].endswith("loss")] == [("align/loss", 1)]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_progress_lines_by_hand():
    clock, out = Clock(), io.StringIO()
    with Progress("align", 10, console=Console(file=out), clock=clock) as progress:
        for step in range(1, 11):
            clock.now += 4
            progress.update(step, 2.0, samples=8, tokens=1200)
    lines = out.getvalue().splitlines()
    assert lines == [
        "align: step 0/10",
        "align: step 3/10  loss 2  2 samples/s  300 tokens/s  28 s left",
        "align: step 6/10  loss 2  2 samples/s  300 tokens/s  16 s left",
        "align: step 9/10  loss 2  2 samples/s  300 tokens/s  4.0 s left",
        "align: done after 40 s, loss 2",
    ]


def test_progress_speed_is_that_of_the_last_half_minute():
    clock = Clock()
    with Progress("s", 1000, console=Console(file=io.StringIO()), clock=clock) as progress:
        for step in range(1, 201):
            clock.now += 10 if step <= 100 else 1
            progress.update(step, 1.0, samples=1, tokens=10)
        assert "1 samples/s  10 tokens/s  13 min 20 s left" in progress.status


def test_progress_after_resume_estimates_from_its_own_steps():
    clock = Clock()
    with Progress("s", 1000, start=900, console=Console(file=io.StringIO()), clock=clock) as progress:
        assert progress.status == "starting"
        clock.now += 2
        progress.update(901, 1.0, samples=1, tokens=1)
        assert progress.status.endswith("3 min 18 s left")


def test_progress_smooths_without_bias_and_shows_a_bad_step():
    with Progress("s", 5, console=Console(file=io.StringIO())) as progress:
        progress.update(1, 4.0, 1, 1)
        assert progress.loss == pytest.approx(4.0)
        progress.update(2, math.nan, 1, 1)
        assert math.isnan(progress.loss)
        progress.update(3, 2.0, 1, 1)
        assert progress.loss == pytest.approx((4.0 * 0.95 + 2.0) / 1.95)


def test_progress_says_when_it_was_stopped():
    out = io.StringIO()

    def interrupted():
        with Progress("align", 9, console=Console(file=out)) as progress:
            progress.update(4, 1.5, 1, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "align: stopped at step 4/9" in out.getvalue()


def test_progress_on_a_terminal_is_a_bar():
    out = io.StringIO()
    clock = Clock()
    with Progress("[bold]align", 3, console=Console(file=out, force_terminal=True, width=120), clock=clock) as progress:
        for step in (1, 2, 3):
            clock.now += 1
            progress.update(step, 1.25, samples=2, tokens=50)
        progress.note("saved [x]")
    text = out.getvalue()
    assert "3/3" in text
    assert "[bold]align" in text
    assert "saved [x]" in text
    assert "2 samples/s" in text
    plain = io.StringIO()
    with Progress("align", 3, console=Console(file=plain, force_terminal=True), quiet=True):
        pass
    assert plain.getvalue().splitlines()[0] == "align: step 0/3"
    assert "\x1b" not in plain.getvalue()


def test_phases_add_up_and_do_not_nest():
    clock = Clock()
    phases = Phases({"fetch": 2.0}, clock=clock)
    with phases("fetch"):
        clock.now += 3

    def failing():
        with phases("train"):
            clock.now += 5
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert phases.seconds == {"fetch": 5.0, "train": 5.0}
    with phases("train"), pytest.raises(ValueError, match="twice"), phases("evaluate"):
        pass


def test_import_needs_no_torch():
    code = "import sys, sensorium.train.log, sensorium.evaluate.statistics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
