"""A connection that comes back: each call is tried again until it is answered or time is up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.types.composite import CompositeInfo, register_composite

RECONNECT_S_MAX = 15.0
"""How long a command waits for a database that has gone away before it is a fault."""
CONNECT_S_MAX = 5
STATEMENT_MS_MAX = 30_000

T = TypeVar("T")


class LogUnavailable(Exception):
    """A fault: the database could not be reached. What was sent may or may not be recorded; the key tells."""


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
