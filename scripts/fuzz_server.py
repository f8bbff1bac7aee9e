"""Hostile requests against a server of this machine.

    PYTHONPATH=.:tests/serve python scripts/fuzz_server.py --count 10000 --seed 0

Needs the extra `test`. A server with two tiny models of random weights is started in a process of its own, on the
loopback device, and attacked by several clients at once with what tests/serve/hostile.py makes of the seed. Printed is
a table of statuses by kind; the exit code is 1 where anything was found: an answer of 500 or above that is no
documented overload, a crash, a hanging request, an answer, log line or number that holds what another request sent, an
error in the log, a connection to where none may go, or an honest answer that changed.
"""

from __future__ import annotations

import argparse
import sys

from attacking import attacked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    asked = parser.parse_args()
    report = attacked(asked.seed, asked.count, asked.clients, told=1000)
    print(report.table())
    print(f"{report.count} requests in {report.seconds:.0f} s; the slowest: {report.slowest}")
    for one in report.findings:
        print(f"FOUND {one}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
