"""The house rules that a program can check: who may import whom, sizes, and what is never called."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sensorium"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"sequence", "config", "errors"}
PURE = {*BASE, "mask", "tokenizer", "text_stream", "template", "film"}
"""Root modules that import nothing of the rooms."""

# room -> rooms whose modules it may import at run time; every room may import PURE and itself.
# `evaluate` holds values that a recipe carries, so `train` reads it; `evaluate` never reads `train`.
# The tokenizer is read from a checkpoint format, so `convert` stands below `hub`'s users; `objectives` read the outputs
# of `models`, and `models` never them.
ALLOWED = {
    "sequence": set(),
    "config": set(),
    "errors": set(),
    "mask": set(),
    "tokenizer": set(),
    "text_stream": set(),
    "template": set(),
    "film": set(),
    "columns": set(),
    "render": {"columns"},
    "data": {"render", "hub"},
    "hub": set(),
    "convert": {"models", "encoders", "connectors", "codecs", "diffusion", "nn", "render"},
    "nn": set(),
    "encoders": {"nn"},
    "connectors": {"nn"},
    "codecs": {"encoders", "nn"},
    "diffusion": set(),
    "models": {"encoders", "connectors", "codecs", "diffusion", "nn"},
    "objectives": {"models"},
    "infer": {"models", "objectives", "encoders", "connectors", "codecs", "diffusion", "nn", "render", "data", "hub"},
    "evaluate": {"infer", "models", "objectives", "codecs", "diffusion", "nn", "data", "render"},
    "report": {"evaluate", "data"},
    "train": {"evaluate", "report", "infer", "models", "objectives", "encoders", "connectors", "codecs", "diffusion",
              "nn", "convert", "hub", "data", "render"},
    "recipes": {"train", "evaluate", "infer", "models", "objectives", "encoders", "connectors", "codecs", "diffusion",
                "convert", "nn", "hub", "data", "render"},
    "compare": {"report", "recipes", "train", "evaluate", "infer", "models", "encoders", "connectors", "nn", "hub",
                "data", "render"},
    "api": {"convert", "infer", "train", "recipes", "data", "hub", "render", "models", "encoders", "nn"},
    "serve": {"api", "infer", "models", "data"},
    "systems": {"recipes", "train"},
    "commands": {"api", "serve", "compare", "convert", "systems", "recipes", "train", "report", "evaluate", "infer",
                 "data", "hub", "render", "models", "nn"},
    "cli": {"commands", "hub"},
    "__main__": {"cli"},
    "__init__": {"api"},
}  # fmt: skip

EXCEPTIONS = {
    # the first command drives recipes, training and evaluation in one; it is a program, not a part of the loop
    ("train/quickstart.py", "recipes"),
}

DATA_BASE = {"sequence", "config", "errors", "data"}
DATA_EXCEPTIONS = {
    # previews show rows as the renderer will write them
    ("data/preview.py", "render"),
    # this set is fetched with the package clients
    ("data/stamps.py", "hub"),
}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def nodes(path):
    """All nodes of a module: most tests want them."""
    return tuple(ast.walk(parsed(path)))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, run_time=True):
    """(module, line) of every import of the package in a file; `if TYPE_CHECKING` left out."""
    skipped = set()
    for node in nodes(path):
        if run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in nodes(path):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sensorium" else [node.module]
            )
        else:
            continue
        for name in names:
            yield str(name), node.lineno


def rooms_imported(path):
    for name, line in imports(path):
        if name.startswith("sensorium."):
            yield name.split(".")[1], line


def test_imports_point_one_way():
    wrong = []
    for path in MODULES:
        room, place = room_of(path), str(path.relative_to(PACKAGE))
        assert room in ALLOWED, f"{room} is a new room: say in ALLOWED what it may import"
        for other, line in rooms_imported(path):
            fine = other == room or other in PURE or other in ALLOWED[room] or (place, other) in EXCEPTIONS
            if not fine or (room in BASE and other not in BASE):
                wrong.append(f"{place}:{line} imports {other}")
    assert wrong == []


def test_data_depends_on_the_sequence_alone():
    wrong = []
    for path in (PACKAGE / "data").rglob("*.py"):
        place = str(path.relative_to(PACKAGE))
        for other, line in rooms_imported(path):
            if other not in DATA_BASE and (place, other) not in DATA_EXCEPTIONS:
                wrong.append(f"{place}:{line} imports {other}")
        heavy = {name.split(".")[0] for name, _ in imports(path)} & {"transformers", "datasets"}
        assert not heavy, f"{place} imports {heavy}"
    assert wrong == []


def test_the_table_has_no_circle():
    def reaches(room, seen=()):
        for other in ALLOWED[room] - {room}:
            assert other not in seen, f"{' -> '.join([*seen, other])}"
            reaches(other, (*seen, other))

    for room in ALLOWED:
        reaches(room, (room,))


def test_nothing_outside_its_dependencies_is_needed_to_run():
    """transformers and friends are references for tests, never needed."""
    for path in MODULES:
        found = {name.split(".")[0] for name, _ in imports(path)} & {"transformers", "diffusers", "open_clip", "timm"}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def functions():
    for path in MODULES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_functions_are_short_and_forwards_before_all():
    long = [
        f"{path.relative_to(ROOT)}:{node.name} {node.end_lineno - node.lineno + 1}"
        for path, node in functions()
        if node.end_lineno - node.lineno + 1 > 60
    ]
    assert long == []


def calls(path):
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "__import__", "os.system")


def test_nothing_runs_what_it_reads():
    for path in MODULES:
        place = path.relative_to(ROOT)
        for name, node in calls(path):
            assert name not in FORBIDDEN, f"{place}:{node.lineno} calls {name}"
            if name == "torch.load":
                safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
                assert safe, f"{place}:{node.lineno} loads with pickle"
            shell = any(key.arg == "shell" and ast.unparse(key.value) != "False" for key in node.keywords)
            assert not shell, f"{place}:{node.lineno} runs a shell"
        modules = {name.split(".")[0] for name, _ in imports(path)}
        assert not modules & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, f"{place} imports a pickler"
        assert "trust_remote_code" not in path.read_text("utf-8"), f"{place} trusts remote code"


def test_libraries_do_not_print():
    """What is said goes through a rich console that the caller chose."""
    talking = {"cli", "commands", "__main__"}
    for path in MODULES:
        if room_of(path) not in talking:
            assert not [node.lineno for name, node in calls(path) if name == "print"], path.relative_to(ROOT)


def test_no_error_is_swallowed():
    """No bare except, and none of Exception that does not raise again; nothing left for later."""
    for path in MODULES:
        text = path.read_text("utf-8")
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                kept = any(isinstance(inner, ast.Raise) for inner in ast.walk(node)) or "result" in ast.unparse(node)
                assert not broad or kept, f"{path.relative_to(ROOT)}:{node.lineno} swallows {ast.unparse(node)[:60]}"
        assert not [word for word in ("TODO", "FIXME", "XXX") if word in text], path.relative_to(ROOT)


def test_forwards_neither_read_files_nor_talk_to_other_ranks():
    for path, node in functions():
        if node.name != "forward":
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call):
                name = ast.unparse(inner.func)
                assert not name.startswith(("dist.", "open", "torch.distributed")), f"{path.relative_to(ROOT)}: {name}"


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("module", ["sensorium.cli", "sensorium.errors", "sensorium"])
def test_the_command_line_does_not_import_torch(module):
    program = (
        f"import sys, {module}; print(sorted({{'torch', 'numpy', 'transformers', 'tokenizers'}} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_report_does_not_import_torch():
    names = [f"sensorium.report.{path.stem}" for path in (PACKAGE / "report").glob("*.py")]
    program = f"import sys; [__import__(name) for name in {names}]; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("path", sorted((PACKAGE / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_a_design_is_at_most_eighty_lines(path):
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, node.name


def test_nothing_asks_for_the_name_of_a_system():
    """What a recipe is made of decides; only recipes, converters and the list of what is shown know names."""
    from sensorium.recipes.catalog import names

    known = set(names())
    for path in MODULES:
        if room_of(path) in ("recipes", "convert", "systems"):
            continue
        for node in nodes(path):
            if isinstance(node, ast.Compare | ast.Match | ast.IfExp | ast.If):
                tested = node.subject if isinstance(node, ast.Match) else getattr(node, "test", node)
                words = {part.value for part in ast.walk(tested) if isinstance(part, ast.Constant)}
                assert not words & known, f"{path.relative_to(ROOT)}:{node.lineno} asks for {words & known}"
