"""The log in Postgres: the eventsourcing library's recorder over our tables, and `handle`'s port on it."""

from __future__ import annotations

import hmac
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.composite import CompositeInfo, register_composite

from commands.handling import Append, Appended, Spent, Stale
from domain.facts import Envelope, Recorded
from infra.mapper import envelope_json, instant, microseconds, recorded_of, rest_of, split

RECONNECT_S_MAX = 15.0
"""How long a command waits for a database that has gone away before it is a fault."""
CONNECT_S_MAX = 5
STATEMENT_MS_MAX = 30_000
LIBRARY_ACTOR = "eventsourcing"
"""The actor of facts appended through the library's own interface, which knows none."""

T = TypeVar("T")
Row = tuple[str, int, int, str, bytes]
"""stream, version, position, name, state"""

APPEND = (
    "SELECT outcome, last_position, fact_count, recorded_us, spent_digest, newer"
    " FROM append(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)"
)
READ = "SELECT stream, version, pos, topic, state FROM read_streams(%b, %b, %b)"
RECORDED = "SELECT stream, version, pos, topic, state FROM read_recorded(%b, %b, %b)"
TURN = "SELECT pg_advisory_lock(key) FROM unnest(%b::bigint[]) WITH ORDINALITY k(key, nth)"
SPENT = "SELECT spent_digest, last_position, fact_count FROM spent_key(%b, %b, %b)"


class LogUnavailable(Exception):
    """A fault: the database could not be reached. What was sent may or may not be recorded; the key tells."""


