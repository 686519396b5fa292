"""What was measured, as a table for people: on the terminal and in docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.log.report import page as log_page

DOCS = Path(__file__).parent.parent.parent / "docs"
JSON_FILE, PAGE_FILE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
LOG_FILE = DOCS / "benchmarks-log.json"
HEAD = Path(__file__).with_name("head.md")
COLUMNS = ("figure", "target", "measured", "", "beside its floors (ratio)", "load", "")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows(figures: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [row(figure) for figure in figures]


def row(figure: dict[str, Any]) -> tuple[str, ...]:
    sign, unit = ("≥" if figure["more_is_better"] else "≤"), figure["unit"]
    target = f"{sign} {number(figure['target'])} {unit}"
    if figure["value"] is None:
        return figure["what"], target, "–", "", figure["skipped"] or "", "", ""
    floors = "; ".join(
        f"{name} {number(_median(values))} {unit} (× {figure['ratios'][name]:.2f})"
        for name, values in figure["floors"].items()
    )
    low, high = figure["load"]
    return (
        figure["what"],
        target,
        f"{number(figure['value'])} {unit}",
        "met" if figure["met"] else "missed",
        floors,
        f"{low:.1f}–{high:.1f}",
        "noisy" if figure["noisy"] else "",
    )


def _median(values: list[float]) -> float:
    ranked = sorted(values)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def page(report: dict[str, Any]) -> str:
    """docs/benchmarks.md: the head, the table, each figure's details; then the log's races."""
    lines = [HEAD.read_text().rstrip(), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(each)} |" for each in rows(report["figures"])]
    for figure in report["figures"]:
        if figure["value"] is None:
            continue
        rounds = ", ".join(number(value) for value in figure["rounds"])
        lines += ["", f"## {figure['name']}", ""]
        lines += [f"{figure['what']}, {figure['unit']}. {figure['machine']}. Rounds: {rounds}.", ""]
        for name, floors in figure["floors"].items():
            lines.append(f"- floor, {name}: {', '.join(number(value) for value in floors)}")
        lines += [f"- {name}: {told(value)}" for name, value in figure["details"].items()]
    if LOG_FILE.exists():
        lines += ["", log_page(json.loads(LOG_FILE.read_text())).rstrip()]
    return "\n".join(lines) + "\n"


def told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {told(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
