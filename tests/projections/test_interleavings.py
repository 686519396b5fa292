"""Streams interleave as they like; the tables do not notice. A projection that does is caught."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from commands.handling import Command
from commands.ordering import PlaceOrder
from domain.facts import Recorded
from domain.ordering import OrderPlaced
from domain.registry import EVENTS
from domain.values import OrderId, Value
from projections import ordering
from projections.registry import PROJECTIONS
from projections.rows import Projection, Put, RowOp, Table
from tests.projections.histories import facts_of, folded, history, interleaved, steps
from tests.spec import document, line

Steps = list[tuple[str, Command | str]]


@given(taken=steps, seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_any_interleaving_that_keeps_each_streams_order_gives_the_same_tables(
    taken: Steps, seed: int
) -> None:
    facts = facts_of(history(taken))
    for projection in PROJECTIONS:
        indifferent(projection, facts, seed)


@given(taken=steps, seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_an_interleaving_keeps_every_fact_and_each_streams_order(taken: Steps, seed: int) -> None:
    facts = facts_of(history(taken))
    shuffled = interleaved(facts, random.Random(seed))
    assert sorted(fact.position for fact in shuffled) == [fact.position for fact in facts]
    for stream in {(fact.tenant, fact.stream) for fact in facts}:
        versions = [fact.version for fact in shuffled if (fact.tenant, fact.stream) == stream]
        assert versions == sorted(versions)


def test_the_histories_come_to_every_fact_there_is() -> None:
    """Else the property above would say nothing about some."""
    seen: set[str] = set()

    @given(taken=steps)
    @settings(max_examples=250, phases=[Phase.generate], deadline=None, database=None, derandomize=True)
    def look(taken: Steps) -> None:
        seen.update(fact.event.name for fact in facts_of(history(taken)))

    look()
    assert seen == set(EVENTS)


def indifferent(projection: Projection, facts: list[Recorded], seed: int) -> None:
    """The suite's own assertion."""
    shuffled = interleaved(facts, random.Random(seed))
    assert folded(shuffled, [projection]).tables == folded(facts, [projection]).tables, projection.name


# ── negative control ──────────────────────────────────────────────────────────────────────────────


LINES = (line("85123A", 1, "2.55"),)


class LastOrderRow(Value):
    customer: str
    document: str


LAST_ORDERS = Table("last_orders", LastOrderRow, ("customer",))


def last_order(recorded: Recorded) -> list[RowOp]:
    """Wrong: facts of many streams put one row."""
    match recorded.event:
        case OrderPlaced(document=paper) if paper.customer is not None:
            return [Put(LAST_ORDERS, LastOrderRow(customer=paper.customer, document=paper.number))]
        case _:
            return []


BROKEN = Projection("last_orders", (OrderPlaced,), (LAST_ORDERS,), last_order)


def test_control_a_row_that_several_streams_put_is_caught() -> None:
    orders: Steps = [
        (
            "acme",
            PlaceOrder(order_id=OrderId(UUID(int=n)), document=document(f"{n}"), lines=LINES, settled=True),
        )
        for n in range(4)
    ]
    facts = facts_of(history(orders))

    def hold(projection: Projection) -> None:
        for seed in range(50):
            indifferent(projection, facts, seed)

    hold(ordering.PROJECTION)
    with pytest.raises(AssertionError):
        hold(BROKEN)
