"""What stands for psycopg: connections that block a fiber, and connections that a task awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from infra import connection
from tests.simulation.process import PROCESS
from tests.simulation.server import Backend, Server
from tests.simulation.sql import Result, decoded

CONNECT_S = 0.002


class Cursor:
    def __init__(self, result: Result) -> None:
        self.rows, self.rowcount = iter(result.rows), result.count

    def fetchone(self) -> Any:
        return next(self.rows, None)

    def fetchall(self) -> list[Any]:
        return list(self.rows)


class Blocking:
    """A psycopg.Connection in autocommit."""

    def __init__(self, server: Server) -> None:
        server.loop.fibers.sleep(server.chance.delay_s(CONNECT_S))
        self.server, self.backend = server, Backend(server)

    @property
    def closed(self) -> bool:
        return self.backend.closed

    def execute(self, text: str, parameters: Sequence[Any] | None = None, *, binary: bool = False) -> Cursor:
        return Cursor(self.server.loop.fibers.block(self.backend.ask(text, parameters)))

    def close(self) -> None:
        self.backend.close()


def prepared(statement: connection.Statement, conn: Any, parameters: Sequence[bytes]) -> list[Any]:
    """`infra.connection.Statement.rows`, for connections that are no psycopg.Connection."""
    given = [decoded(oid, each) for oid, each in zip(statement.oids, parameters, strict=True)]
    rows: list[Any] = conn.execute(statement.sql.decode(), given).fetchall()
    return rows


def connections(server: Server) -> type[connection.Connection]:
    """`infra.connection.Connection`, but for where it connects to."""

    class Connected(connection.Connection):
        def __init__(self, dsn: str, schema: str) -> None:
            super().__init__(dsn, schema)
            self.process = PROCESS.get()

        def open(self) -> Any:
            if self.process is not None and not self.process.alive:  # its stacks unwind: nobody is asked
                raise psycopg.OperationalError("the process is dead")
            if self.live is None or self.live.closed:
                self.live = Blocking(server)  # type: ignore[assignment]
            return self.live

    return Connected


class AsyncCursor:
    """Of a connection that is awaited; its rows are there at once."""

    def __init__(self, result: Result) -> None:
        self.rows, self.rowcount = iter(result.rows), result.count

    async def fetchone(self) -> Any:
        return next(self.rows, None)

    async def fetchall(self) -> list[Any]:
        return list(self.rows)

    def __aiter__(self) -> AsyncCursor:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self.rows)
        except StopIteration:
            raise StopAsyncIteration from None


class Awaited:
    """A psycopg.AsyncConnection in autocommit; one statement at a time, whoever asks."""

    def __init__(self, server: Server) -> None:
        self.server, self.backend = server, Backend(server)
        self.lock = asyncio.Lock()

    @property
    def closed(self) -> bool:
        return self.backend.closed

    async def execute(
        self, text: str, parameters: Sequence[Any] | None = None, *, binary: bool = False
    ) -> AsyncCursor:
        async with self.lock:
            return AsyncCursor(await self._answered(self.backend.ask(text, parameters)))

    async def executemany(self, text: str, each: Sequence[Sequence[Any]]) -> None:
        async with self.lock:
            await self._answered(self.backend.ask_many(text, each))

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[Awaited]:
        yield self

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[None]:
        """Each statement is waited for all the same: a refusal shows at its statement, never later."""
        yield

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction; inside of one, a savepoint."""
        backend, session = self.backend, self.backend.session
        if backend.closed:
            raise psycopg.OperationalError("the connection is closed")
        before = dict(session.written)
        backend.transactions += 1
        try:
            yield
        except BaseException:
            backend.transactions -= 1
            if not backend.closed:
                session.written, backend.failed = before, False
                if not backend.transactions:
                    session.rollback()
            raise
        if backend.transactions > 1:
            backend.transactions -= 1
            return
        async with self.lock:
            backend.transactions = 0
            await self._answered(backend.commit())

    async def _answered(self, asked: asyncio.Future[Result]) -> Result:
        try:
            return await asked
        except asyncio.CancelledError:  # the connection is in nobody knows what state
            self.backend.close()
            raise

    async def close(self) -> None:
        self.backend.close()


def connecting(server: Server) -> Callable[[str, str], Any]:
    """`infra.ledger.connect`."""

    async def connect(dsn: str, schema: str) -> Awaited:
        await asyncio.sleep(server.chance.delay_s(CONNECT_S))
        return Awaited(server)

    return connect
