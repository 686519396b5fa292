"""Revenue from every paper that has lines: sums for Postgres, the lines themselves for ClickHouse."""

from __future__ import annotations

from dataclasses import make_dataclass
from datetime import timedelta
from typing import get_type_hints

from pydantic import TypeAdapter

from domain.capacity import AdjustmentRecorded
from projections.analytics import BY_COUNTRY, BY_CUSTOMER, BY_MONTH, SALE_LINES, TOTALS, SaleLineRow
from projections.rows import Big, Column, columns_of
from tests.domain.samples import ADJUSTMENT
from tests.projections.tables import after
from tests.projections.test_ordering import placed, returned
from tests.projections.test_payments import WRITTEN_OFF
from tests.spec import document, line

ORDER = placed(line("85123A", 6, "2.55"), line("POST", 1, "4.95", charge=True))
BACK = returned(line("85123A", -2, "2.55"))
BROKEN = AdjustmentRecorded(
    adjustment_id=ADJUSTMENT,
    document=document("536589").model_copy(update={"customer": None, "country": "EIRE"}),
    lines=(line("85123A", -10, "0"),),
)


def test_every_paper_counts_and_its_kind_is_told_apart() -> None:
    assert after(ORDER, BACK, BROKEN, WRITTEN_OFF).row(TOTALS) == {
        "currency": "GBP",
        "line_count": 5,
        "orders": 1,
        "returns": 1,
        "net_micro": 15_300_000 + 4_950_000 - 5_100_000 - 11_062_060_000,
    }


def test_countries_are_those_of_the_paper() -> None:
    shown = after(ORDER, BROKEN).rows(BY_COUNTRY)
    assert [(row["country"], row["line_count"]) for row in shown] == [("EIRE", 1), ("United Kingdom", 2)]


def test_a_paper_without_a_customer_is_nobodys() -> None:
    assert [row["customer"] for row in after(ORDER, BROKEN).rows(BY_CUSTOMER)] == ["17850"]


def test_a_line_with_its_own_time_is_of_that_month() -> None:
    late = line("71053", 1, "1.00").model_copy(
        update={"placed_at": document().placed_at + timedelta(days=40)}
    )
    shown = after(placed(line("85123A", 1, "2.00"), late)).rows(BY_MONTH)
    assert [(row["month"], row["net_micro"]) for row in shown] == [
        ("2010-12", 2_000_000),
        ("2011-01", 1_000_000),
    ]


def test_each_line_is_a_row_under_its_position_and_number() -> None:
    rows = after(ORDER, BACK).rows(SALE_LINES)
    assert [(row["position"], row["line"], row["kind"]) for row in rows] == [
        (1, 0, "order"),
        (1, 1, "order"),
        (2, 0, "return"),
    ]
    assert rows[1] == {
        "position": 1,
        "line": 1,
        "kind": "order",
        "document": "536365",
        "code": "POST",
        "title": "POST title",
        "quantity": 1,
        "unit_price_micro": 4_950_000,
        "amount_micro": 4_950_000,
        "currency": "GBP",
        "charge": True,
        "customer": "17850",
        "country": "United Kingdom",
        "placed_at": document().placed_at,
    }


def test_a_plain_row_has_columns_as_a_checked_one_has() -> None:
    kinds = {column.name: column.kind for column in SALE_LINES.columns}
    assert list(kinds) == ["tenant", *SaleLineRow._fields]
    assert (kinds["position"], kinds["charge"], kinds["placed_at"]) == ("int", "bool", "local")
    assert [column.name for column in SALE_LINES.columns if column.nullable] == ["customer"]
    marked = make_dataclass("Marked", [("big", Big)])
    assert columns_of(marked)[1] == Column("big", "big")


def test_what_a_plain_row_holds_is_what_its_types_say() -> None:
    """Nobody checks it in the worker."""
    for row in after(ORDER, BACK, BROKEN, WRITTEN_OFF).rows(SALE_LINES):
        for name, kind in get_type_hints(SaleLineRow).items():
            TypeAdapter(kind).validate_python(row[name], strict=True)
