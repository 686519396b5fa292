"""Pools: places are taken, held until a deadline, and never more than there are."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest
from pydantic import ValidationError

from commands.capacity import AdjustStock, ConfirmHold, ExpireHold, HoldPlaces, OpenPool, ReleaseHold
from commands.ordering import PlaceOrder
from domain.capacity import (
    AdjustmentExists,
    AdjustmentRecorded,
    HoldAlive,
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    HoldUnknown,
    PlacesHeld,
    PlacesTaken,
    PoolAlreadyOpen,
    PoolOpened,
    PoolUnknown,
    SoldOut,
    StockAdjusted,
)
from domain.catalog import QUANTITY_MAX, AmountTooLarge, Line
from domain.values import AdjustmentId, HoldId, OrderId
from tests.spec import T0, after, document, given, given_id, line

H1, H2 = HoldId(UUID(int=1)), HoldId(UUID(int=2))
ORDER = OrderId(UUID(int=3))
PAPER = AdjustmentId(UUID(int=4))
TEN = PoolOpened(pool="seats", capacity=10)
UNCAPPED = PoolOpened(pool="seats", capacity=None)


def held(hold_id: HoldId = H1, quantity: int = 6, *, at: datetime = T0, until_s: float = 60) -> PlacesHeld:
    return PlacesHeld(pool="seats", hold_id=hold_id, quantity=quantity, at=at, expires_at=after(until_s))


def confirmed(quantity: int = 6, *, at: datetime = T0) -> HoldConfirmed:
    return HoldConfirmed(pool="seats", hold_id=H1, quantity=quantity, at=at)


def taken(quantity: int) -> PlacesTaken:
    return PlacesTaken(pool="seats", quantity=quantity, order_id=ORDER)


def hold(quantity: int = 5, ttl_s: int = 60) -> HoldPlaces:
    return HoldPlaces(pool="seats", quantity=quantity, ttl_s=ttl_s)


CONFIRM, RELEASE, EXPIRE = (
    ConfirmHold(pool="seats", hold_id=H1),
    ReleaseHold(pool="seats", hold_id=H1),
    ExpireHold(pool="seats", hold_id=H1),
)


def test_a_pool_is_opened_once() -> None:
    given().when(OpenPool(pool="seats", capacity=10)).then(TEN).when(OpenPool(pool="seats")).refused(
        PoolAlreadyOpen
    )


@pytest.mark.parametrize("capacity", [-1, QUANTITY_MAX + 1])
def test_a_pool_has_no_capacity_below_zero_or_beyond_counting(capacity: int) -> None:
    with pytest.raises(ValidationError):
        OpenPool(pool="seats", capacity=capacity)


def test_a_pool_of_nothing_refuses_the_first_place() -> None:
    given(PoolOpened(pool="seats", capacity=0)).when(hold(1)).refused(SoldOut)


def test_a_hold_carries_its_deadline() -> None:
    given(TEN).when(hold(6, 900), at=after(5), key="k").then(
        PlacesHeld(
            pool="seats", hold_id=HoldId(given_id("k")), quantity=6, at=after(5), expires_at=after(905)
        )
    )


def test_held_places_are_not_free() -> None:
    given(TEN, held()).when(hold(5), at=after(1)).refused(SoldOut)


def test_what_is_left_beside_a_hold_is_free() -> None:
    given(TEN, held()).when(hold(4), key="k").then(held(HoldId(given_id("k")), 4))


def test_a_hold_is_alive_until_its_deadline() -> None:
    given(TEN, held()).when(CONFIRM, at=after(59.999999)).then(confirmed(at=after(59.999999)))


def test_a_hold_is_dead_at_the_very_instant_whether_or_not_anything_said_so() -> None:
    at = after(60)
    given(TEN, held()).when(hold(10), at=at, key="k").then(
        held(HoldId(given_id("k")), 10, at=at, until_s=120)
    )
    given(TEN, held()).when(CONFIRM, at=at).refused(HoldUnknown)
    given(TEN, held()).when(RELEASE, at=at).refused(HoldUnknown)


def test_a_hold_that_was_said_to_have_expired_frees_the_same_places_once() -> None:
    expired = HoldExpired(pool="seats", hold_id=H1, at=after(60))
    given(TEN, held(), expired).when(hold(11), at=after(61)).refused(SoldOut)
    given(TEN, held(), expired).when(CONFIRM, at=after(61)).refused(HoldUnknown)


def test_a_hold_is_not_said_to_have_expired_before_its_deadline() -> None:
    given(TEN, held()).when(EXPIRE, at=after(59.999999)).refused(HoldAlive)
    given(TEN, held()).when(EXPIRE, at=after(60)).then(HoldExpired(pool="seats", hold_id=H1, at=after(60)))


def test_there_is_nothing_to_say_of_a_hold_that_ended_before() -> None:
    for end in (
        confirmed(at=after(1)),
        HoldReleased(pool="seats", hold_id=H1, at=after(1)),
        HoldExpired(pool="seats", hold_id=H1, at=after(60)),
    ):
        given(TEN, held(), end).when(EXPIRE, at=after(100)).nothing()


def test_each_of_several_holds_that_die_together_is_put_on_record() -> None:
    one = HoldExpired(pool="seats", hold_id=H1, at=after(60))
    other = HoldExpired(pool="seats", hold_id=H2, at=after(60))
    both = (TEN, held(), held(H2, 1))
    given(*both, other).when(EXPIRE, at=after(60)).then(one)
    given(*both, other, one).when(EXPIRE, at=after(61)).nothing()
    given(TEN, held(), held(H2, 1, at=after(60), until_s=99)).when(EXPIRE, at=after(60)).then(one)


def test_a_confirmed_hold_is_sold_for_good() -> None:
    given(TEN, held(), confirmed()).when(hold(5), at=after(9_999)).refused(SoldOut)
    given(TEN, held(), confirmed()).when(CONFIRM).refused(HoldUnknown)
    given(TEN, held(), confirmed()).when(RELEASE).refused(HoldUnknown)


def test_a_released_hold_gives_its_places_back() -> None:
    released = HoldReleased(pool="seats", hold_id=H1, at=after(1))
    given(TEN, held()).when(RELEASE, at=after(1)).then(released).when(hold(10), at=after(1), key="k").then(
        held(HoldId(given_id("k")), 10, at=after(1), until_s=61)
    )


def test_an_uncapped_pool_refuses_nothing() -> None:
    given(UNCAPPED, taken(QUANTITY_MAX)).when(hold(QUANTITY_MAX), key="k").then(
        held(HoldId(given_id("k")), QUANTITY_MAX)
    )


def test_a_pool_that_is_not_open_is_unknown() -> None:
    given().when(hold()).refused(PoolUnknown)
    given().when(CONFIRM).refused(HoldUnknown)


@pytest.mark.parametrize(
    ("quantity", "ttl_s"), [(0, 60), (-1, 60), (1, 0), (1, 86_401), (QUANTITY_MAX + 1, 60)]
)
def test_a_hold_is_of_something_and_for_at_most_a_day(quantity: int, ttl_s: int) -> None:
    with pytest.raises(ValidationError):
        hold(quantity, ttl_s)


# ── adjustments ───────────────────────────────────────────────────────────────────────────────────


def adjust(*lines: Line, digest: str = "d1") -> AdjustStock:
    return AdjustStock(adjustment_id=PAPER, document=document("A1", digest=digest), lines=lines)


def adjusted(quantity: int) -> StockAdjusted:
    return StockAdjusted(pool="seats", quantity=quantity, reason="seats title", adjustment_id=PAPER)


def recorded(*lines: Line) -> AdjustmentRecorded:
    return AdjustmentRecorded(adjustment_id=PAPER, document=document("A1"), lines=lines)


def test_an_adjustment_changes_the_stock_line_by_line() -> None:
    lines = (line("seats", -3), line("seats", 0), line("seats", 1))
    given(TEN).when(adjust(*lines)).then(recorded(*lines), adjusted(-3), adjusted(1))


def test_stock_that_was_written_off_cannot_be_sold_and_found_stock_can() -> None:
    given(TEN, adjusted(-3)).when(hold(8)).refused(SoldOut)
    given(TEN, adjusted(3)).when(hold(13), key="k").then(held(HoldId(given_id("k")), 13))


def test_an_adjustment_may_leave_a_pool_over_its_capacity_because_it_says_what_is() -> None:
    given(TEN, taken(9)).when(adjust(line("seats", -5))).then(recorded(line("seats", -5)), adjusted(-5))


def test_the_same_adjustment_again_is_nothing_and_another_under_its_number_is_refused() -> None:
    once = given(TEN).when(adjust(line("seats", -3))).then(recorded(line("seats", -3)), adjusted(-3))
    once.when(adjust(line("seats", -3))).nothing()
    once.when(adjust(line("seats", -4), digest="d2")).refused(AdjustmentExists)


def test_a_charge_moves_no_pool_and_needs_none() -> None:
    lines = (line("POST", -1, charge=True),)
    given().when(adjust(*lines)).then(recorded(*lines))


def test_an_adjustment_of_an_unknown_pool_is_refused_whole() -> None:
    given(TEN).when(adjust(line("seats", -1), line("nowhere", -1))).refused(PoolUnknown)


def test_an_adjustment_beyond_what_the_books_carry_is_refused() -> None:
    given(TEN).when(adjust(line("seats", QUANTITY_MAX, "4000000.00"))).refused(AmountTooLarge)


def test_selling_outright_and_holding_share_the_same_places() -> None:
    order = PlaceOrder(order_id=ORDER, document=document(), lines=(line("seats", 5),), settled=True)
    given(TEN, held()).when(order, at=after(59)).refused(SoldOut)
    assert given(TEN, held()).when(order, at=after(60)).answer is not None
