"""A database of tables by key: transactions that see what is committed, locks on rows, and nothing durable.

Postgres at READ COMMITTED, as far as our statements can tell the difference: a transaction's writes are its
own until it commits, a row that somebody else has written or locked is waited for, and then looked at anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import errors

Key = tuple[Any, ...]
Row = Any
Lock = tuple[Any, ...]
"""What a lock is on: a table's row, or an advisory key."""
GONE = object()
EPOCH_BEGINS = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Blocked(Exception):
    """Raised before anything is done: a lock is somebody else's. Wait for it, and run the statement again."""

    def __init__(self, lock: Lock, holder: Session) -> None:
        self.lock, self.holder = lock, holder


class Database:
    """Committed rows, and who has locked what."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.tables: defaultdict[str, dict[Key, Row]] = defaultdict(dict)
        self.streams: defaultdict[str, list[int]] = defaultdict(list)
        """Positions by stream (tenant/stream), in order: the index of the table of facts."""
        self.locks: dict[Lock, Session] = {}
        self.waiting: defaultdict[Lock, list[Callable[[], None]]] = defaultdict(list)
        self.tables["head"][()] = (0, 0, 1)
        self.tables["relay"][()] = (0, "", 0, float("-inf"))

    def now(self) -> datetime:
        return EPOCH_BEGINS + timedelta(seconds=self.clock())

    def backup(self) -> dict[str, dict[Key, Row]]:
        return {name: dict(rows) for name, rows in self.tables.items()}

    def restore(self, backup: dict[str, dict[Key, Row]]) -> None:
        """All as it was then, in a new epoch."""
        _, _, epoch = self.tables["head"][()]
        self.tables.clear()
        for name, rows in backup.items():
            self.tables[name] = dict(rows)
        position, at_us, _ = self.tables["head"][()]
        self.tables["head"][()] = (position, at_us, epoch + 1)
        self.streams.clear()
        for (position,), fact in sorted(self.tables["stored_events"].items()):
            self.streams[fact[0]].append(position)

    def unlock(self, lock: Lock) -> None:
        del self.locks[lock]
        for wake in self.waiting.pop(lock, ()):
            wake()


@dataclass(eq=False, slots=True)
class Session:
    """One connection's side of the database."""

    database: Database
    written: dict[tuple[str, Key], Row] = field(default_factory=dict)
    locked: dict[Lock, None] = field(default_factory=dict)
    """Until the transaction ends."""
    advisory: dict[Lock, None] = field(default_factory=dict)
    """Until they are given back, or the session ends."""
    waits_for: Session | None = None

    # ── rows ──────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, table: str, key: Key) -> Row:
        """None if there is none."""
        mine = self.written.get((table, key))
        if mine is None:
            return self.database.tables[table].get(key)
        return None if mine is GONE else mine

    def put(self, table: str, key: Key, row: Row) -> None:
        self.lock((table, *key))
        self.written[table, key] = row

    def delete(self, table: str, key: Key) -> None:
        self.lock((table, *key))
        self.written[table, key] = GONE

    def insert(self, table: str, key: Key, row: Row) -> None:
        """Raises UniqueViolation."""
        self.lock((table, *key))
        if self.get(table, key) is not None:
            raise errors.UniqueViolation(f"duplicate key value in {table}: {key}")
        self.written[table, key] = row

    def scan(self, table: str) -> Iterator[tuple[Key, Row]]:
        mine = {key: row for (name, key), row in self.written.items() if name == table}
        for key, row in self.database.tables[table].items():
            if key not in mine:
                yield key, row
        for key, row in mine.items():
            if row is not GONE:
                yield key, row

    def facts_of(self, stream: str, after: int) -> list[tuple[int, Row]]:
        """(position, row) of a stream's facts past a version, in order; one's own too."""
        stored, database = self.database.tables["stored_events"], self.database
        found = [(at, row) for at in database.streams.get(stream, ()) if (row := stored[(at,)])[1] > after]
        for (table, key), row in self.written.items():
            if table == "stored_events" and row[0] == stream and row[1] > after:
                found.append((key[0], row))
        return found

    def version_of(self, stream: str) -> int | None:
        """Of the last fact that is committed; None without any."""
        positions = self.database.streams.get(stream)
        return None if not positions else self.database.tables["stored_events"][(positions[-1],)][1]

    # ── locks and transactions ────────────────────────────────────────────────────────────────────────────

    def lock(self, lock: Lock) -> None:
        holder = self.database.locks.get(lock)
        if holder is None:
            self.database.locks[lock] = self
            self.locked[lock] = None
        elif holder is not self:
            self._wait(lock, holder)

    def lock_advisory(self, lock: Lock) -> None:
        holder = self.database.locks.get(lock)
        if holder is None:
            self.database.locks[lock] = self
            self.advisory[lock] = None
        elif holder is not self:
            self._wait(lock, holder)

    def _wait(self, lock: Lock, holder: Session) -> None:
        other: Session | None = holder
        while other is not None:
            if other is self:
                raise errors.DeadlockDetected(f"deadlock detected on {lock}")
            other = other.waits_for
        raise Blocked(lock, holder)

    def commit(self) -> None:
        database = self.database
        for (table, key), row in self.written.items():
            if row is GONE:
                database.tables[table].pop(key, None)
            else:
                database.tables[table][key] = row
                if table == "stored_events":
                    database.streams[row[0]].append(key[0])
        self.written = {}
        self.release()

    def rollback(self) -> None:
        self.written = {}
        self.release()

    def release(self) -> None:
        locked, self.locked = self.locked, {}
        for lock in locked:
            self.database.unlock(lock)

    def unlock_advisory(self) -> None:
        advisory, self.advisory = self.advisory, {}
        for lock in advisory:
            self.database.unlock(lock)

    def end(self) -> None:
        """The connection is gone: what was not committed never was."""
        self.waits_for = None
        self.rollback()
        self.unlock_advisory()
