"""A ledger as its followers see it: no fact is ever skipped, and the relay's desk has one owner."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest

from commands.catalog import ListOffer
from commands.handling import Handler
from infra.eventstore import PostgresLog
from infra.groupcommit import APPEND, Asked, Batch, Ticket
from infra.ledger import PAGE_FACTS, Ledger
from infra.migrate import admin_dsn, schema_of
from infra.settings import Settings
from tests.ledgers import CLAIM_KEY, InPostgres, connected
from tests.spec import ANA, T0


def go(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


@pytest.fixture
def settings(stored: InPostgres) -> Settings:
    return stored.settings


def ledger(settings: Settings) -> Ledger:
    return Ledger(settings.role_dsn("worker"), schema_of(settings))


def write(settings: Settings, name: str, count: int = 20) -> None:
    log = PostgresLog(settings.role_dsn("app"), schema_of(settings), CLAIM_KEY)
    handler = Handler(log, lambda: T0)
    for number in range(count):
        handler.handle(ListOffer(offer=f"{name}{number}", title="x"), by=ANA, key=f"{name}-{number}")
    log.close()


def test_pages_join_up_and_end_at_the_head(settings: Settings) -> None:
    write(settings, "a")

    async def story() -> None:
        following = ledger(settings)
        head = await following.head()
        assert head.position == 40
        assert PAGE_FACTS > 40
        found: list[int] = []
        while len(found) < head.position:
            found += [fact.position for fact in await following.facts(len(found), head.position, limit=7)]
        assert found == list(range(1, 41))
        await following.close()

    go(story())


def test_one_contexts_facts_are_those_of_its_name_and_no_longer_one(settings: Settings) -> None:
    write(settings, "a", 3)

    async def story() -> None:
        following = ledger(settings)
        catalog = await following.facts_of("catalog", 0, 100)
        assert [fact.position for fact in catalog] == [1, 3, 5]
        assert [fact.position for fact in await following.facts_of("catalog", 1, 4)] == [3]
        assert await following.facts_of("cata", 0, 100) == []
        assert [fact.position for fact in await following.facts_at([6, 2, 99])] == [2, 6]
        await following.close()

    go(story())


def test_two_that_ask_at_once_share_one_connection(settings: Settings) -> None:
    async def story() -> None:
        following = ledger(settings)
        one, other = await asyncio.gather(following.open(), following.open())
        assert one is other
        await following.close()

    go(story())


def test_a_lost_connection_is_opened_again(settings: Settings) -> None:
    async def story() -> None:
        following = ledger(settings)
        await following.head()
        with psycopg.connect(admin_dsn(settings), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'counterfoil_worker' AND datname = current_database()"
            )
        with pytest.raises(psycopg.OperationalError):
            await following.head()
        assert (await following.head()).position == 0
        await following.close()

    go(story())


# ── whoever reads the tail ────────────────────────────────────────────────────────────────────────

Append = Callable[[psycopg.Connection[Any], str], None]
TAIL = "SELECT {position} FROM {table} WHERE {position} > %s ORDER BY {position}"


class Reader:
    """Reads what is new, as a relay does: from the last position it saw."""

    def __init__(self, conn: psycopg.Connection[Any], table: str, position: str) -> None:
        self.conn, self.query = conn, TAIL.format(table=table, position=position)
        self.seen: list[int] = []

    def look(self) -> None:
        last = self.seen[-1] if self.seen else 0
        self.seen += [position for (position,) in self.conn.execute(self.query.encode(), (last,))]


def gap_free(seen: list[int], written: int) -> None:
    """The suite's own assertion."""
    assert seen == list(range(1, written + 1))


def overlapping(settings: Settings, append: Append, reader: Reader) -> None:
    """Two writers: the first commits last, or makes the other wait. The reader looks in between."""
    dsn, schema = admin_dsn(settings), schema_of(settings)
    with connected(dsn, schema) as slow, connected(dsn, schema) as quick:
        slow.execute("BEGIN")
        append(slow, "slow")
        second = threading.Thread(target=append, args=(quick, "quick"))
        second.start()
        second.join(0.5)
        reader.look()
        slow.execute("COMMIT")
        second.join()
        reader.look()


