"""`make bench`: every promised figure beside its floor, measured in one run, checked, written to docs/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.engines.server import EngineFault
from infra.runtime import collect_less_garbage
from tests.benchmarks import cold, ingest, lag, page, projector, rebuild
from tests.benchmarks.figure import Figure, Wrong
from tests.benchmarks.retail import LAST_DAY, Part, part
from tests.benchmarks.system import say

NAMES = ("import", "memory", "lag", "projector", "rebuild", "cold")
IMPORT_TARGET_LINES_PER_S = 5_000


class Bench:
    """One run: sizes, a folder that goes when it is over, and what one figure leaves for the next."""

    def __init__(self, folder: Path, *, quick: bool, rounds: int) -> None:
        self.folder, self.quick, self.rounds = folder, quick, rounds
        self.imported: Path | None = None
        self.lines_per_s: float | None = None

    def part(self, until: date) -> Part:
        return part(self.folder / "parts", until)

    def figures(self, wanted: set[str]) -> Iterator[Figure]:
        whole = self.part(date(2010, 12, 5) if self.quick else LAST_DAY)
        if wanted & {"import", "memory"}:
            say("import and memory")
            rate, memory, self.imported = ingest.measure(self.folder, whole, self.rounds)
            self.lines_per_s = rate.value
            yield from (figure for figure in (rate, memory) if figure.name in wanted)
        if "rebuild" in wanted:
            say("rebuild")
            yield rebuild.measure(self.folder, whole, self.rounds, self.imported)
        if self.imported is not None:
            shutil.rmtree(self.imported)
        if "lag" in wanted:
            say("lag")
            yield self._lag()
        if "projector" in wanted:
            say("projector")
            some = self.part(date(2010, 12, 5) if self.quick else date(2011, 1, 31))
            yield projector.measure(self.folder, some, self.rounds)
        if "cold" in wanted:
            yield self._cold()

    def _lag(self) -> Figure:
        """At half of the promised load, or half of what this machine does today if that is less."""
        half = IMPORT_TARGET_LINES_PER_S / 2
        if self.lines_per_s is not None:
            half = min(half, self.lines_per_s / 2)
        days = [date(2010, 12, day) for day in ((1, 3, 5, 6) if self.quick else (5, 8, 12, 16, 20))]
        return lag.measure(self.folder, lag.pieces(self.folder / "parts", days[: self.rounds + 1]), half)

    def _cold(self) -> Figure:
        if not self.quick:
            say("cold")
            return cold.measure(self.folder, self.rounds)
        figure = cold.figure()
        figure.skipped = "not with --quick: it installs everything again"
        return figure


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    python = platform.python_version()
    return f"{cores} cores of {ingest.processor()}, {memory_gib:.0f} GiB, Python {python}, {now}"


def write(figures: list[dict[str, Any]]) -> None:
    """Into docs/, beside the figures that were not measured this time."""
    known = json.loads(page.JSON_FILE.read_text())["figures"] if page.JSON_FILE.exists() else []
    by_name = {figure["name"]: figure for figure in [*known, *figures]}
    report = {"figures": [by_name[name] for name in NAMES if name in by_name]}
    page.JSON_FILE.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    page.PAGE_FILE.write_text(page.page(report))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first days only, in about three minutes")
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")
    parser.add_argument("--only", action="append", choices=NAMES, help="this figure (may be repeated)")
    parser.add_argument("--rounds", type=int, help="3, with --quick 2")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    given = parser.parse_args()
    collect_less_garbage()  # as the program does
    began, on = time.monotonic(), machine()
    folder = Path(tempfile.mkdtemp(prefix="counterfoil-bench-", dir=given.folder))
    bench = Bench(folder, quick=given.quick, rounds=given.rounds or (2 if given.quick else 3))
    measured: list[dict[str, Any]] = []
    wrong: str | None = None
    try:
        for figure in bench.figures(set(given.only or NAMES)):
            measured.append(figure.as_json() | {"machine": on})  # noqa: PERF401  kept if a later one is wrong
    except (Wrong, EngineFault) as no:
        wrong = str(no)
    if given.json:
        print(json.dumps({"figures": measured, "wrong": wrong}, ensure_ascii=False))
    else:
        grid = Table(*page.COLUMNS)
        for row in page.rows(measured):
            grid.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 160).print(grid)
    say(f"{time.monotonic() - began:.0f} s")
    if wrong is not None:
        sys.exit(f"wrong: {wrong}\nwhat there is to look at: {folder}")
    if not given.quick:
        write(measured)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
