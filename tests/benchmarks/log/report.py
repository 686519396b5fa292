"""What is written and shown: the promised figures beside their targets, then the rates they come from."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from tests.benchmarks.ingest import processor
from tests.benchmarks.log.contenders import CONTENDERS
from tests.benchmarks.log.lab import Lab
from tests.benchmarks.log.plan import Plan
from tests.benchmarks.log.server import SETTINGS

KEYS = (
    "append_vs_stock_8",
    "append_vs_raw_8",
    "async64_vs_stock_1ms",
    "load_append_vs_emmett_8",
    "load_append_vs_stock_8",
    "skipped",
)
"""Always in the file; null says that it was not measured."""
TARGETS: dict[str, tuple[str, float]] = {
    "append_vs_stock_8": (">=", 5),
    "append_vs_raw_8": (">=", 0.6),
    "append_vs_raw_8_1ms": (">=", 1),
    "async64_vs_stock_1ms": (">=", 30),
    "load_append_vs_emmett_8": (">=", 2),
    "load_append_vs_stock_8": (">=", 4),
    "skipped": ("<=", 0),
    "control_skipped": (">=", 1),
    "hot_per_s": (">=", 5_000),
    "hot_4_processes_per_s": (">=", 2_000),
    "client_cpu_us_64": ("<=", 40),
    "server_cpu_us_64": ("<=", 15),
    "p99_ms_at_70": ("<=", 10),
    "relay_per_s": (">=", 50_000),
    "fold_per_s_per_core": (">=", 150_000),
    "growth_rate_large_to_small": (">=", 0.9),
}
"""Issue 3's. The first of a pair says which side is good."""


def machine() -> str:
    cores, python = len(os.sched_getaffinity(0)), platform.python_version()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{cores} cores of {processor()}, {memory_gib:.0f} GiB, Python {python}, {at}"


def met(name: str, value: float | None) -> bool | None:
    if value is None or name not in TARGETS:
        return None
    sign, target = TARGETS[name]
    return value >= target if sign == ">=" else value <= target


def report(found: dict[str, Any], lab: Lab, plan: Plan, machine: str, seconds: float) -> dict[str, Any]:
    """The file: every key there is, measured or null, then how it came about."""
    figures = {name: found.get(name) for name in (*KEYS, *TARGETS)}
    scenario_seconds = found.get("seconds", {})
    return {
        **figures,
        "met": {name: met(name, value) for name, value in figures.items()},
        **{name: value for name, value in found.items() if name not in figures and name != "seconds"},
        "quick": plan.quick,
        "rounds": plan.rounds,
        "slice_s": {"headline": plan.slice_s, "other": plan.short_s},
        "machine": machine,
        "loads": [min(lab.loads, default=0.0), max(lab.loads, default=0.0)],
        "contenders": {contender.name: contender.what for contender in CONTENDERS},
        "versions": dict(sorted(lab.versions.items())),
        "settings": SETTINGS,
        "left_out": lab.left_out,
        "failures": lab.failures,
        "seconds": scenario_seconds,
        "seconds_in_all": round(seconds, 1),
    }


def tables(whole: dict[str, Any]) -> list[Table]:
    """Figures; appends by cell; load + decide + append."""
    figures = Table("figure", "measured", "wanted", "met", title=whole["machine"])
    for name, (sign, target) in TARGETS.items():
        figures.add_row(name, _number(whole[name]), f"{sign} {target:,}", _yes(whole["met"][name]))
    made = [figures]
    if "append" in whole:
        cells = whole["append"]["cells"]
        appends = Table("events/s, one a command", *cells, title="append, live follower attached")
        for contender in CONTENDERS:
            row = [cell["contenders"].get(contender.name) for cell in cells.values()]
            if any(row):
                appends.add_row(contender.name, *(_number(each and each["per_s"]) for each in row))
        made.append(appends)
    if "decide" in whole:
        decides = Table("commands/s", "8 writers", "client µs", "server µs", title="load + decide + append")
        for name, each in whole["decide"]["contenders"].items():
            decides.add_row(
                name, *(_number(each[key]) for key in ("per_s", "client_cpu_us", "server_cpu_us"))
            )
        made.append(decides)
    if whole["failures"] or whole["left_out"]:
        not_run = Table("not measured", "why")
        for who, why in whole["left_out"].items():
            not_run.add_row(who, why)
        for each in whole["failures"]:
            not_run.add_row(f"{each['scenario']}: {each['contender']}", each["why"][:200])
        made.append(not_run)
    return made


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:,.2f}"


def _yes(value: bool | None) -> str:
    return {None: "-", True: "yes", False: "no"}[value]
