"""Reading a whole ledger: in pages, the next one fetched while this one is looked at."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql

from infra.audit.findings import AuditBusy
from infra.ledger import FACTS, Ledger, connect
from infra.mapper import StoredFact

PAGE_FACTS = 5_000
FETCH_ROWS = 5_000
CONCERNING = f"{FACTS} AND (topic = ANY(%b) OR NOT topic = ANY(%b)) ORDER BY notification_id LIMIT %b"


@asynccontextmanager
async def audit_lock(dsn: str, schema: str, *, alone: bool) -> AsyncIterator[None]:
    """Shared by verifications, held alone by a rebuild; it goes with the connection. Raises AuditBusy."""
    conn = await connect(dsn, schema)
    try:
        key = zlib.crc32(f"audit of {schema}".encode()) | 2 << 32
        call = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        row = await (await conn.execute(sql.SQL("SELECT {}(%s)").format(sql.SQL(call)), (key,))).fetchone()
        if row is None or not row[0]:
            other = "another audit" if alone else "a rebuild"
            raise AuditBusy(f"{other} is at work in {schema}; try again when it is done")
        yield
    finally:
        await conn.close()


async def ahead(
    page_after: Callable[[int], Awaitable[list[StoredFact]]], after: int
) -> AsyncIterator[list[StoredFact]]:
    """Pages until there are no more, each asked for while the one before it is worked on."""
    coming = asyncio.ensure_future(page_after(after))
    try:
        while page := await coming:
            coming = asyncio.ensure_future(page_after(page[-1].position))
            yield page
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def pages(ledger: Ledger, after: int, through: int) -> AsyncIterator[list[StoredFact]]:
    """Every fact in a range of positions."""
    return ahead(lambda position: ledger.facts(position, through, PAGE_FACTS), after)


def pages_of(
    ledger: Ledger, names: Iterable[str], known: Iterable[str], after: int, through: int
) -> AsyncIterator[list[StoredFact]]:
    """The facts of these names, and those whose name nobody knows."""
    mine, anybodys = list(names), list(known)

    async def page_after(position: int) -> list[StoredFact]:
        conn = await ledger.open()
        arguments = (position, through, mine, anybodys, PAGE_FACTS)
        cursor = await conn.execute(CONCERNING, arguments, binary=True)
        return [StoredFact(*row) for row in await cursor.fetchall()]

    return ahead(page_after, after)


class HeldRows:
    """A cursor that outlives its transaction, read in its order up to a bound."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], name: str) -> None:
        self.conn, self.name = conn, name
        self.waiting: list[tuple[Any, ...]] = []
        self.at = 0
        self.over = False

    async def upto(self, column: int, bound: int) -> list[tuple[Any, ...]]:
        """The rows not yet handed out whose column is at most `bound`; rows come in that column's order."""
        found: list[tuple[Any, ...]] = []
        while True:
            while self.at < len(self.waiting):
                row = self.waiting[self.at]
                if row[column] > bound:
                    return found
                found.append(row)
                self.at += 1
            if not await self.more():
                return found

    async def more(self) -> bool:
        """Fetch the next rows; False at the end."""
        if not self.over:
            fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(FETCH_ROWS), sql.Identifier(self.name))
            self.waiting = await (await self.conn.execute(fetch, binary=True)).fetchall()
            self.at = 0
            self.over = not self.waiting
        return not self.over

    async def every(self) -> AsyncIterator[tuple[Any, ...]]:
        """All rows not yet handed out."""
        while True:
            for row in self.waiting[self.at :]:
                yield row
            self.waiting, self.at = [], 0
            if not await self.more():
                return
