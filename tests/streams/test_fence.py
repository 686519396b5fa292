"""A partition's mark is the fence between owners: the second waits, then goes on from the first's mark."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import psycopg
import pytest

from infra.ledger import Place
from infra.places import topic_of
from infra.readmodel import PostgresUnit
from infra.sinks import Wanted
from projections.ordering import PROJECTION
from streams.projector import Projecting
from tests.streams.line import LEDGER, Line

FOLLOWER = Projecting(PROJECTION)
PLACE: Place = (topic_of(LEDGER, "ordering"), 0)
WANTED: list[Wanted] = [(FOLLOWER, [PLACE])]

Making = Callable[[psycopg.AsyncConnection[Any]], PostgresUnit]


def real(conn: psycopg.AsyncConnection[Any]) -> PostgresUnit:
    return PostgresUnit(conn, "postgres")


class Rolled(Exception):
    """The first owner's unit comes to nothing."""


class Pair:
    """Two owners of one partition, each with a connection of its own."""

    def __init__(self, line: Line, making: Making) -> None:
        self.line, self.making = line, making
        self.first, self.second = line.ledger(), line.ledger()

    async def stand(self, position: int) -> None:
        """The partition has been followed up to here."""
        async with self.first.transaction() as conn:
            unit = self.making(conn)
            await unit.hold(WANTED)
            await unit.mark([(FOLLOWER, 1, {PLACE: position})])

    async def overlap(self, position: int, *, rolled: bool = False) -> int:
        """The first moves the mark in its unit; returns where the second, which began meanwhile, stands."""
        async with asyncio.timeout(30):
            try:
                async with self.first.transaction() as conn:
                    unit = self.making(conn)
                    await unit.hold(WANTED)
                    holding = asyncio.ensure_future(self.hold_second())
                    await self.until_waiting(holding)
                    await unit.mark([(FOLLOWER, 1, {PLACE: position})])
                    await asyncio.sleep(0.1)
                    assert not holding.done(), "the second owner did not wait for the first to end"
                    if rolled:
                        raise Rolled
            except Rolled:
                pass
            return await holding

    async def hold_second(self) -> int:
        async with self.second.transaction() as conn:
            held = await self.making(conn).hold(WANTED)
            return held[FOLLOWER.name].marks[PLACE]

    async def until_waiting(self, holding: asyncio.Future[int]) -> None:
        """Until the second is seen to wait for a lock; one that has its answer by now has not waited."""
        pid = (await self.second.open()).info.backend_pid
        asked = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        while self.line.conn.execute(asked, (pid,)).fetchone() != ("Lock",):
            assert not holding.done(), "the second owner did not wait for the first"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()


def go(line: Line, story: Callable[[Pair], Coroutine[Any, Any, None]], making: Making = real) -> None:
    async def told() -> None:
        pair = Pair(line, making)
        try:
            await story(pair)
        finally:
            await pair.close()

    asyncio.run(told())


async def followed_before(pair: Pair) -> None:
    await pair.stand(3)
    assert await pair.overlap(7) == 7


def test_the_second_of_two_owners_waits_and_then_sees_the_firsts_mark(line: Line) -> None:
    go(line, followed_before)


def test_a_first_owner_that_comes_to_nothing_leaves_the_second_the_old_mark(line: Line) -> None:
    async def story(pair: Pair) -> None:
        await pair.stand(3)
        assert await pair.overlap(7, rolled=True) == 3

    go(line, story)


def test_two_owners_of_a_partition_that_nobody_followed_before_do_the_same(line: Line) -> None:
    async def story(pair: Pair) -> None:
        assert await pair.overlap(7) == 7

    go(line, story)


# ── the proof notices ─────────────────────────────────────────────────────────────────────────────


class Unlocked:
    """A connection on which nothing is read to be held."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)

    async def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        return await self.conn.execute(query.replace("FOR UPDATE OF c", ""), *arguments, **options)


def test_marks_that_are_read_without_being_held_are_caught(line: Line) -> None:
    def unheld(conn: psycopg.AsyncConnection[Any]) -> PostgresUnit:
        return PostgresUnit(cast("psycopg.AsyncConnection[Any]", Unlocked(conn)), "postgres")

    with pytest.raises(AssertionError, match="did not wait for the first"):
        go(line, followed_before, unheld)
