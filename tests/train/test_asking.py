"""What is seen while a trained model is asked."""

import io

from rich.console import Console

from sensorium.train.ask import Asking


def test_off_a_terminal_a_task_is_named_and_then_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Asking(Console(file=out), interval=30) as asking:
        for done in range(0, 101, 10):
            now[0] += 12
            asking("counting", done, 100)
        asking.begin("naming")
    assert out.getvalue().split("\n") == ["counting", "counting: 30 of 100", "counting: 60 of 100",
                                          "counting: 90 of 100", "naming", ""]  # fmt: skip


def test_on_a_terminal_every_task_has_a_bar():
    out = io.StringIO()
    with Asking(Console(file=out, force_terminal=True, width=100)) as asking:
        asking("counting", 100, 100)
        asking("[b]naming", 20, 80)
    shown = out.getvalue()
    assert "100/100" in shown
    assert "[b]naming" in shown
    assert "20/80" in shown
