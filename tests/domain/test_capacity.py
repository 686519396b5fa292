"""A pool counts its holds without looking at each: it has to come to what a plain look comes to."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.capacity import (
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    Pool,
    PoolOpened,
    SoldOut,
)
from domain.values import HoldId
from tests.spec import T0, after

CAPACITY = 40
steps = st.lists(
    st.tuples(
        st.sampled_from(["hold", "confirm", "release", "expire"]),
        st.integers(0, 9),
        st.integers(1, 5),
        st.integers(0, 20),
    ),
    max_size=40,
)


def plainly_left(pool: Pool, now: datetime) -> int:
    """By a look at every hold."""
    assert pool.capacity is not None
    return (
        pool.capacity
        - pool.used
        - sum(hold.quantity for hold in pool.holds.values() if hold.expires_at > now)
    )


def left(pool: Pool, now: datetime) -> int:
    """By what a sale of one too many is told."""
    with pytest.raises(SoldOut) as refused:
        pool.require_places("p", 10_000, now)
    return int(str(refused.value).split(": ")[1].split(" left")[0])


@given(steps)
def test_places_left_are_what_a_look_at_every_hold_says(taken: list[tuple[str, int, int, int]]) -> None:
    pool, clock = Pool(), 0.0
    pool.apply(PoolOpened(pool="p", capacity=CAPACITY))
    for nth, (what, which, quantity, seconds) in enumerate(taken):
        clock += seconds / 4
        now, hold_id = after(clock), HoldId(UUID(int=which))
        known = pool.holds.get(hold_id)
        if what == "hold" and known is None:
            held = HoldId(UUID(int=which + 10 * nth))
            ends = after(clock + seconds + 1)
            pool.apply(PlacesHeld(pool="p", hold_id=held, quantity=quantity, at=now, expires_at=ends))
        elif what == "confirm" and known is not None:
            pool.apply(HoldConfirmed(pool="p", hold_id=hold_id, quantity=known.quantity, at=now))
        elif what == "release":
            pool.apply(HoldReleased(pool="p", hold_id=hold_id, at=now))
        elif what == "expire":
            pool.apply(HoldExpired(pool="p", hold_id=hold_id, at=now))
        for later in (now, after(clock + 3), after(clock + 100)):
            assert left(pool, later) == max(plainly_left(pool, later), 0)


def test_a_hold_that_ended_early_does_not_end_again_at_its_deadline() -> None:
    pool = Pool()
    pool.apply(PoolOpened(pool="p", capacity=2))
    one, two = HoldId(UUID(int=1)), HoldId(UUID(int=2))
    pool.apply(PlacesHeld(pool="p", hold_id=one, quantity=1, at=T0, expires_at=after(10)))
    pool.apply(HoldReleased(pool="p", hold_id=one, at=after(1)))
    pool.apply(PlacesHeld(pool="p", hold_id=two, quantity=1, at=after(11), expires_at=after(20)))
    assert (pool.held, pool.dead, left(pool, after(12)), left(pool, after(20))) == (1, set(), 1, 2)
