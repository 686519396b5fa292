"""A connection that comes back: each call is tried again until it is answered or time is up."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult
from psycopg.types.composite import CompositeInfo, register_composite

RECONNECT_S_MAX = 15.0
"""How long a command waits for a database that has gone away before it is a fault."""
CONNECT_S_MAX = 5
STATEMENT_MS_MAX = 30_000

T = TypeVar("T")


class LogUnavailable(Exception):
    """A fault: the database could not be reached. What was sent may or may not be recorded; the key tells."""


class LedgerMoved(LogUnavailable):
    """A fault: this ledger moves, or has moved, to another database. Send it again later, under its key."""


class Statement:
    """Prepared once a connection and sent without the driver's cursor: half of the processor time.

    Parameters are `$1`, `$2`, ... of these types (oids), given as bytes in Postgres' binary format.
    """

    def __init__(self, sql: str, oids: Sequence[int]) -> None:
        self.sql, self.oids = sql.encode(), list(oids)
        self.name = f"counterfoil_{zlib.crc32(self.sql):08x}".encode()
        self.formats = [pq.Format.BINARY] * len(self.oids)
        self.prepared_on: WeakSet[psycopg.Connection[Any]] = WeakSet()

    def rows(self, conn: psycopg.Connection[Any], parameters: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Blocks, and lets other threads go on meanwhile. Raises psycopg's own errors."""
        if conn not in self.prepared_on:
            self._checked(conn, conn.pgconn.prepare(self.name, self.sql, self.oids))
            self.prepared_on.add(conn)
        result = conn.pgconn.exec_prepared(self.name, parameters, self.formats, pq.Format.BINARY)
        self._checked(conn, result)
        reading = Transformer(conn)
        reading.set_pgresult(result)
        return reading.load_rows(0, result.ntuples, tuple)

    def _checked(self, conn: psycopg.Connection[Any], result: PGresult) -> None:
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            if conn.pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError(result.get_error_message())
            raise error_from_result(result)


class Connection:
    """One connection; calls of several threads take turns."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema
        self.live: psycopg.Connection[Any] | None = None
        self.lock = threading.RLock()

    def open(self) -> psycopg.Connection[Any]:
        if self.live is None or self.live.closed:
            self.live = psycopg.connect(
                self.dsn,
                autocommit=True,
                prepare_threshold=0,
                connect_timeout=CONNECT_S_MAX,
                options=f"-c search_path={self.schema} -c statement_timeout={STATEMENT_MS_MAX}",
                tcp_user_timeout=STATEMENT_MS_MAX,
            )
            info = CompositeInfo.fetch(self.live, f"{self.schema}.newer_fact")
            if info is not None:
                register_composite(info, self.live)
        return self.live

    def retrying(self, call: Callable[[psycopg.Connection[Any]], T], *, once: bool = False) -> T:
        """Every call is safe to send twice: an append carries its key. Raises LogUnavailable."""
        deadline = time.monotonic() + RECONNECT_S_MAX
        pause_s = 0.05
        with self.lock:
            while True:
                try:
                    return call(self.open())
                except (psycopg.OperationalError, psycopg.InterfaceError) as lost:
                    self.close()
                    if once or time.monotonic() + pause_s > deadline:
                        raise LogUnavailable(f"the log's database does not answer: {lost}") from lost
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 1.0)

    def close(self) -> None:
        if self.live is not None:
            self.live.close()
            self.live = None