class Connection:
    """One connection that comes back: each call is tried again until it is answered or time is up."""

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

    def retrying(self, call: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Every call is safe to send twice: reads are, and an append carries its key."""
        deadline = time.monotonic() + RECONNECT_S_MAX
        pause_s = 0.05
        with self.lock:
            while True:
                try:
                    return call(self.open())
                except (psycopg.OperationalError, psycopg.InterfaceError) as lost:
                    self.close()
                    if time.monotonic() + pause_s > deadline:
                        raise LogUnavailable(f"the log's database does not answer: {lost}") from lost
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 1.0)

    def close(self) -> None:
        if self.live is not None:
            self.live.close()
            self.live = None


class PostgresLog:
    """`commands.handling.Log` for one ledger. One connection; calls of several threads take turns."""

    def __init__(self, dsn: str, schema: str, claim_key: bytes) -> None:
        self.connection = Connection(dsn, schema)
        self.claim_key = claim_key

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        if not after:
            return []
        arguments = (tenant, list(after), list(after.values()))
        return self._facts(tenant, READ, arguments)

    def append(self, append: Append) -> Appended | Spent | Stale:
        envelope, written = append.envelope, envelope_json(append.envelope)
        streams = list(append.versions)
        nth_of = {stream: nth for nth, stream in enumerate(streams, 1)}
        arguments = (
            envelope.tenant,
            envelope.actor,
            envelope.key,
            append.digest,
            append.command,
            streams,
            list(append.versions.values()),
            [nth_of[fact.stream] for fact in append.facts],
            [fact.name for fact in append.facts],
            [rest_of(fact, number, written) for number, fact in enumerate(append.facts)],
            microseconds(append.at),
        )
        row = self.connection.retrying(lambda conn: conn.execute(APPEND, arguments, binary=True).fetchone())
        outcome, position, count, at_us, digest, newer = cast(tuple[Any, ...], row)
        if outcome == "spent":
            return Spent(bytes(digest), position, count)
        if outcome == "stale":
            return Stale(tuple(recorded_of(envelope.tenant, *fact) for fact in newer or ()))
        at, version_of = instant(at_us), dict(append.versions)
        facts = []
        for number, fact in enumerate(append.facts):
            version_of[fact.stream] += 1
            place = position - count + 1 + number
            facts.append(Recorded(fact, fact.stream, version_of[fact.stream], place, at, number, envelope))
        return Appended(tuple(facts), position)

    def spent(self, envelope: Envelope) -> Spent | None:
        arguments = (envelope.tenant, envelope.actor, envelope.key)
        row = self.connection.retrying(lambda conn: conn.execute(SPENT, arguments, binary=True).fetchone())
        digest, position, count = cast(tuple[Any, ...], row)
        return None if digest is None else Spent(bytes(digest), position, count)

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        return tuple(self._facts(tenant, RECORDED, (tenant, first, count))) if count else ()

    @contextmanager
    def turn(self, tenant: str, streams: Iterable[str]) -> Iterator[None]:
        """Advisory locks of the session, taken in one order; a lost connection gives them up."""
        keys = sorted({_lock_key(f"{tenant}/{stream}") for stream in streams})
        if not keys:
            yield
            return
        with self.connection.lock:
            self.connection.retrying(lambda conn: conn.execute(TURN, (keys,)))
            try:
                yield
            finally:
                self.connection.retrying(lambda conn: conn.execute("SELECT pg_advisory_unlock_all()"))

    def claim(self, tenant: str, kind: str, value: str) -> str:
        blind = hmac.digest(self.claim_key, f"{tenant}\n{kind}\n{value}".encode(), "sha256").hex()
        return f"claim-{kind}-{blind[:40]}"

    def close(self) -> None:
        self.connection.close()

    def _facts(self, tenant: str, query: str, arguments: Sequence[Any]) -> list[Recorded]:
        rows = self.connection.retrying(
            lambda conn: cast(list[Row], conn.execute(query, arguments, binary=True).fetchall())
        )
        return [recorded_of(tenant, *row) for row in rows]


def _lock_key(name: str) -> int:
    return zlib.crc32(name.encode()) | 1 << 32


class LedgerRecorder(PostgresApplicationRecorder):
    """The library's recorder on a ledger's tables: its readers as they are, appends under the head row."""

    def create_table(self) -> None:
        """Nothing: tables come from migrations."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """All or nothing; raises IntegrityError where a version is taken or would leave a gap."""
        if not stored_events:
            return []
        streams: dict[str, list[int]] = {}
        for event in stored_events:
            streams.setdefault(str(event.originator_id), []).append(event.originator_version)
        tenants = {split(stream)[0] for stream in streams}
        if len(tenants) != 1:
            raise IntegrityError("events of several tenants cannot be appended together")
        for stream, versions in streams.items():
            if versions != list(range(versions[0], versions[0] + len(versions))):
                raise IntegrityError(f"versions of {stream} leave a gap")
        names = list(streams)
        first, last = stored_events[0], stored_events[-1]
        with self.datastore.get_connection() as conn, conn.cursor(binary=True) as cursor:
            row = cursor.execute(
                f"SELECT outcome, last_position FROM {self.datastore.schema}.append"
                "(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)",
                (
                    tenants.pop(),
                    LIBRARY_ACTOR,
                    f"{first.originator_id}:{first.originator_version}:{last.originator_version}",
                    b"",
                    LIBRARY_ACTOR,
                    [split(name)[1] for name in names],
                    [streams[name][0] - 1 for name in names],
                    [names.index(str(event.originator_id)) + 1 for event in stored_events],
                    [event.topic for event in stored_events],
                    [event.state[8:] for event in stored_events],
                    int.from_bytes(stored_events[0].state[:8], "big", signed=True),
                ),
            ).fetchone()
        answer = cast(dict[str, Any], row)
        if answer["outcome"] != "appended":
            raise IntegrityError(f"{answer['outcome']}: a version is taken, or one before it is missing")
        position = int(answer["last_position"])
        return list(range(position - len(stored_events) + 1, position + 1))


def recorder(dsn: str, schema: str) -> LedgerRecorder:
    """The library's view of a ledger, for whoever brings code written against it."""
    parts = conninfo_to_dict(dsn)
    datastore = PostgresDatastore(
        dbname=str(parts["dbname"]),
        host=str(parts["host"]),
        port=str(parts["port"]),
        user=str(parts["user"]),
        password=str(parts.get("password", "")),
        schema=schema,
        originator_id_type="text",
    )
    return LedgerRecorder(datastore)
