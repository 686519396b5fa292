"""A log, those who write it by schedule, and those who follow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from eventsourcing.persistence import PersistenceError
from psycopg import pq
from psycopg.errors import error_from_result
from psycopg.generators import execute

from infra.eventstore import LedgerRecorder, recorder
from infra.groupcommit import APPEND, Asked, Batch, Ticket
from infra.ledger import DATABASE_FAULTS, Ledger
from tests.infra.proofs.schedules import Schedule, Step

PATIENCE_S = 20
WRITERS_MAX = 6
PAGE_FACTS = 2
"""So small that a page ends between one writer's facts."""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE usename = 'counterfoil_worker' AND datname = current_database()"
)

Conn = psycopg.AsyncConnection[Any]
Fact = tuple[int, str, int]
"""position, stream, version"""


class Writing(Protocol):
    """How facts get into a log, inside a transaction that the writer holds open."""

    locked: bool

    async def append(self, conn: Conn, stream: str, count: int) -> None: ...


class ThroughTheFunction:
    """As every writer of Counterfoil does, but that nobody of those would hold a transaction open."""

    locked = True

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch

    async def append(self, conn: Conn, stream: str, count: int) -> None:
        batch = Batch()
        facts = [(stream, "proof.written", b"")] * count
        batch.take(Asked("acme", "ana", stream, b"", "Write", 0, True, {stream: 0}, facts, (), Ticket()))
        arguments, binary = batch.arguments(self.epoch, stamped=True), pq.Format.BINARY
        conn.pgconn.send_query_params(APPEND.sql, arguments, APPEND.oids, APPEND.formats, binary)
        (answer,) = await conn.wait(execute(conn.pgconn))  # and others go on meanwhile
        if answer.status != pq.ExecStatus.TUPLES_OK:
            raise error_from_result(answer)
        assert answer.get_value(0, 0) == b"all", answer.get_value(0, 0)


class BySequence:
    """The negative control, which is how everybody begins: positions from a bigserial, and no head row."""

    locked = False

    async def append(self, conn: Conn, stream: str, count: int) -> None:
        await conn.execute(
            "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
            " SELECT %s, n, 'proof.written', '' FROM generate_series(1, %s) n",
            (stream, count),
        )


@dataclass
class Writers:
    """Transactions held open, moved on step by step; each writer has a stream of its own."""

    writing: Writing
    free: list[Conn]
    observer: Conn
    committed: list[tuple[str, int]] = field(default_factory=list)
    """stream and version, in the order of commits"""
    begun: int = 0
    open_now: list[tuple[Conn, asyncio.Task[None], str, int]] = field(default_factory=list)
    """Those who have appended, then those who wait for it."""

    async def step(self, step: Step) -> None:
        if step.act == "append":
            await self._append()
            return
        conn, appending, stream, count = self.open_now.pop(step.nth)
        if not appending.done():
            await self.observer.execute("SELECT pg_cancel_backend(%s)", (conn.info.backend_pid,))
            with suppress(psycopg.errors.QueryCanceled):
                await appending
        if step.act == "commit":
            await conn.execute("COMMIT")
            self.committed += [(stream, version) for version in range(1, count + 1)]
        else:
            await conn.execute("ROLLBACK")
        self.free.append(conn)
        await self._somebody_has_appended()

    async def settle(self) -> None:
        """Nobody's transaction stays open."""
        while self.open_now:
            await self.step(Step("rollback"))

    async def _append(self) -> None:
        self.begun += 1
        stream, count, conn = f"acme/proof-{self.begun}", 1 + self.begun % 3, self.free.pop()
        await conn.execute("BEGIN")
        appending = asyncio.create_task(self.writing.append(conn, stream, count))
        self.open_now.append((conn, appending, stream, count))
        if not self.writing.locked:
            await appending
            return
        await self._somebody_has_appended()
        async with asyncio.timeout(PATIENCE_S):  # a step is done when the server has it
            while await self._waiting() != len(self.open_now) - 1:
                continue

    async def _somebody_has_appended(self) -> None:
        """Whoever the server let in is the first of the open ones: writers are alike."""
        if not self.open_now or not self.writing.locked:
            return
        appending = {task for _, task, _, _ in self.open_now}
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(appending, return_when=asyncio.FIRST_COMPLETED)
        self.open_now.sort(key=lambda each: not each[1].done())
        for _, task, _, _ in self.open_now[1:]:
            assert not task.done(), "two have appended at the same time"
        await self.open_now[0][1]

    async def _waiting(self) -> int:
        row = await (await self.observer.execute(WAITING)).fetchone()
        assert row is not None
        return int(row[0])


class Relay:
    """The reader that the relay is made of."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.ledger = Ledger(dsn, schema)

    async def page(self, after: int) -> Sequence[Fact]:
        head = await self.ledger.head()
        facts = await self.ledger.facts(after, head.position, PAGE_FACTS)
        return [(fact.position, fact.originator_id, fact.version) for fact in facts]

    async def close(self) -> None:
        await self.ledger.close()


class Stock:
    """The eventsourcing library's own reader."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.recorder: LedgerRecorder = recorder(dsn, schema)

    async def page(self, after: int) -> Sequence[Fact]:
        found = self.recorder.select_notifications(after + 1, PAGE_FACTS)
        return [(each.id, str(each.originator_id), each.originator_version) for each in found]

    async def close(self) -> None:
        self.recorder.close()


class Follower:
    """Delivers, then notes how far it is, and begins where it has noted: what it dies with comes again, and
    has to come again the same."""

    def __init__(self, reader: Relay | Stock, killer: Conn | None = None) -> None:
        self.reader, self.killer = reader, killer
        self.noted = self.kills = 0
        self.delivered: dict[int, tuple[str, int]] = {}

    async def look(self) -> None:
        """All there is; by whoever kills killed at each page, once before it is noted and once after."""
        struck = False
        while page := await self._page():
            for position, stream, version in page:
                before = self.delivered.setdefault(position, (stream, version))
                assert before == (stream, version), "what was read is read as something else"
            if not struck:
                struck = await self._killed()
                if struck:
                    continue
            self.noted, struck = page[-1][0], False
            await self._killed()

    async def _page(self) -> Sequence[Fact]:
        try:
            return await self.reader.page(self.noted)
        except (*DATABASE_FAULTS, PersistenceError):
            return await self.reader.page(self.noted)

    async def _killed(self) -> bool:
        if self.killer is None:
            return False
        await self.killer.execute(KILL)
        self.kills += 1
        return True


@dataclass
class Stage:
    writers: Writers
    followers: list[Follower]
    judged: int = 0

    async def play(self, schedule: Schedule) -> None:
        """Each follower looks after each step. Raises AssertionError at the first that is wrong."""
        for step in schedule:
            await self.take(step)
            self.judge()

    async def take(self, step: Step) -> None:
        await self.writers.step(step)
        for follower in self.followers:
            await follower.look()

    def judge(self) -> None:
        """Delivered = committed, in the order of commits and without a gap, at this very step."""
        committed = self.writers.committed
        for follower in self.followers:
            assert len(follower.delivered) == len(committed), "delivered is not what was committed"
            for position in range(self.judged + 1, len(committed) + 1):
                assert follower.delivered.get(position) == committed[position - 1], "another order"
        self.judged = len(committed)


@asynccontextmanager
async def connections(dsn: str, schema: str, count: int) -> AsyncIterator[list[Conn]]:
    options = f"-c search_path={schema} -c synchronous_commit=off"
    opened = [
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0, options=options)
        for _ in range(count)
    ]
    try:
        yield list(opened)
    finally:
        for conn in opened:
            await conn.close()
