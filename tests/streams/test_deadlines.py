"""Deadlines: what is due is asked for once, however many tick; a refusal is an answer too."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from commands.capacity import ConfirmHold, HoldPlaces
from domain.capacity import HoldExpired, PlacesHeld
from domain.facts import Recorded
from infra.ledger import Due
from streams.deadlines import tick
from tests.spec import ANA
from tests.streams.line import Line
from tests.streams.test_projector import go, place
from tests.streams.test_reactions import recorded

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
TODAY = datetime.now(UTC)


@pytest.fixture
def held(line: Line) -> Line:
    """A place held in each of three pools, long ago by the database's clock, their ends on the agenda."""
    place(line, range(0))
    handler = line.handler(LONG_AGO)
    for pool in ("a", "b", "c"):
        handler.handle(HoldPlaces(pool=pool, quantity=1, ttl_s=60), by=ANA, key=f"hold-{pool}")

    async def react() -> None:
        async with line.projecting("reaction") as projector:
            await projector.take(line.runs())

    go(react())
    assert waiting(line) == 3
    return line


def waiting(line: Line) -> int:
    row = line.conn.execute("SELECT count(*) FROM due").fetchone()
    assert row is not None
    return int(row[0])


def expired(line: Line) -> list[Recorded]:
    return recorded(line, HoldExpired.name)


def test_an_expired_hold_is_put_on_record_and_leaves_the_agenda(held: Line) -> None:
    async def story() -> None:
        ledger = held.ledger()
        assert await tick(ledger, held.handler(TODAY)) == 3
        assert await tick(ledger, held.handler(TODAY)) == 0
        await ledger.close()
        assert len(expired(held)) == 3
        assert waiting(held) == 0
        holds = {hold.stream: hold for hold in recorded(held, PlacesHeld.name)}
        for end in expired(held):
            hold = holds[end.stream]
            assert end.envelope.causation == hold.fact_id
            assert end.envelope.correlation == hold.envelope.command_id
            assert end.envelope.actor == "deadlines"

    go(story())


def test_two_tickers_have_one_effect(held: Line) -> None:
    async def story() -> None:
        one, other = held.ledger(), held.ledger()
        await asyncio.gather(
            *(tick(ledger, held.handler(TODAY)) for ledger in (one, other) for _ in range(2))
        )
        await one.close()
        await other.close()
        assert len(expired(held)) == 3
        assert waiting(held) == 0

    go(story())


class Dies:
    """An agenda whose ticker is killed before it can cross anything out."""

    def __init__(self, due: list[Due]) -> None:
        self.found = due

    async def due(self, limit: int) -> list[Due]:
        return self.found

    async def done(self, due: object) -> None:
        raise ConnectionError("killed")


def test_a_ticker_killed_before_it_crossed_anything_out_is_repeated_without_effect(held: Line) -> None:
    async def story() -> None:
        ledger = held.ledger()
        with pytest.raises(ConnectionError):
            await tick(Dies(await ledger.due(10)), held.handler(TODAY))
        assert waiting(held) == 3
        await tick(ledger, held.handler(TODAY))
        await ledger.close()
        assert len(expired(held)) == 3
        assert waiting(held) == 0

    go(story())


def test_a_hold_that_was_confirmed_in_time_has_no_end(held: Line) -> None:
    async def story() -> None:
        first = recorded(held, PlacesHeld.name)[0]
        assert isinstance(first.event, PlacesHeld)
        confirm = ConfirmHold(pool="a", hold_id=first.event.hold_id)
        held.handler(LONG_AGO + timedelta(seconds=30)).handle(confirm, by=ANA, key="confirm")
        ledger = held.ledger()
        await tick(ledger, held.handler(TODAY))
        await ledger.close()
        assert len(expired(held)) == 2
        assert waiting(held) == 0

    go(story())


def test_what_is_refused_is_dropped(held: Line) -> None:
    """The ticker's own clock is behind the database's: the hold is alive to the rule, which has the say."""

    async def story() -> None:
        ledger = held.ledger()
        await tick(ledger, held.handler(LONG_AGO))
        await ledger.close()
        assert not expired(held)
        assert waiting(held) == 0

    go(story())


def test_nothing_is_due_before_its_time(held: Line) -> None:
    async def story() -> None:
        held.conn.execute("UPDATE due SET at = now() + interval '1 hour'")
        ledger = held.ledger()
        assert await tick(ledger, held.handler(TODAY)) == 0
        await ledger.close()
        assert waiting(held) == 3

    go(story())
