"""The part of the retail year that is measured with, and what is known of it without any code of ours."""

from __future__ import annotations

import csv
import lzma
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from api.demo import FILE
from tests.benchmarks.figure import Wrong

Line = tuple[str, int, str, str, int, str, str, str | None, str]
"""invoice, number in the file, code, description, quantity, placed at, price, customer, country"""
LAST_DAY = date(2011, 12, 9)


@dataclass(frozen=True, slots=True)
class Part:
    """A file of its own, and its figures by csv and decimals alone."""

    file: Path
    until: date
    lines: list[Line]
    expected: dict[str, Any]


def part(folder: Path, until: date, after: date | None = None) -> Part:
    """The lines up to and with that day, and past another one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"retail_{after or 'first'}_{until}.csv"
    lines: list[Line] = []
    sold: set[str] = set()
    returned: set[str] = set()
    net = Decimal()
    with lzma.open(FILE, "rt", encoding="utf-8", newline="") as packed, file.open("w", newline="") as out:
        rows = csv.DictReader(packed)
        writer = csv.DictWriter(out, rows.fieldnames or ())
        writer.writeheader()
        for nth, row in enumerate(rows):
            day = row["InvoiceDate"][:10]
            if day > until.isoformat() or (after is not None and day <= after.isoformat()):
                continue
            writer.writerow(row)
            number, quantity = row["InvoiceNo"], int(row["Quantity"])
            lines.append(
                (
                    *(number, nth, row["StockCode"], row["Description"], quantity, row["InvoiceDate"]),
                    *(row["UnitPrice"], row["CustomerID"] or None, row["Country"]),
                )
            )
            net += quantity * Decimal(row["UnitPrice"])
            if number.startswith("C"):
                returned.add(number)
            elif not number.startswith("A") and quantity > 0:
                sold.add(number)
    expected = {"lines": len(lines), "orders": len(sold), "returns": len(returned), "net_revenue": net}
    return Part(file, until, lines, expected)


def check(found: dict[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    """The log's fold and both read models say what the file says, or it is Wrong."""
    for source, figures in found.items():
        told = {name: figures[name] for name in expected} | {"net_revenue": Decimal(figures["net_revenue"])}
        if told != expected:
            raise Wrong(f"{source} says {told}, the file says {expected}")
    if not found["log"] == found["postgres"] == found["clickhouse"]:
        raise Wrong("the log, Postgres and ClickHouse do not agree on all figures")
