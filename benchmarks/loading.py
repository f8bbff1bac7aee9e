"""Opening a published checkpoint: seconds and peak memory, here and in transformers.

Each load is a process of its own (imports are not counted), the two sides take turns. The checkpoint is
SmolLM2-135M-Instruct, written out in the layout of transformers in float32; `--folder` takes another.

    python benchmarks/loading.py [--folder FOLDER] [--turns 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = """
import sys, time
folder = sys.argv[1]

def status(name):  # bytes: VmRSS is what is held now, VmHWM the most that ever was
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def forget():  # the most that ever was is what is held now
    open("/proc/self/clear_refs", "w").write("5")
"""
OURS = (
    COMMON
    + """
import torch
from pathlib import Path
from sensorium.convert.published import open_published
import sensorium.api
forget()
before, began = status("VmRSS"), time.perf_counter()
model = open_published(Path(folder), torch.float32).model
held = sum(tensor.nbytes for tensor in model.state_dict().values())
seconds = time.perf_counter() - began
with torch.no_grad():  # files that are only mapped are read now
    total = sum(tensor.sum() for tensor in model.state_dict().values())
print(seconds, time.perf_counter() - began, (status("VmHWM") - before) / held)
"""
)
THEIRS = (
    COMMON
    + """
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.models.llama.modeling_llama.LlamaForCausalLM  # imported, as the other side's parts are
forget()
before, began = status("VmRSS"), time.perf_counter()
AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
held = sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())
seconds = time.perf_counter() - began
with torch.no_grad():  # files that are only mapped are read now
    total = sum(tensor.sum() for tensor in model.state_dict().values())
print(seconds, time.perf_counter() - began, (status("VmHWM") - before) / held)
"""
)


def smollm2(folder: Path) -> Path:
    """The small recipes' language model as transformers writes it."""
    from sensorium.convert.family import family_named
    from sensorium.convert.published import write_published
    from sensorium.models.fused import Fused
    from sensorium.recipes.catalog import find
    from sensorium.template import Template
    from sensorium.train.build import build_model, load_pretrained, tokenizer_of

    recipe = find("llava", "small")
    language = recipe.replace(
        model=Fused.Config(backbone=recipe.model.stack), init={"backbone": recipe.init["backbone"]}, stages=()
    )
    model = build_model(language)
    load_pretrained(model, language)
    tokenizer = tokenizer_of(language)
    write_published(folder, family_named("llama"), model, tokenizer, Template(chat=tokenizer.chat_template or ""))
    return folder


def measured(code: str, folder: Path) -> tuple[float, float, float]:
    """Seconds to open, seconds until every weight was read once, peak memory over that of the weights, of a process."""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    opened, read, memory = map(float, done.stdout.split()[-3:])
    return opened, read, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or smollm2(Path(place) / "smollm2")
        measured(OURS, folder), measured(THEIRS, folder)  # the files are in the page cache for both
        turns = [(measured(OURS, folder), measured(THEIRS, folder)) for _ in range(options.turns)]
    for place, what in enumerate(("seconds to open", "seconds until all is read", "peak memory / weights")):
        here, there = [ours[place] for ours, _ in turns], [theirs[place] for _, theirs in turns]
        ratio = spread([other / own for own, other in zip(here, there)])
        print(f"{what}: here {spread(here)}, transformers {spread(there)}, ratio {ratio}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
