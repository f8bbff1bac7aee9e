"""Claims of surveys, tested at a small scale: designs are trained and asked the same, and a test fixed before judges.

    sensorium bench claims [a b c d e] [--out DIR] [--seeds 0,1] [--docs docs/claims.md]

Stopped or killed, the same command goes on. Designs of one seed differ by luck as well: give several seeds, and rows
and items are both drawn anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.claims.claim import Judged, put_to_test
from benchmarks.claims.designs import CLAIMS
from benchmarks.claims.table import document, in_words
from sensorium.commands.compare import seeds_of
from sensorium.compare.table import table_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=[], metavar="CLAIM", help=f"of {', '.join(CLAIMS)}; none: all")
    parser.add_argument("--out", type=Path, default=Path("claims"), help="where everything lies (claims)")
    parser.add_argument("--seeds", default="0", help="numbers with commas (0)")
    parser.add_argument("--docs", type=Path, help="write the table of all claims that are done in --out to this file")
    options = parser.parse_args()
    unknown = sorted(set(options.claims) - set(CLAIMS))
    if unknown:
        parser.error(f"there is no claim {unknown[0]!r}: choose of {', '.join(CLAIMS)}")
    seeds, console = seeds_of(options.seeds), Console()
    done: list[Judged] = []
    for letter in options.claims or CLAIMS:
        found = put_to_test(CLAIMS[letter](), options.out / letter, console, seeds)
        console.print(table_of(found.comparison))
        console.print(in_words(found), markup=False, soft_wrap=True)
        done.append(found)
    if options.docs is not None:
        options.docs.write_text(document(done), "utf-8")
        console.print(f"table: {options.docs}", markup=False)


if __name__ == "__main__":
    main()
