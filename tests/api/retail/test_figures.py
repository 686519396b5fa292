"""The figures of a log are those of the file it came from, to the last decimal."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from api.retail.figures import Figures, fold_log
from api.retail.file import COLUMNS, read_invoices
from api.retail.importer import PERMISSIONS, import_invoices
from commands.handling import Actor, Handler
from domain.capacity import AdjustmentRecorded
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted
from infra.eventstore import PostgresLog
from infra.memory import MemoryLog
from infra.migrate import schema_of
from infra.settings import Settings

DATA = Path(__file__).parents[2] / "data"
(YEAR,) = (DATA / "retail_online_uci").glob("*.csv.xz")
PUBLISHED = json.loads((DATA / "retail_online_uci" / "published.json").read_text())
ANA = Actor("shop", "ana", PERMISSIONS)


def imported(
    path: Path, log: MemoryLog | PostgresLog, *, currency: str = "GBP", until: date | None = None
) -> int:
    handler = Handler(log, lambda: datetime(2026, 1, 2, tzinfo=UTC))
    summary = import_invoices(handler, read_invoices(path, until=until), actor=ANA, currency=currency)
    assert summary.failed == []
    assert summary.stopped is None
    return summary.imported


def facts_of(log: MemoryLog) -> Iterator[Recorded]:
    return (log.recorded("shop", position, 1)[0] for position in range(1, len(log.rows) + 1))


def papers_in(log: MemoryLog) -> Iterator[Recorded]:
    """The facts that say anything here: a year has half a million others."""
    names = {paper.name for paper in (OrderPlaced, GoodsReturned, AdjustmentRecorded, BadDebtAdjusted)}
    for position, (_, _, _, name, _) in enumerate(log.rows, 1):
        if name in names:
            yield from log.recorded("shop", position, 1)


def test_the_corners_of_the_format_add_up_to_this() -> None:
    log = MemoryLog()
    imported(DATA / "retail_small" / "corners.csv", log)
    assert fold_log(facts_of(log), currency="GBP", codes=("84077", "22423", "none")).as_json() == {
        "lines": 13,
        "orders": 4,
        "returns": 1,
        "net_revenue": "-10998.809999",
        "by_month": {"2010-12": "29.220", "2011-01": "-11028.029999"},
        "by_country": {
            "United Kingdom": "-11014.610",
            "Iceland": "13.250",
            "EIRE": "2.550001",
        },
        "top_customers": {"17850": "47.450", "12347": "13.250"},
        "net_units": {"84077": 30, "22423": 0, "none": 0},
    }


def test_a_log_without_facts_has_figures_of_nothing() -> None:
    assert Figures("GBP").as_json() == {
        "lines": 0,
        "orders": 0,
        "returns": 0,
        "net_revenue": "0.000",
        "by_month": {},
        "by_country": {},
        "top_customers": {},
        "net_units": {"84077": 0},
    }


def test_amounts_of_another_currency_are_not_added_and_units_are() -> None:
    log = MemoryLog()
    imported(DATA / "retail_small" / "corners.csv", log, currency="EUR")
    figures = fold_log(facts_of(log), currency="GBP").as_json()
    assert (figures["lines"], figures["net_revenue"], figures["net_units"]) == (0, "0.000", {"84077": 30})
    assert fold_log(facts_of(log), currency="EUR").as_json()["lines"] == 13


def test_ten_customers_are_named_the_first_by_name_where_they_tie() -> None:
    figures = Figures("GBP")
    figures.customer_micro.update({f"{nth:02}": 5 for nth in reversed(range(11))} | {"z": 6})
    assert list(figures.as_json()["top_customers"]) == ["z", *(f"{nth:02}" for nth in range(9))]


# ── any file ──────────────────────────────────────────────────────────────────────────────────────

NUMBERS = ("1", "2", "3", "C4", "C5", "A6", "c7", "CASH", "A")
LINES = st.fixed_dictionaries(
    {
        "InvoiceNo": st.sampled_from(NUMBERS),
        "StockCode": st.sampled_from(["84077", "84077 ", "a", "A", "POST", "m"]),
        "Description": st.sampled_from(["", "x", 'a "b", c\nd']),
        "Quantity": st.integers(-80_995, 80_995).map(str),
        "InvoiceDate": st.datetimes(
            datetime.fromisoformat("2010-12-01"), datetime.fromisoformat("2011-02-28")
        ).map(str),
        "UnitPrice": st.decimals(-11_062, 38_970, places=6).map(str),
    }
)
PEOPLE = st.tuples(st.sampled_from(["", "17850", "13047"]), st.sampled_from(["EIRE", "Iceland", ""]))


def text_of(amount: Decimal) -> str:
    whole, _, decimals = f"{amount:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(3, '0')}" if amount else "0.000"


def naive(rows: list[dict[str, str]]) -> dict[str, Any]:
    """The same figures by the shortest way there is: decimals over the file's rows."""
    totals: dict[str, Counter[str]] = {
        "by_month": Counter(),
        "by_country": Counter(),
        "top_customers": Counter(),
    }
    for row in rows:
        amount: Any = int(row["Quantity"]) * Decimal(row["UnitPrice"])
        totals["by_month"][row["InvoiceDate"][:7]] += amount
        totals["by_country"][row["Country"]] += amount
        if row["CustomerID"]:
            totals["top_customers"][row["CustomerID"]] += amount
    numbers = {row["InvoiceNo"] for row in rows}
    returns = {number for number in numbers if number[0] == "C"}
    debts = {number for number in numbers if number[0] == "A"}
    sold = {row["InvoiceNo"] for row in rows if int(row["Quantity"]) > 0}
    units = sum(
        int(row["Quantity"])
        for row in rows
        if row["StockCode"].strip() == "84077" and row["InvoiceNo"] not in debts
    )
    return {
        "lines": len(rows),
        "orders": len(sold - returns - debts),
        "returns": len(returns),
        "net_revenue": text_of(sum((Decimal(amount) for amount in totals["by_month"].values()), Decimal())),
        "net_units": {"84077": units},
    } | {name: {key: text_of(Decimal(sums[key])) for key in sums} for name, sums in totals.items()}


