"""One ledger behind several logs, in memory and in Postgres: what the handler's tests run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg

from commands import log as port
from commands.log import Append, Outcome, Pending, Settled, Spent
from commands.snapshots import Form, Recalled, Snapshot
from domain.facts import Envelope, Recorded
from infra.eventstore import PostgresLog
from infra.memory import MemoryLog
from infra.migrate import admin_dsn, schema_of
from infra.settings import Settings

CLAIM_KEY = b"a claim key of the tests' own"


class Log(port.Log, Protocol):
    """What both logs have beyond what `handle` needs."""

    def append(self, append: Append) -> Outcome:
        """Submit it, and wait."""
        ...

    def spent(self, envelope: Envelope) -> Spent | None: ...


def settle(log: Log) -> None:
    """Wait until what was asked to be kept is kept."""
    if isinstance(log, PostgresLog):
        log.snapshots.thread.submit(lambda: None).result()


class Ledger(Protocol):
    """May be opened many times, as by many processes."""

    def open(self) -> Log:
        """A log of one's own on this ledger: another connection, where there are any."""
        ...

    def cut(self, position: int) -> None:
        """Restore: forget everything past this position."""
        ...

    def raise_epoch(self) -> None:
        """As whoever restores has to."""
        ...

    def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.log = MemoryLog()

    def open(self) -> MemoryLog:
        return self.log

    def cut(self, position: int) -> None:
        del self.log.rows[position:]
        for positions in self.log.streams.values():
            positions[:] = [kept for kept in positions if kept <= position]
        for key, spent in list(self.log.keys.items()):
            if spent.position > position:
                del self.log.keys[key]

    def raise_epoch(self) -> None:
        self.log.epoch += 1

    def close(self) -> None:
        """Nothing is open."""


class InPostgres:
    def __init__(self, settings: Settings) -> None:
        self.settings, self.schema = settings, schema_of(settings)
        self.opened: list[PostgresLog] = []

    def open(self) -> PostgresLog:
        log = PostgresLog(self.settings.role_dsn("app"), self.schema, CLAIM_KEY)
        self.opened.append(log)
        return log

    def cut(self, position: int) -> None:
        with self.admin() as conn:
            conn.execute("DELETE FROM stored_events WHERE notification_id > %s", (position,))
            conn.execute("DELETE FROM commands WHERE first_position + facts - 1 > %s", (position,))
            conn.execute("UPDATE head SET position = %s", (position,))

    def raise_epoch(self) -> None:
        with self.admin() as conn:
            conn.execute("UPDATE head SET epoch = epoch + 1")

    def empty(self) -> None:
        """As migrated: no facts, no keys, and no time has passed."""
        self.cut(0)
        with self.admin() as conn:
            conn.execute("DELETE FROM commands")
            conn.execute("DELETE FROM state_snapshots")
            conn.execute("UPDATE head SET at_us = 0, epoch = 1")

    @contextmanager
    def admin(self) -> Iterator[psycopg.Connection[Any]]:
        """The database's administrator, whom no wall stops, standing in the ledger."""
        with connected(admin_dsn(self.settings), self.schema) as conn:
            yield conn

    def close(self) -> None:
        for log in self.opened:
            log.close()


@contextmanager
def connected(dsn: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True, options=f"-c search_path={schema}") as conn:
        yield conn


def database(dsn: str) -> str:
    return urlsplit(dsn).path.strip("/")


class Around:
    """A log that passes everything on: what the tests' meddling variants start from."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @property
    def epoch(self) -> int:
        return self.log.epoch

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        return self.log.read(tenant, after)

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        return self.log.recall(tenant, wanted)

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        self.log.keep(tenant, take)

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> Settled:
        return Settled(self.append(append))

    def append(self, append: Append) -> Outcome:
        return self.log.append(append)

    def spent(self, envelope: Envelope) -> Spent | None:
        return self.log.spent(envelope)

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        return self.log.recorded(tenant, first, count)

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        return self.log.turn(tenant, streams)

    def claim(self, tenant: str, kind: str, value: str) -> str:
        return self.log.claim(tenant, kind, value)


class Watched(Around):
    """Keeps the account of every call."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.reads: list[dict[str, int]] = []
        self.appends: list[Append] = []
        self.turns: list[tuple[str, ...]] = []

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        self.reads.append(dict(after))
        return super().read(tenant, after)

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        self.reads.append(dict.fromkeys(wanted, 0))
        return super().recall(tenant, wanted)

    def append(self, append: Append) -> Outcome:
        self.appends.append(append)
        return super().append(append)

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        waited_for = tuple(streams)
        if waited_for:
            self.turns.append(waited_for)
        return super().turn(tenant, waited_for)


class Overtaken(Watched):
    """Somebody else is faster, that many times: `other` runs before an append gets through."""

    def __init__(self, log: Log, times: int, other: Callable[[int], None]) -> None:
        super().__init__(log)
        self.times, self.other = times, other

    def append(self, append: Append) -> Outcome:
        if self.times:
            self.times -= 1
            self.other(self.times)
        return super().append(append)