def through_the_function(conn: psycopg.Connection[Any], name: str) -> None:
    stream, batch = f"acme/offer-{name}", Batch()
    facts = [(stream, "catalog.offer-listed", b"state")]
    batch.take(Asked("acme", "ana", name, b"", "c", 0, True, {stream: 0}, facts, (), Ticket()))
    APPEND.rows(conn, batch.arguments(1, stamped=True))


def by_insert(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute("INSERT INTO unordered (name) VALUES (%s)", (name,))


@pytest.fixture
def admin(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connected(admin_dsn(settings), schema_of(settings)) as conn:
        yield conn


def test_a_reader_of_the_tail_skips_nothing_however_writers_overlap(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    reader = Reader(admin, "stored_events", "notification_id")
    overlapping(settings, through_the_function, reader)
    gap_free(reader.seen, 2)


def test_control_a_tail_ordered_by_insert_is_caught(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    """Positions from a sequence are given out when a row is inserted, and seen when it commits."""
    admin.execute("CREATE TABLE unordered (position bigint GENERATED ALWAYS AS IDENTITY, name text)")
    try:
        reader = Reader(admin, "unordered", "position")
        overlapping(settings, by_insert, reader)
        with pytest.raises(AssertionError):
            gap_free(reader.seen, 2)
    finally:
        admin.execute("DROP TABLE unordered")


def test_a_follower_among_many_writers_sees_every_position_once(settings: Settings) -> None:
    async def story() -> None:
        following = ledger(settings)
        writers = [asyncio.ensure_future(asyncio.to_thread(write, settings, name, 15)) for name in "stuv"]
        seen: list[int] = []
        while len(seen) < 4 * 15 * 2:
            head = await following.head()
            seen += [fact.position for fact in await following.facts(len(seen), head.position)]
            assert seen == list(range(1, head.position + 1))
        await asyncio.gather(*writers)
        await following.close()

    go(story())


# ── the relay's desk ──────────────────────────────────────────────────────────────────────────────


def test_where_the_relay_is_never_goes_back(stored: InPostgres) -> None:
    async def story() -> None:
        with stored.admin() as conn:
            conn.execute("UPDATE relay SET through = 0, broker = '', fence = 0, lease_until = '-infinity'")
        desk = ledger(stored.settings)
        fence = await desk.take_over()
        assert fence == 1
        await desk.advance(fence, 9, {("t", 0): 9, ("t", 1): 4}, "b")
        await desk.advance(fence, 5, {("t", 0): 5})
        assert await desk.relayed() == (9, "b", {("t", 0): 9, ("t", 1): 4})
        await desk.resign(fence)
        assert await desk.take_over() == fence + 1
        await desk.close()
        with stored.admin() as conn:
            conn.execute("UPDATE relay SET through = 0, broker = '', fence = 0, lease_until = '-infinity'")
            conn.execute("DELETE FROM relay_head")

    go(story())


def test_the_oldest_checkpoint_is_that_of_whoever_misses_most(stored: InPostgres) -> None:
    async def story() -> None:
        desk = ledger(stored.settings)
        with stored.admin() as conn:
            conn.execute("UPDATE relay SET through = 50")
            conn.execute("INSERT INTO relay_head VALUES ('t', 0, 40), ('t', 1, 50)")
            assert await desk.oldest_checkpoint() == 50
            conn.execute(
                "INSERT INTO checkpoints VALUES ('postgres', 'ordering', 1, 't', 0, 40),"
                " ('postgres', 'ordering', 1, 't', 1, 30), ('postgres', 'ordering', 9, 't', 1, 1),"
                " ('reaction', 'payments', 1, 't', 1, 20), ('postgres', 'catalog', 1, 't', 0, 5)"
            )
            assert await desk.oldest_checkpoint() == 5
            conn.execute("DELETE FROM checkpoints WHERE name = 'catalog'")
            assert await desk.oldest_checkpoint() == 20
            conn.execute("DELETE FROM checkpoints")
            conn.execute("DELETE FROM relay_head")
            conn.execute("UPDATE relay SET through = 0")
        await desk.close()

    go(story())
