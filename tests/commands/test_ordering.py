"""Orders take all their places or none; returns bring them back, whatever order they came from."""

from __future__ import annotations

from uuid import UUID

import pytest
from pydantic import ValidationError

from commands.ordering import PlaceOrder, ReturnGoods
from domain.capacity import PlacesReturned, PlacesTaken, PoolOpened, PoolUnknown, SoldOut, StockAdjusted
from domain.catalog import QUANTITY_MAX, AmountTooLarge, Line
from domain.ordering import (
    GoodsReturned,
    NothingOrdered,
    OrderExists,
    OrderPlaced,
    ReturnExists,
)
from domain.values import AdjustmentId, Money, OrderId, ReturnId, Sealed, micro_of
from tests.spec import document, given, line

O1, O2 = OrderId(UUID(int=1)), OrderId(UUID(int=2))
R1 = ReturnId(UUID(int=3))
CONTACT = Sealed(subject="17850", box="c2VhbGVk")


def pool(code: str, capacity: int | None) -> PoolOpened:
    return PoolOpened(pool=code, capacity=capacity)


def order(*lines: Line, order_id: OrderId = O1, digest: str = "d1", currency: str = "GBP") -> PlaceOrder:
    return PlaceOrder(
        order_id=order_id,
        document=document(digest=digest, currency=currency),
        lines=lines,
        settled=True,
        contact=CONTACT,
    )


def placed(exact: str, minor: int, *lines: Line, currency: str = "GBP") -> OrderPlaced:
    return OrderPlaced(
        order_id=O1,
        document=document(currency=currency),
        lines=lines,
        exact_micro=micro_of(exact),
        total=Money(minor=minor, currency=currency),
        settled=True,
        contact=CONTACT,
    )


def taken(code: str, quantity: int) -> PlacesTaken:
    return PlacesTaken(pool=code, quantity=quantity, order_id=O1)


def giveback(*lines: Line, digest: str = "d1") -> ReturnGoods:
    return ReturnGoods(return_id=R1, document=document(digest=digest), lines=lines)


def returned(exact: str, minor: int, *lines: Line) -> GoodsReturned:
    return GoodsReturned(
        return_id=R1,
        document=document(),
        lines=lines,
        exact_micro=micro_of(exact),
        total=Money(minor=minor, currency="GBP"),
    )


def came_back(code: str, quantity: int) -> PlacesReturned:
    return PlacesReturned(pool=code, quantity=quantity, return_id=R1)


def test_an_order_takes_all_of_its_places() -> None:
    lines = (line("heart", 6, "2.55"), line("lantern", 2, "3.39"))
    given(pool("heart", 6), pool("lantern", None)).when(order(*lines)).then(
        placed("22.08", 2208, *lines), taken("heart", 6), taken("lantern", 2)
    )


def test_an_order_takes_none_of_its_places_if_one_is_missing() -> None:
    shop = given(pool("heart", 6), pool("lantern", 1))
    shop.when(order(line("heart", 6), line("lantern", 2))).refused(SoldOut)
    shop.when(order(line("heart", 6))).then(placed("6.00", 600, line("heart", 6)), taken("heart", 6))


def test_two_lines_on_one_pool_cannot_each_pass_alone() -> None:
    given(pool("heart", 6)).when(order(line("heart", 4), line("heart", 4, "2.00"))).refused(SoldOut)


def test_two_lines_on_one_pool_are_taken_together() -> None:
    lines = (line("heart", 4), line("lantern", 1), line("heart", 2))
    given(pool("heart", 6), pool("lantern", 1)).when(order(*lines)).then(
        placed("7.00", 700, *lines), taken("heart", 6), taken("lantern", 1)
    )


def test_an_uncapped_pool_refuses_nothing() -> None:
    given(pool("heart", None), taken("heart", QUANTITY_MAX)).when(
        order(line("heart", QUANTITY_MAX, "0.000001"))
    ).then(
        placed("2147.483647", 214748, line("heart", QUANTITY_MAX, "0.000001")), taken("heart", QUANTITY_MAX)
    )


def test_more_of_a_pool_than_a_fact_can_carry_is_refused_not_crashed() -> None:
    lines = (line("heart", QUANTITY_MAX, "0.00"), line("heart", 1, "0.00"))
    given(pool("heart", None)).when(order(*lines)).refused(AmountTooLarge)


def test_charges_move_no_pool() -> None:
    lines = (line("heart", 1, "2.00"), line("POST", 3, "1.00", charge=True))
    given(pool("heart", 1)).when(order(*lines)).then(placed("5.00", 500, *lines), taken("heart", 1))


def test_an_order_of_charges_alone_needs_no_pool() -> None:
    given().when(order(line("POST", charge=True))).then(placed("1.00", 100, line("POST", charge=True)))


def test_an_offer_without_a_pool_cannot_be_ordered() -> None:
    given(pool("heart", 1)).when(order(line("heart"), line("lantern"))).refused(PoolUnknown)


@pytest.mark.parametrize("quantity", [0, -1])
def test_a_line_of_nothing_or_less_is_no_order(quantity: int) -> None:
    given(pool("heart", 6)).when(order(line("heart"), line("heart", quantity))).refused(NothingOrdered)
    given().when(order(line("POST", quantity, charge=True))).refused(NothingOrdered)