@given(
    st.lists(LINES, min_size=1, max_size=30), st.lists(PEOPLE, min_size=len(NUMBERS), max_size=len(NUMBERS))
)
@trying(deadline=timedelta(seconds=5), max_examples=60)
def test_any_file_gives_the_figures_of_its_rows(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, str]], people: list[tuple[str, str]]
) -> None:
    of_invoice = dict(zip(NUMBERS, people, strict=True))
    rows = []
    for line in lines:
        customer, country = of_invoice[line["InvoiceNo"]]
        rows.append(line | {"CustomerID": customer, "Country": country})
    path = tmp_path_factory.mktemp("any") / "shop.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    log = MemoryLog()
    imported(path, log)
    figures = fold_log(facts_of(log), currency="GBP").as_json()
    assert figures == naive(rows)
    revenues = [(-Decimal(text), country) for country, text in figures["by_country"].items()]
    assert revenues == sorted(revenues)
    assert list(figures["by_month"]) == sorted(figures["by_month"])


# ── a real shop ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(300)
def test_december_2010_on_postgres_has_its_published_figures_and_is_imported_once(settings: Settings) -> None:
    log = PostgresLog(settings.role_dsn("app"), schema_of(settings), b"k" * 32)
    december = PUBLISHED["december_2010"]["values"]
    assert imported(YEAR, log, until=date(2010, 12, 31)) == december["invoices"]
    facts = log.recorded("shop", 1, 1_000_000)
    assert imported(YEAR, log, until=date(2010, 12, 31)) == 0
    assert len(log.recorded("shop", 1, 1_000_000)) == len(facts)
    log.close()

    figures = fold_log(facts, currency="GBP").as_json()
    assert {name: figures[name] for name in ("lines", "orders", "returns", "net_revenue")} == {
        name: december[name] for name in ("lines", "orders", "returns", "net_revenue")
    }
    assert figures["by_month"] == {"2010-12": "748957.020"}


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_the_whole_year_has_every_published_figure() -> None:
    log = MemoryLog()
    expected = {name: figure["value"] for name, figure in PUBLISHED["figures"].items()}
    assert imported(YEAR, log) == expected["invoices"]

    figures, papers, units = Figures("GBP"), Counter[str](), 0
    for recorded in papers_in(log):
        figures.take(recorded)
        papers[type(recorded.event).__name__] += 1
        units += sum(line.quantity for line in getattr(recorded.event, "lines", ()))
    report = figures.as_json()
    assert {name: report[name] for name in ("lines", "orders", "returns", "net_revenue")} == {
        name: expected[name] for name in ("lines", "orders", "returns", "net_revenue")
    }
    assert report["by_month"] == PUBLISHED["by_month"]["values"]
    assert list(report["by_country"].items()) == list(PUBLISHED["by_country"]["values"].items())
    top = PUBLISHED["top_customers"]["values"]
    assert list(report["top_customers"].items())[: len(top)] == list(top.items())
    assert report["net_units"] == {"84077": expected["net_units_84077"]}
    assert units == expected["net_units"]
    assert papers[BadDebtAdjusted.__name__] == expected["bad_debt_adjustments"]
    assert papers[AdjustmentRecorded.__name__] == expected["invoices_without_a_sale"]
    assert len(figures.country_micro) == expected["countries"]
    assert len(figures.customer_micro) == expected["customers_known"]
