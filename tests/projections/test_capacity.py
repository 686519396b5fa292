"""Pools, what moved in them, and the holds that are on record."""

from __future__ import annotations

from datetime import timedelta

from domain.capacity import (
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    PoolOpened,
    StockAdjusted,
)
from projections.capacity import HOLDS, POOL_UNITS, POOLS
from tests.domain.samples import ADJUSTMENT, HOLD, ORDER, RETURN
from tests.projections.tables import after
from tests.spec import T0

OPENED = PoolOpened(pool="a", capacity=40)
UNTIL = T0 + timedelta(minutes=15)
HELD = PlacesHeld(pool="a", hold_id=HOLD, quantity=2, at=T0, expires_at=UNTIL)


def test_an_open_pool_is_a_row_with_its_ceiling_or_none() -> None:
    assert after(OPENED, PoolOpened(pool="b", capacity=None)).rows(POOLS) == [
        {"pool": "a", "capacity": 40},
        {"pool": "b", "capacity": None},
    ]


def test_what_is_taken_returned_and_adjusted_is_summed_apart() -> None:
    shown = after(
        OPENED,
        PlacesTaken(pool="a", quantity=6, order_id=ORDER),
        PlacesTaken(pool="a", quantity=3, order_id=ORDER),
        PlacesReturned(pool="a", quantity=2, return_id=RETURN),
        StockAdjusted(pool="a", quantity=-4, reason="damaged", adjustment_id=ADJUSTMENT),
    )
    assert shown.row(POOL_UNITS) == {"pool": "a", "taken": 9, "returned": 2, "adjusted": -4}


def test_a_hold_is_a_row_until_it_ends_and_counts_as_taken_only_when_confirmed() -> None:
    shown = after(OPENED, HELD)
    assert shown.row(HOLDS) == {"hold_id": HOLD, "pool": "a", "quantity": 2, "expires_at": UNTIL}
    assert shown.rows(POOL_UNITS) == []
    confirmed = after(OPENED, HELD, HoldConfirmed(pool="a", hold_id=HOLD, quantity=2, at=T0))
    assert confirmed.rows(HOLDS) == []
    assert confirmed.row(POOL_UNITS)["taken"] == 2


def test_a_hold_that_was_released_or_expired_leaves_nothing_behind() -> None:
    for end in (HoldReleased(pool="a", hold_id=HOLD, at=T0), HoldExpired(pool="a", hold_id=HOLD, at=UNTIL)):
        shown = after(OPENED, HELD, end)
        assert shown.rows(HOLDS) == []
        assert shown.rows(POOL_UNITS) == []
