"""Memory of a server under clients that leave.

    PYTHONPATH=.:tests/serve python scripts/soak_server.py --minutes 15

Needs the extra `test`, and Linux. A server with two tiny models of random weights is started in a process of its own,
on the loopback device. After a minute of load and its idle rest its resident memory is noted; then, after so many
minutes in which clients leave in the middle of streams, say nothing, close half or send what tests/serve/hostile.py
makes, it must be back within 5 % at rest. The exit code is 1 where it is not, or anything else was found.
"""

from __future__ import annotations

import argparse
import sys

from soaking import soaked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rest", type=float, default=60, help="seconds after which an idle server gives memory back")
    asked = parser.parse_args()
    found = soaked(asked.minutes, asked.clients, asked.rest, told=lambda line: print(line, flush=True))
    print(found.report.table())
    for one in found.report.findings:
        print(f"FOUND {one}")
    return 1 if found.report.findings or found.growth > 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
