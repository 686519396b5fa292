"""Orders and returns, one row each."""

from __future__ import annotations

from domain.catalog import Line
from domain.ordering import GoodsReturned, OrderPlaced
from domain.values import Money, OrderId, ReturnId
from projections.ordering import ORDERS, RETURNS
from tests.domain.samples import ORDER, RETURN
from tests.projections.tables import after
from tests.spec import T0, document, line


def placed(*lines: Line, number: str = "536365", settled: bool = True) -> OrderPlaced:
    exact = sum(each.amount_micro for each in lines)
    return OrderPlaced(
        order_id=OrderId(ORDER),
        document=document(number),
        lines=lines,
        exact_micro=exact,
        total=Money(minor=round(exact / 10_000), currency="GBP"),
        settled=settled,
    )


def returned(*lines: Line) -> GoodsReturned:
    exact = sum(each.amount_micro for each in lines)
    return GoodsReturned(
        return_id=ReturnId(RETURN),
        document=document("C536379"),
        lines=lines,
        exact_micro=exact,
        total=Money(minor=round(exact / 10_000), currency="GBP"),
    )


def test_an_order_is_a_row_with_its_paper_its_sums_and_its_place_in_the_log() -> None:
    shown = after(placed(line("85123A", 6, "2.555"), line("71053", 2, "1.00")))
    assert shown.row(ORDERS) == {
        "order_id": ORDER,
        "document": "536365",
        "customer": "17850",
        "country": "United Kingdom",
        "currency": "GBP",
        "placed_at": document().placed_at,
        "line_count": 2,
        "units": 8,
        "exact_micro": 17_330_000,
        "total_minor": 1733,
        "settled": True,
        "recorded_at": T0,
        "version": 1,
        "position": 1,
    }
    assert shown.rows(RETURNS) == []


def test_an_order_that_waits_for_its_money_says_so() -> None:
    assert after(placed(line("85123A"), settled=False)).row(ORDERS)["settled"] is False


def test_a_return_is_a_row_of_its_own_table_with_what_came_back_below_zero() -> None:
    shown = after(placed(line("85123A", 6)), returned(line("85123A", -2, "2.50")))
    row = shown.row(RETURNS)
    assert (row["return_id"], row["units"], row["exact_micro"], row["total_minor"]) == (
        RETURN,
        -2,
        -5_000_000,
        -500,
    )
    assert row["position"] == 2
    assert shown.row(ORDERS)["units"] == 6