def test_an_order_without_lines_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError):
        order()


def test_the_same_paper_again_is_empty_even_when_sold_out() -> None:
    shop = (
        given(pool("heart", 1))
        .when(order(line("heart")))
        .then(placed("1.00", 100, line("heart")), taken("heart", 1))
    )
    shop.when(order(line("heart"))).nothing()


def test_a_changed_paper_under_the_same_order_is_refused() -> None:
    shop = (
        given(pool("heart", 9))
        .when(order(line("heart")))
        .then(placed("1.00", 100, line("heart")), taken("heart", 1))
    )
    shop.when(order(line("heart", 2), digest="d2")).refused(OrderExists)


def test_amounts_are_exact_to_six_decimals_and_rounded_once_per_total() -> None:
    lines = (line("heart", 3, "0.333333"), line("heart", 1, "0.004999"))
    given(pool("heart", None)).when(order(*lines)).then(placed("1.004998", 100, *lines), taken("heart", 4))
    halves = (line("heart", 1, "0.005"), line("heart", 1, "0.005"))
    given(pool("heart", None)).when(order(*halves)).then(placed("0.01", 1, *halves), taken("heart", 2))


def test_a_total_is_rounded_in_the_currencys_own_digits() -> None:
    lines = (line("heart", 1, "10.5"),)
    given(pool("heart", None)).when(order(*lines, currency="JPY")).then(
        placed("10.5", 11, *lines, currency="JPY"), taken("heart", 1)
    )


@pytest.mark.parametrize(
    "lines",
    [
        (line("heart", 2, "4000000000000"),),
        (line("heart", 1, "4000000000000"), line("heart", 1, "4000000000000")),
        (line("heart", QUANTITY_MAX, "4000000000000"),),
    ],
)
def test_amounts_larger_than_the_books_can_carry_are_refused(lines: tuple[Line, ...]) -> None:
    given(pool("heart", None)).when(order(*lines)).refused(AmountTooLarge)


def test_two_huge_lines_that_cancel_out_are_refused_line_by_line() -> None:
    lines = (line("heart", -2, "4000000000000"), line("heart", 2, "4000000000000"))
    given(pool("heart", None)).when(giveback(*lines)).refused(AmountTooLarge)


# ── returns ───────────────────────────────────────────────────────────────────────────────────────


def test_what_comes_back_can_be_sold_again() -> None:
    lines = (line("heart", -2, "2.55"),)
    given(pool("heart", 2), taken("heart", 2)).when(giveback(*lines)).then(
        returned("-5.10", -510, *lines), came_back("heart", 2)
    ).when(order(line("heart", 2), order_id=O2)).scenario.when(
        order(line("heart"), order_id=OrderId(UUID(int=9)), digest="d9")
    ).refused(SoldOut)


def test_a_return_may_name_more_than_was_ever_sold_because_it_names_no_order() -> None:
    lines = (line("heart", -5),)
    given(pool("heart", 2)).when(giveback(*lines)).then(
        returned("-5.00", -500, *lines), came_back("heart", 5)
    )


def test_a_positive_line_of_a_return_takes_some_of_it_back_again() -> None:
    lines = (line("heart", -5), line("heart", 2))
    given(pool("heart", 9), taken("heart", 9)).when(giveback(*lines)).then(
        returned("-3.00", -300, *lines), came_back("heart", 3)
    )


def test_a_return_that_takes_more_than_it_brings_needs_the_places() -> None:
    lines = (line("heart", -1), line("heart", 2))
    given(pool("heart", 9), taken("heart", 9)).when(giveback(*lines)).refused(SoldOut)
    given(pool("heart", 10), taken("heart", 9)).when(giveback(*lines)).then(
        returned("1.00", 100, *lines), came_back("heart", -1)
    )


def test_a_return_that_comes_out_even_moves_no_pool() -> None:
    lines = (line("heart", -2, "2.00"), line("heart", 2, "1.00"))
    given(pool("heart", 9)).when(giveback(*lines)).then(returned("-2.00", -200, *lines))


def test_a_pool_over_its_capacity_still_takes_goods_back() -> None:
    damaged = StockAdjusted(
        pool="heart", quantity=-5, reason="damaged", adjustment_id=AdjustmentId(UUID(int=7))
    )
    lines = (line("heart", -1),)
    given(pool("heart", 9), taken("heart", 9), damaged).when(giveback(*lines)).then(
        returned("-1.00", -100, *lines), came_back("heart", 1)
    )


def test_a_return_to_an_unknown_pool_is_refused() -> None:
    given().when(giveback(line("heart", -1))).refused(PoolUnknown)


def test_the_same_credit_note_again_is_empty_and_a_changed_one_is_refused() -> None:
    shop = (
        given(pool("heart", 9))
        .when(giveback(line("heart", -1)))
        .then(returned("-1.00", -100, line("heart", -1)), came_back("heart", 1))
    )
    shop.when(giveback(line("heart", -1))).nothing()
    shop.when(giveback(line("heart", -2), digest="d2")).refused(ReturnExists)


def test_a_refunded_charge_moves_no_pool() -> None:
    lines = (line("POST", -1, "4.00", charge=True),)
    given().when(giveback(*lines)).then(returned("-4.00", -400, *lines))
