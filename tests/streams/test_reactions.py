"""Reactions: each fact is answered exactly once in effect, by a command that says what it answers."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

import pytest

from commands.capacity import OpenPool
from commands.catalog import ListOffer
from commands.handling import Command
from domain.capacity import PlacesHeld
from domain.catalog import OfferListed
from domain.facts import Recorded
from domain.ordering import OrderPlaced
from domain.payments import PaymentRecorded
from domain.values import HoldId, Permission
from streams.reactions import Deadline, Reaction, ReactionSink
from tests.spec import ANA, T0
from tests.streams.broken import Crash, Hooked, crash
from tests.streams.line import LEDGER, Line
from tests.streams.test_projector import ORDERS, go, order_id, place, right


@pytest.fixture
def sold(line: Line) -> Line:
    place(line, range(ORDERS))
    return line


def recorded(line: Line, name: str) -> list[Recorded]:
    return [fact.recorded() for fact in line.stored() if fact.name == name]


def mirror(number: int = 1) -> Reaction:
    """Opens a pool of its own for each offer, and a second one if asked."""

    def react(fact: Recorded) -> list[Command | Deadline]:
        match fact.event:
            case OfferListed(offer=offer):
                return [OpenPool(pool=f"{offer}-mirror{nth}") for nth in range(number)]
            case _:
                return []

    return Reaction("mirror", (OfferListed,), frozenset({Permission.POOL_OPEN}), react)


def mirrored(line: Line) -> set[str]:
    return {f.originator_id for f in line.stored() if "-mirror" in f.originator_id}


def test_a_settled_order_is_answered_by_its_payment_once(sold: Line) -> None:
    async def story() -> None:
        async with sold.projecting("reaction") as projector:
            for _ in range(3):
                await projector.take(sold.runs())
        right(sold, "reaction")
        assert len(sold.payments()) == ORDERS

    go(story())


def test_a_crash_after_the_commands_asks_them_again_under_the_same_keys(sold: Line) -> None:
    async def story() -> None:
        async with sold.projecting("reaction") as projector:
            projector.sink = Hooked(projector.sink, before_mark=crash)
            with pytest.raises(Crash):
                await projector.take(sold.runs())
            assert len(sold.payments()) == ORDERS
            assert not any(sold.marks("reaction").values())
        async with sold.projecting("reaction") as projector:
            await projector.take(sold.runs())
        right(sold, "reaction")

    go(story())


def test_an_answer_names_the_fact_it_answers_and_the_command_that_began_it(sold: Line) -> None:
    async def story() -> None:
        async with sold.projecting("reaction") as projector:
            await projector.take(sold.runs())
        orders = {
            r.event.order_id: r for r in recorded(sold, OrderPlaced.name) if isinstance(r.event, OrderPlaced)
        }
        for answer in recorded(sold, PaymentRecorded.name):
            assert isinstance(answer.event, PaymentRecorded)
            order = orders[answer.event.paper]  # type: ignore[index]
            assert answer.envelope.causation == order.fact_id
            assert answer.envelope.correlation == order.envelope.command_id
            assert answer.envelope.actor == "reaction:payments"
            assert answer.envelope.key == str(uuid5(order.fact_id, "payments"))

    go(story())


def test_keys_differ_by_reaction_and_by_command() -> None:
    first, second = mirror(), Reaction("late", (OfferListed,), frozenset(), lambda fact: [])
    fact_id = UUID(int=1)
    assert len({first.key(fact_id, 0), first.key(fact_id, 1), second.key(fact_id, 0)}) == 3


def test_an_answer_keeps_the_correlation_it_was_given(line: Line) -> None:

    async def story() -> None:
        line.handler().handle(
            ListOffer(offer="x", title="x"),
            by=ANA,
            key="began",
            correlation=UUID(int=7),
        )
        async with line.projecting("reaction", [from_start(mirror())]) as projector:
            await projector.take(line.runs())
        (answer,) = [r for r in (fact.recorded() for fact in line.stored()) if "-mirror" in r.stream]
        assert answer.envelope.correlation == UUID(int=7)

    go(story())


def from_start(reaction: Reaction) -> Reaction:
    return Reaction(reaction.name, reaction.events, reaction.permissions, reaction.react, from_start=True)


def test_a_new_reaction_starts_at_the_head_and_takes_the_very_next_fact(line: Line) -> None:
    async def story() -> None:
        line.handler().handle(ListOffer(offer="old", title="x"), by=ANA, key="old")
        line.publish()
        async with line.projecting("reaction", [mirror()]) as projector:
            assert isinstance(projector.sink, ReactionSink)
            await projector.sink.enlist(LEDGER, [mirror()])
            line.handler().handle(ListOffer(offer="new", title="x"), by=ANA, key="new")
            line.publish()  # and the relay is faster than the worker
            await projector.take(line.runs())
            await projector.sink.enlist(LEDGER, [mirror()])  # starting again changes nothing
            line.handler().handle(ListOffer(offer="newer", title="x"), by=ANA, key="newer")
            await projector.take(line.runs())
        assert mirrored(line) == {"acme/pool-new-mirror0", "acme/pool-newer-mirror0"}

    go(story())


def test_one_that_says_so_starts_at_the_start(line: Line) -> None:
    async def story() -> None:
        line.handler().handle(ListOffer(offer="old", title="x"), by=ANA, key="old")
        async with line.projecting("reaction", [from_start(mirror(2))]) as projector:
            assert isinstance(projector.sink, ReactionSink)
            await projector.sink.enlist(LEDGER, [from_start(mirror(2))])
            await projector.take(line.runs())
        assert mirrored(line) == {"acme/pool-old-mirror0", "acme/pool-old-mirror1"}

    go(story())


def test_a_refused_answer_parks_its_stream_until_it_is_no_longer_refused(line: Line) -> None:
    async def story() -> None:
        line.handler().handle(ListOffer(offer="one", title="x"), by=ANA, key="one")
        line.handler().handle(OpenPool(pool="one-mirror0"), by=ANA, key="first")
        line.handler().handle(ListOffer(offer="two", title="x"), by=ANA, key="two")
        async with line.projecting("reaction", [from_start(mirror())]) as projector:
            await projector.take(line.runs())
            ((_, stream, _, reason),) = line.parked()
            assert stream == "acme/offer-one"
            assert reason == "OpenPool refused: PoolAlreadyOpen"
            assert "acme/pool-two-mirror0" in mirrored(line)
            assert await projector.drain() == 0
            assert len(line.parked()) == 1

    go(story())


def test_a_hold_asks_for_its_end_on_the_day(line: Line) -> None:
    async def story() -> None:
        hold = PlacesHeld(
            pool="a", hold_id=HoldId(order_id(5)), quantity=1, at=T0, expires_at=T0 + timedelta(seconds=60)
        )
        line.given(hold)
        async with line.projecting("reaction") as projector:
            for _ in range(2):
                await projector.take(line.runs())
        (row,) = line.conn.execute("SELECT tenant, at, command, body, causation FROM due").fetchall()
        (fact,) = recorded(line, PlacesHeld.name)
        assert row[:3] == ("acme", hold.expires_at, "ExpireHold")
        assert row[3] == {"pool": "a", "hold_id": str(hold.hold_id)}
        assert row[4] == fact.fact_id

    go(story())
