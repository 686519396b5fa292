"""The demo: a real shop's year as commands, and its figures three times beside the published ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "retail_online_uci"
FILE = FOLDER / "online_retail_2010-12-01_2011-12-09.csv.xz"
TENANT = "demo"
CURRENCY = "GBP"
SOURCES = ("log", "postgres", "clickhouse")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, from all three sources, with what others say it is (None: nobody does of this part)."""

    name: str
    values: tuple[str, str, str]
    expected: str | None
    published: bool
    """The expected value is stated outside this project; otherwise it was computed from the file."""

    @property
    def agrees(self) -> bool:
        wanted = self.values[0] if self.expected is None else self.expected
        return all(value == wanted for value in self.values)


def rows(report: dict[str, Any], until: date | None) -> Iterator[Row]:
    """The table, top to bottom. A part of the year has published figures for its whole months only."""
    known = json.loads((FOLDER / "published.json").read_text())
    whole = until is None or until >= date(2011, 12, 9)
    figures = known["figures"]

    def row(name: str, path: tuple[str, ...], expected: Any, published: bool) -> Row:
        values = tuple(str(_at(report[source], path)) for source in SOURCES)
        return Row(
            name, (values[0], values[1], values[2]), None if expected is None else str(expected), published
        )

    for name in ("lines", "orders", "returns", "net_revenue"):
        entry = figures[name]
        stated = entry["value"] if whole else None
        yield row(name.replace("_", " "), (name,), stated, entry["published_by"] is not None)
    for month in report["log"]["by_month"]:
        complete = until is None or month < until.isoformat()[:7] or until == _month_end(until)
        stated = known["by_month"]["values"].get(month) if complete else None
        yield row(f"net revenue {month}", ("by_month", month), stated, True)
    for country in list(report["log"]["by_country"])[:3]:
        yield row(country, ("by_country", country), None, False)
    for customer in list(report["log"]["top_customers"])[:3]:
        yield row(f"customer {customer}", ("top_customers", customer), None, False)
    units = figures["net_units_84077"]
    yield row("net units of 84077", ("net_units", "84077"), units["value"] if whole else None, True)


def _at(figures: dict[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = figures
    for name in path:
        found = found.get(name, 0)
    return found


def _month_end(day: date) -> date:
    following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return date.fromordinal(following.toordinal() - 1)
