"""A part of the year through commands, end to end to both read models; and the memory that takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from api.demo import CURRENCY
from api.report import report
from api.retail.figures import UNIT_CODES
from infra.engines.footprint import Peak
from tests.benchmarks import floors
from tests.benchmarks.figure import Figure
from tests.benchmarks.retail import Part, check
from tests.benchmarks.system import EVERYTHING, System, say, system

LOAD = "tests.benchmarks.load"
TENANT = "bench"


def ingest(made: System, part: Part, tenant: str = TENANT) -> dict[str, Any]:
    """Import a part with everything running; when it was recorded, and when each engine had it all."""
    cpu_s = made.cpu_s()
    told = made.told(LOAD, str(part.file), tenant)
    quiet = made.until_quiet()
    told["cpu_by_child_s"] = {name: round(s - cpu_s.get(name, 0), 1) for name, s in made.cpu_s().items()}
    for engine, at in quiet.items():
        told[f"{engine}_s"] = at - told["began"]
    told["recorded_s"] = told["ended"] - told["began"]
    told["whole_s"] = max(quiet.values()) - told["began"]
    return told


def measure(folder: Path, part: Part, rounds: int) -> tuple[Figure, Figure, Path]:
    """The rate, the memory, and the home of the last round for whoever can use it."""
    count = f"{len(part.lines):,} lines"
    what = f"import of {count} through commands, end to end to both read models"
    rate = Figure("import", what, "lines/s", 5_000, True)
    memory = Figure("memory", f"PSS of the whole stack while importing {count}", "MiB", 1_536, False)
    for nth in range(rounds):
        home = folder / f"import-{nth}"
        with system(home, *EVERYTHING) as made:
            idle_mib = sum(made.memory_mib().values())
            with Peak({made.process.pid}, every_s=0.5) as peak:
                told = ingest(made, part)
            peak_mib = (peak.bytes >> 20) + told["rss_mib"]
            by_child = made.memory_mib()
            lines = len(part.lines)
            say(f"import {nth + 1}/{rounds}: {lines / told['whole_s']:,.0f} lines/s, now checking")
            check(report(made.api, made.runtime, TENANT, CURRENCY, UNIT_CODES), part.expected)
            copied, inserted = floors.copy_lines(made, part.lines), floors.insert_facts(made)
        rate.round(
            lines / told["whole_s"],
            {
                "COPY of the lines + one ClickHouse insert": lines / copied,
                "the same facts, one INSERT a command": lines / inserted,
            },
        )
        memory.round(peak_mib, {"the same stack, idle": idle_mib})
        if nth + 1 < rounds:
            shutil.rmtree(home)
    rate.details = {
        "lines": part.expected["lines"],
        "until": part.until.isoformat(),
        "lines/s into the log": round(part.expected["lines"] / told["recorded_s"]),
        **{
            f"{engine} had all after s": round(told[f"{engine}_s"], 1)
            for engine in ("postgres", "clickhouse")
        },
        "reading the file took s, not counted": told["read_s"],
        "processor s": {"importer": told["cpu_s"], **told["cpu_by_child_s"]},
    }
    memory.details = {"importer": told["rss_mib"], "MiB by process, after": by_child}
    return rate, memory, home


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
