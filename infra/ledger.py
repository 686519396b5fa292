"""A ledger as those who follow it see it: facts by position, the relay's desk, checkpoints, what is due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from infra.mapper import StoredFact

Place = tuple[str, int]
"""(topic, partition)"""

PAGE_FACTS = 4_000
CONNECT_S_MAX = 5
STATEMENT_MS_MAX = 60_000
LEASE_S = 5.0
"""A relay that is silent for this long is taken for dead; the fence keeps it harmless if it is not."""

DATABASE_FAULTS = (psycopg.OperationalError, psycopg.InterfaceError)
"""The database went away; worth waiting for."""

HEAD = "SELECT position, epoch, closed IS NOT DISTINCT FROM 'moved' FROM head"
FACTS = (
    "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
    " WHERE notification_id > %b AND notification_id <= %b"
)


class Deposed(Exception):
    """Another relay has taken over; this one must stop."""


async def connect(dsn: str, schema: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(
        dsn,
        autocommit=True,
        prepare_threshold=0,
        connect_timeout=CONNECT_S_MAX,
        options=f"-c search_path={schema} -c statement_timeout={STATEMENT_MS_MAX}",
        tcp_user_timeout=STATEMENT_MS_MAX,
    )


@dataclass(frozen=True, slots=True)
class Head:
    position: int
    epoch: int
    moved: bool = False
    """To another database: whoever still follows this one has to stop."""


@dataclass(frozen=True, slots=True)
class Due:
    """A command to issue at an instant."""

    key: str
    tenant: str
    at: datetime
    command: str
    body: dict[str, Any]
    causation: UUID
    correlation: UUID


class Ledger:
    """One connection in the worker's role; opened when first needed, and again after it was lost."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema
        self.live: psycopg.AsyncConnection[Any] | None = None
        self.opening = asyncio.Lock()

    async def open(self) -> psycopg.AsyncConnection[Any]:
        async with self.opening:
            if self.live is None or self.live.closed:
                self.live = await connect(self.dsn, self.schema)
            return self.live

    async def close(self) -> None:
        if self.live is not None:
            await self.live.close()
            self.live = None

    @asynccontextmanager
    async def transaction(self, *, pipelined: bool = False) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Pipelined: a statement is sent without waiting for the one before, and fails at the latest here."""
        conn = await self.open()
        async with conn.pipeline() if pipelined else nullcontext(), conn.transaction():
            yield conn

    # ── facts ─────────────────────────────────────────────────────────────────────────────────────

    async def head(self) -> Head:
        conn = await self.open()
        row = await (await conn.execute(HEAD)).fetchone()
        assert row is not None
        return Head(*row)

    async def facts(self, after: int, through: int, limit: int = PAGE_FACTS) -> list[StoredFact]:
        """By position, gap-free: what is visible here is all there is up to its last position."""
        conn = await self.open()
        cursor = await conn.execute(
            f"{FACTS} ORDER BY notification_id LIMIT %b", (after, through, limit), binary=True
        )
        return [StoredFact(*row) for row in await cursor.fetchall()]

    async def facts_of(self, context: str, after: int, through: int) -> list[StoredFact]:
        """One context's facts in a range of positions."""
        conn = await self.open()
        cursor = await conn.execute(
            f"{FACTS} AND topic >= %b AND topic < %b ORDER BY notification_id",
            (after, through, f"{context}.", f"{context}/"),
            binary=True,
        )
        return [StoredFact(*row) for row in await cursor.fetchall()]

    async def facts_at(self, positions: Sequence[int]) -> list[StoredFact]:
        conn = await self.open()
        cursor = await conn.execute(
            "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
            " WHERE notification_id = ANY(%b) ORDER BY notification_id",
            (list(positions),),
            binary=True,
        )
        return [StoredFact(*row) for row in await cursor.fetchall()]

    # ── the relay's desk ──────────────────────────────────────────────────────────────────────────

    async def take_over(self) -> int | None:
        """Become the active relay and return one's fence, or None while another's lease runs."""
        conn = await self.open()
        row = await (
            await conn.execute(
                "UPDATE relay SET fence = fence + 1,"
                " lease_until = clock_timestamp() + %s * interval '1 second'"
                " WHERE lease_until < clock_timestamp() RETURNING fence",
                (LEASE_S,),
            )
        ).fetchone()
        return None if row is None else int(row[0])

    async def relayed(self) -> tuple[int, str, dict[Place, int]]:
        """(through, broker, last position published in each partition)"""
        conn = await self.open()
        row = await (await conn.execute("SELECT through, broker FROM relay")).fetchone()
        assert row is not None
        heads = await (
            await conn.execute("SELECT topic, partition, last_position FROM relay_head")
        ).fetchall()
        return row[0], row[1], {(topic, partition): last for topic, partition, last in heads}

    async def advance(
        self, fence: int, through: int, heads: dict[Place, int], broker: str | None = None
    ) -> None:
        """Say what is published, and renew the lease. Raises Deposed."""
        async with self.transaction() as conn:
            cursor = await conn.execute(
                "UPDATE relay SET through = greatest(through, %s), broker = coalesce(%s, broker),"
                " lease_until = clock_timestamp() + %s * interval '1 second' WHERE fence = %s",
                (through, broker, LEASE_S, fence),
            )
            if cursor.rowcount == 0:
                raise Deposed
            if heads:
                places = sorted(heads)
                await conn.execute(
                    "INSERT INTO relay_head SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[])"
                    " ON CONFLICT (topic, partition) DO UPDATE"
                    " SET last_position = greatest(relay_head.last_position, excluded.last_position)",
                    ([t for t, _ in places], [p for _, p in places], [heads[place] for place in places]),
                )

    async def resign(self, fence: int) -> None:
        conn = await self.open()
        await conn.execute("UPDATE relay SET lease_until = '-infinity' WHERE fence = %s", (fence,))

    async def oldest_checkpoint(self) -> int:
        """Everything after this is still missed by some projection, as far as it was ever published."""
        conn = await self.open()
        row = await (
            await conn.execute(
                "SELECT min(c.position) FROM checkpoints c JOIN relay_head h USING (topic, partition)"
                " LEFT JOIN projections p USING (engine, name)"
                " WHERE c.version = coalesce(p.version, 1) AND c.position < h.last_position"
            )
        ).fetchone()
        through = (await self.relayed())[0]
        return through if row is None or row[0] is None else min(int(row[0]), through)

    async def parked(self, limit: int) -> list[dict[str, Any]]:
        """The oldest facts that some follower could not take, of all tenants."""
        conn = await self.open()
        cursor = await conn.execute(
            "SELECT engine, name, stream, position, reason FROM parked ORDER BY position, name LIMIT %s",
            (limit,),
        )
        names = ("engine", "projection", "stream", "position", "reason")
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    # ── what is due ───────────────────────────────────────────────────────────────────────────────

    async def due(self, limit: int) -> list[Due]:
        conn = await self.open()
        cursor = await conn.execute(
            "SELECT key, tenant, at, command, body, causation, correlation FROM due"
            " WHERE at <= clock_timestamp() ORDER BY at LIMIT %s",
            (limit,),
        )
        return [Due(*row) for row in await cursor.fetchall()]

    async def next_due(self) -> datetime | None:
        conn = await self.open()
        row = await (await conn.execute("SELECT min(at) FROM due")).fetchone()
        return None if row is None else row[0]

    async def done(self, due: Sequence[Due]) -> None:
        conn = await self.open()
        await conn.execute(
            "DELETE FROM due USING unnest(%s::text[], %s::text[]) d(tenant, key)"
            " WHERE (due.tenant, due.key) = (d.tenant, d.key)",
            ([d.tenant for d in due], [d.key for d in due]),
        )

    async def set_due(self, due: Sequence[Due]) -> None:
        conn = await self.open()
        async with conn.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO due (key, tenant, at, command, body, causation, correlation)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [(d.key, d.tenant, d.at, d.command, Jsonb(d.body), d.causation, d.correlation) for d in due],
            )
