"""`make bench-log`: the log raced against its floor and its peers, into build/bench/log.json."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.log import alone, races
from tests.benchmarks.log.lab import Lab, say
from tests.benchmarks.log.peers import installed
from tests.benchmarks.log.plan import Plan, planned
from tests.benchmarks.log.report import KEYS, grids, machine, merged, report
from tests.benchmarks.page import JSON_FILE, LOG_FILE, PAGE_FILE, page

SCENARIOS = {
    "append": races.append,
    "decide": races.decide,
    "hot": alone.hot,
    "paced": alone.paced,
    "skipped": alone.skipped,
    "relay": alone.relay,
    "growth": alone.growth,
    "soak": alone.soak,
}
BENCH = Path("build/bench").absolute()
"""What is measured, and the peers: gone with `make clean`."""


def measure(lab: Lab, plan: Plan, wanted: set[str]) -> dict[str, Any]:
    """What each scenario found; one that fails leaves its keys empty and the others go on."""
    found: dict[str, Any] = {}
    lab.left_out |= lab.peers.absent
    with lab.noting("servers", "PostgreSQL"):
        lab.start_servers()
        for name, scenario in SCENARIOS.items():
            if name in wanted:
                began = time.monotonic()
                with lab.noting(name, "ours"):
                    found |= scenario(lab, plan)
                found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
    return found


def publish(whole: dict[str, Any], *, only: bool) -> None:
    """What it found, beside what `make bench` found; what a run of `only` a few has not measured is kept."""
    if only and LOG_FILE.exists():
        whole = merged(json.loads(LOG_FILE.read_text()), whole)
    LOG_FILE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    PAGE_FILE.write_text(page(json.loads(JSON_FILE.read_text())))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-log", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="short slices and no growth, in under five minutes"
    )
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this one (may be repeated)")
    parser.add_argument("--rounds", type=int, help="5, with --quick 3")
    parser.add_argument("--publish", action="store_true", help="into docs/benchmarks.md as well")
    given = parser.parse_args()
    plan = planned(given.quick, given.rounds)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="counterfoil-bench-log-"))
    lab = Lab(folder, installed(BENCH / "peers", say))
    try:
        found = measure(lab, plan, set(given.only or SCENARIOS))
    finally:
        lab.stop()
    lab.versions |= {name: version_of(name) for name in ("psycopg", "eventsourcing", "uvloop")}
    lab.versions["python"] = sys.version.split()[0]
    whole = report(found, lab, plan, machine(), time.monotonic() - began)
    BENCH.mkdir(parents=True, exist_ok=True)
    (BENCH / "log.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    if given.publish:
        publish(whole, only=bool(given.only))
    if given.json:
        print(json.dumps(whole, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        for grid in grids(whole):
            console.print(grid.for_the_terminal())
    say(f"{whole['seconds_in_all']:.0f} s; load {os.getloadavg()[0]:.1f}; written to {BENCH / 'log.json'}")
    if lab.failures:
        say(f"{len(lab.failures)} failures, named in it; what there is to look at: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    missing = [name for name in KEYS if whole[name] is None]
    if missing and not given.only:
        say(f"not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()
