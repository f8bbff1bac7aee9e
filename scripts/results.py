"""Print the table of docs/results.md from the reports of runs: python scripts/results.py RUN ... > docs/results.md"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """# What was measured

Every row comes from the `report.json` of one run of one command, `sensorium train NAME --size small` (`llava`:
`sensorium quickstart`; `fuyu`, `emu3`, `chameleon`: size tiny), from a fresh clone in a new environment on two cores
without a GPU. Those up to `flamingo` and `emu3` ran alone, `chameleon` beside tests; the others two or three at a time
on one thread each, and their minutes are upper bounds; the pictures of `dit` and `next-gpt` were judged once more when
the CLIP score (a cosine, here in percent) was added. `val_artist`: pictures of trained concepts by an artist never
trained on. `val_concept`: concepts never trained on. Blind is the same model with pictures shuffled across items; where
it makes pictures, they are given to other names. Settings were chosen on slices of the training split; of `cogvlm` four
earlier scores on `val_artist` (+18.3, +20.3, +17.3 and +11.0 points, under other settings) had been seen by then.
`openflamingo` is
`flamingo` at this size. Made by `scripts/results.py`.
"""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def rows(folder: Path) -> list[str]:
    """The table rows of one run, its first one with the name and the minutes of the whole run."""
    report = json.loads((folder / "report.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}  # over all starts of a run
    name, minutes = report["recipe"]["name"], sum({**report["seconds"], **stages}.values()) / 60
    found = []
    for one in report["evaluations"]:
        if one["blind"] is None:  # no comparison: a measure of the model alone
            continue
        first = not found
        low, high = 100 * one["margin_low"], 100 * one["margin_high"]
        found.append(
            f"| {f'`{name}`' if first else ''} | {one['task'].replace('_', ' ')} | `{one['split']}` | {one['n']} "
            f"| {100 * one['score']:.1f} % | {100 * one['blind']:.1f} % | {_percent(one['chance'])} "
            f"| {100 * one['margin']:+.1f} ({low:+.1f} to {high:+.1f}) | {f'{minutes:.0f}' if first else ''} |"
        )
    return found


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    print(HEAD)
    print("| recipe | task | split | n | score | blind | chance | points above blind (95 %) | minutes |")
    print("| -- | -- | -- | --: | --: | --: | --: | --: | --: |")
    for folder in folders:
        print("\n".join(rows(Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
