"""The command line: help without torch, one message and exit code 2 for mistakes, JSON alone on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sensorium.cli import main

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "pink", "brown")


def run(*arguments: str) -> int:
    """Exit code of a command in this process."""
    try:
        main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A chat JSONL of ten pictures."""
    rows = []
    for index, colour in enumerate(COLOURS):
        Image.effect_noise((40 + 4 * index, 48), 40).convert("RGB").save(tmp_path / f"{colour}.jpg")
        asked = [{"type": "image", "image": f"{colour}.jpg"}, {"type": "text", "text": "Which colour?"}]
        rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": colour}]})
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def rewritten(path: Path, row: int, old: str, new: str) -> Path:
    lines = path.read_text().splitlines()
    assert old in lines[row]
    lines[row] = lines[row].replace(old, new)
    path.write_text("\n".join(lines))
    return path


def test_help_imports_nothing_heavy():
    code = (
        "import sys, sensorium.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pydantic', 'PIL', 'numpy', 'rich', 'yaml', 'jinja2', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names = (
        "quickstart",
        "train",
        "eval",
        "compare",
        "chat",
        "serve",
        "ui",
        "show",
        "systems",
        "data",
        "fetch",
        "convert",
    )
    for command in names:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "quickstart",
        "train",
        "eval",
        "compare",
        "chat",
        "serve",
        "ui",
        "show",
        "systems",
        "fetch",
        "convert",
        "data preview",
    ],
)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]):
    assert run(*command.split(), "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_show_json_has_the_published_numbers(capsys: pytest.CaptureFixture[str]):
    assert run("show", "llava-1.5", "--size", "paper", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == pytest.approx(7.06e9, rel=0.01)
    assert sum(found["parameters"]["by_part"].values()) == found["parameters"]["total"]
    assert found["tokens_per_item"] == {"image": 576}
    assert next((stage["name"], stage["trained"]) for stage in found["stages"]) == ("align", 20_979_712)
    assert all(figure["holds"] for figure in found["figures"])


def test_show_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "new" / "llava.svg"
    assert run("show", "llava", "--size", "tiny", "--set", "model.connectors.image.depth=2", "--draw", str(target)) == 0
    assert "depth 2" in capsys.readouterr().out
    assert target.read_text().startswith("<svg")


def test_systems_in_three_forms(capsys: pytest.CaptureFixture[str]):
    assert run("systems", "--json") == 0
    assert {"llava", "minigpt-v2"} <= {one["name"] for one in json.loads(capsys.readouterr().out)}
    assert run("systems", "--markdown") == 0
    assert capsys.readouterr().out.startswith("# Systems")
    assert run("systems") == 0
    assert "llava-next" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lava"], "there is no recipe 'lava': did you mean 'llava'?"),
        (["llava", "--size", "smal"], "did you mean 'small'?"),
        (["llava", "--set", "stages.align.lrr=1"], "no field 'lrr': did you mean 'lr'?"),
        (["llava", "--set", "stages.align.steps=many"], "steps: Input should be a valid integer"),
        (["llava", "--set", "nonsense"], "is not of the form path=value"),
        (["llava", "--stage", "instuct"], "did you mean 'instruct'?"),
        (["llava", "--size", "paper"], "has no data: give --data"),
        (["llava", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["nowhere.py:recipe"], "there is no file nowhere.py"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", *arguments, "--out", str(out)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not out.exists()


def test_a_misspelt_key_a_missing_and_a_broken_picture_are_refused(chat: Path, tmp_path: Path, capsys):
    original = chat.read_text()
    out = tmp_path / "run"
    command = ("train", "llava", "--size", "tiny", "--data", str(chat), "--out", str(out))
    rewritten(chat, 3, '"messages"', '"mesages"')
    assert run(*command) == 2
    assert f"{chat} line 4: unknown key 'mesages': did you mean 'messages'?" in capsys.readouterr().err
    chat.write_text(original)
    rewritten(chat, 4, "black.jpg", "nowhere.jpg")
    assert run(*command) == 2
    assert "line 5" in (message := capsys.readouterr().err) and "nowhere.jpg: no such file" in message  # noqa: PT018
    chat.write_text(original)
    whole = (tmp_path / "white.jpg").read_bytes()
    (tmp_path / "white.jpg").write_bytes(whole[: len(whole) // 2])  # its header is still fine
    assert run(*command) == 2
    assert "line 6" in (message := capsys.readouterr().err) and "white.jpg" in message  # noqa: PT018
    assert not out.exists()


def test_a_failure_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sensorium.commands.show.run_systems", lambda markdown, json: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["systems"])


def test_data_check_and_preview(chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("data", "check", str(chat), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["bad"], found["pictures"]) == (10, 0, 10)
    assert run("data", "preview", str(chat), "--size", "tiny", "--rows", "2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    trained = ["".join(cell["text"] for cell in row["cells"] if cell["weight"] > 0) for row in rows]
    assert trained == ["red<|im_end|>", "brown<|im_end|>"]
    page = tmp_path / "rows.html"
    assert run("data", "preview", str(chat), "--size", "tiny", "--html", str(page)) == 0
    assert page.read_text().startswith("<!doctype html>")
    (tmp_path / "red.jpg").unlink()
    capsys.readouterr()
    assert run("data", "check", str(chat)) == 2
    assert "red.jpg: no such file" in capsys.readouterr().out
    assert run("data", "preview", "--size", "paper") == 2


def test_fetch_lists_what_there_is_and_names_what_there_is_not(capsys: pytest.CaptureFixture[str]):
    assert run("fetch", "--json") == 0
    assert {"smollm2-135m-instruct", "stamps"} <= {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    assert run("fetch", "efficientnet-lite") == 2
    assert "did you mean 'efficientnet-lite0'?" in capsys.readouterr().err


def test_train_on_own_data_then_chat_and_evaluate(chat: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    command = ("train", "llava", "--size", "tiny", "--data", str(chat), "--out", str(out), "--seed", "3", "--json")
    assert run(*command, "--steps", "2") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recipe"]["seed"] == 3
    assert [stage["steps"] for stage in report["recipe"]["stages"]] == [2, 2]
    assert (out / "report.html").exists()
    picture = str(tmp_path / "red.jpg")
    assert run("chat", str(out), "--image", picture, "--prompt", "Which colour?", "--max-tokens", "4", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"question", "answer"}
    assert run("eval", str(out), "--n", "4", "--json") == 0
    tasks = json.loads(capsys.readouterr().out)["evaluations"]
    assert {"task", "split", "n", "score", "low", "high", "blind", "chance"} <= set(tasks[0])
    asked = ("--prompt", "Which colour?", "--max-tokens", "4", "--json")
    assert run("chat", str(out), "--image", picture, *asked, "--quantize", "int4") == 0
    written = capsys.readouterr()
    assert set(json.loads(written.out)) == {"question", "answer"}
    assert "int4: " in written.err
    assert run("chat", str(out), "--image", picture, *asked) == 0
    plain = capsys.readouterr().out
    assert run("chat", str(out), "--image", picture, *asked, "--draft", str(out)) == 0
    assert capsys.readouterr().out == plain
    assert run("eval", str(out), "--n", "4", "--quantize", "int8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8"
    assert run("eval", str(out), "--quantize", "q8") == 2
    assert "cannot be quantised to 'q8'" in capsys.readouterr().err
    assert run(*command, "--steps", "2", "--fresh") == 2  # --out holds a run
    assert "already holds a run" in capsys.readouterr().err


def test_passes_over_little_data_are_bounded(chat: Path, capsys: pytest.CaptureFixture[str]):
    from sensorium.commands.output import console_for
    from sensorium.commands.train import EPOCHS, Request, prepare

    recipe = prepare(Request("llava", "tiny", data=(chat,)), console_for(True))
    # 10 rows of about 260 tokens: 40 passes are fewer than 200 steps of 1,024 tokens, and more than 60
    assert [(stage.steps, stage.epochs) for stage in recipe.stages] == [(60, None), (None, EPOCHS)]
    asked = prepare(Request("llava", "tiny", ("stages.align.steps=7",), (chat,), ("align",), 5), console_for(True))
    assert [(stage.name, stage.steps) for stage in asked.stages] == [("align", 7)]  # --set has the last word


def test_bad_rows_can_be_left_out(chat: Path, tmp_path: Path):
    from sensorium.commands.output import console_for
    from sensorium.commands.train import Request, prepare

    (tmp_path / "red.jpg").unlink()
    recipe = prepare(Request("llava", "tiny", data=(chat,), skip_bad_rows=True), console_for(True))
    assert recipe.stages[0].data is not None


def test_missing_files_of_chat_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("chat", str(tmp_path / "nothing"), "--prompt", "Hello") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert run("chat", str(tmp_path), "--image", str(tmp_path / "no.jpg"), "--prompt", "Hello") == 2
    assert "no.jpg: no such file" in capsys.readouterr().err


def test_module_and_console_entry_are_the_same():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sensorium", "--version"], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "0.1.0"
