"""What is written and shown: the promised figures beside their targets, then the rates they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

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
        "by": dict.fromkeys(scenario_seconds, f"{machine}{', --quick' if plan.quick else ''}"),
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


OF_A_RUN = frozenset(
    (
        *("met", "by", "seconds", "seconds_in_all", "quick", "rounds", "slice_s", "machine", "loads"),
        *("contenders", "versions", "settings", "left_out", "failures"),
    )
)
"""What a file says of the whole run, not of what was measured."""


def merged(known: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """What is known, with what a run of a few scenarios has found put in its place."""
    found = {name: value for name, value in whole.items() if value is not None and name not in OF_A_RUN}
    return {
        **known,
        **found,
        "met": known["met"] | {name: each for name, each in whole["met"].items() if each is not None},
        "by": known.get("by", {}) | whole["by"],
    }


METHOD = (
    "Rounds are interleaved, and figures are medians of the rounds' ratios. Postgres, its settings and its"
    " durability are the same for everybody, and a live follower is attached. Peers are installed by the"
    " bench, outside the project. Real fsync, and one with a millisecond more, as on a network's disk. Ratios"
    " of appends are those of `ours: asyncio`, the log's port as the API has it; those of load + decide +"
    " append are of `ours: threads`, which loads its stream for every command, as the others do."
)


class Grid(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def for_the_terminal(self) -> Table:
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table

    def for_a_page(self) -> Iterator[str]:
        yield from ("", f"### {self.title}", "")
        yield f"| {' | '.join(self.columns)} |"
        yield f"|{'---|' * len(self.columns)}"
        yield from (f"| {' | '.join(row)} |" for row in self.rows)


def grids(whole: dict[str, Any]) -> Iterator[Grid]:
    """Figures; appends by cell; load + decide + append; what was not measured."""
    yield Grid(
        whole["machine"],
        ("figure", "measured", "wanted", "met"),
        [
            (name, _number(whole[name]), f"{sign} {target:,}", _yes(whole["met"][name]))
            for name, (sign, target) in TARGETS.items()
        ],
    )
    if "append" in whole:
        cells = whole["append"]["cells"]
        rows = {
            contender.name: [cell["contenders"].get(contender.name) for cell in cells.values()]
            for contender in CONTENDERS
        }
        yield Grid(
            "append, live follower attached",
            ("events/s, one a command", *cells),
            [
                (name, *(_number(each and each["per_s"]) for each in row))
                for name, row in rows.items()
                if any(row)
            ],
        )
    if "decide" in whole:
        keys = ("per_s", "client_cpu_us", "server_cpu_us")
        yield Grid(
            "load + decide + append",
            ("commands/s", "8 writers", "client µs", "server µs"),
            [
                (name, *(_number(each[key]) for key in keys))
                for name, each in whole["decide"]["contenders"].items()
            ],
        )
    if "growth" in whole:
        yield Grid(
            "growth: appends of 8 writers, preloaded by COPY",
            ("facts before", "events/s, by round"),
            [
                (f"{int(facts):,}", ", ".join(map(_number, rounds)))
                for facts, rounds in whole["growth"]["rounds"].items()
            ],
        )
    if "soak" in whole:
        yield Grid(
            f"soak: appends of 64 tasks for {whole['soak']['seconds']:,.0f} s",
            ("of the head row", "measured"),
            [
                ("rate of the last tenth to the first", _number(whole["soak_rate_end_to_begin"])),
                ("bytes at most", _number(whole["head_bytes_max"])),
                ("dead versions at most", _number(whole["head_dead_tuples_max"])),
            ],
        )
    if whole["failures"] or whole["left_out"]:
        failed = [
            (f"{each['scenario']}: {each['contender']}", each["why"][:200]) for each in whole["failures"]
        ]
        yield Grid("not measured", ("what", "why"), [*whole["left_out"].items(), *failed])


def page(whole: dict[str, Any]) -> str:
    """For docs/benchmarks.md."""
    how = "make bench-log ARGS=--quick" if whole["quick"] else "make bench-log"
    lines = [
        f"## The log, by `{how}`",
        "",
        METHOD,
    ]
    for grid in grids(whole):
        lines += grid.for_a_page()
    others = {name: on for name, on in whole.get("by", {}).items() if whole["machine"] not in on}
    if others:
        lines += ["", "Measured at another time:", ""]
        lines += [f"- {name}: {on}" for name, on in others.items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:,.2f}"


def _yes(value: bool | None) -> str:
    return {None: "-", True: "yes", False: "no"}[value]
