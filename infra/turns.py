"""Turns: the writers of a contended stream wait for each other, instead of overtaking each other.

A turn is an advisory lock of a session of its own. The callers of one process share it for a moment, so that
what they decide is recorded together; whoever comes later waits behind the other processes.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from infra.arrays import Ints8
from infra.connection import Connection, LogUnavailable

SHARED_S = 0.02
"""How long others of the process may still join a turn: a few commits."""
TAKE = "SELECT pg_advisory_lock(key) FROM unnest(%b) WITH ORDINALITY k(key, nth)"
GIVE_BACK = "SELECT pg_advisory_unlock_all()"

Keys = tuple[int, ...]


@dataclass(slots=True)
class Shared:
    connection: Connection
    members: int = 1
    ready: threading.Event = field(default_factory=threading.Event)
    failed: LogUnavailable | None = None
    since_s: float = 0.0

    def open(self) -> bool:
        """Whether one may still join."""
        return not self.ready.is_set() or (self.failed is None and time.monotonic() - self.since_s < SHARED_S)


class Turns:
    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema
        self.guard = threading.Lock()
        self.shared: dict[Keys, Shared] = {}
        self.idle: list[Connection] = []

    @contextmanager
    def take(self, streams: Iterable[str]) -> Iterator[None]:
        """Wait, and keep the turn until the end of the block. Raises LogUnavailable."""
        keys = tuple(sorted({zlib.crc32(stream.encode()) | 1 << 32 for stream in streams}))
        if not keys:
            yield
            return
        shared = self._enter(keys)
        try:
            yield
        finally:
            self._leave(keys, shared)

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()

    def _enter(self, keys: Keys) -> Shared:
        with self.guard:
            shared = self.shared.get(keys)
            joined = shared is not None and shared.open()
            if shared is None or not joined:
                connection = self.idle.pop() if self.idle else Connection(self.dsn, self.schema)
                shared = self.shared[keys] = Shared(connection)
            else:
                shared.members += 1
        if not joined:
            try:  # in one order, so that nobody waits in a circle
                shared.connection.retrying(lambda conn: conn.execute(TAKE, (Ints8(keys),), binary=True))
            except LogUnavailable as failed:
                shared.failed = failed
            except BaseException as ended:
                shared.failed = LogUnavailable("whoever waited for the turn was stopped")
                shared.ready.set()
                self._leave(keys, shared)
                raise ended
            shared.since_s = time.monotonic()
            shared.ready.set()
        shared.ready.wait()
        if shared.failed is not None:
            self._leave(keys, shared)
            raise shared.failed
        return shared

    def _leave(self, keys: Keys, shared: Shared) -> None:
        with self.guard:
            shared.members -= 1
            if shared.members:
                return
            if self.shared.get(keys) is shared:
                del self.shared[keys]
        if shared.failed is None:
            try:
                shared.connection.retrying(lambda conn: conn.execute(GIVE_BACK), once=True)
            except LogUnavailable:  # the session is gone, and its locks with it
                shared.connection.close()
        else:
            shared.connection.close()
        with self.guard:
            self.idle.append(shared.connection)
