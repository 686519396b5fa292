"""The log in Postgres: `handle`'s port on it, and the eventsourcing library's recorder on the same tables."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
from eventsourcing import persistence as library
from eventsourcing.persistence import IntegrityError, Notification, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from commands.log import Append, Appended, Outcome, Overloaded, Pending, Spent, Stale, Undone
from commands.snapshots import Base, Form, Recalled, Snapshot
from domain.facts import Envelope, Recorded
from infra.connection import Connection, LogUnavailable
from infra.groupcommit import Asked, Group, Newer, Ticket, Verdict
from infra.mapper import envelope_json, instant, microseconds, recorded_of, rest_of, split
from infra.reads import Reads
from infra.snapshots import Snapshots, base_of
from infra.turns import Turns

LIBRARY_ACTOR = "eventsourcing"
"""The actor of facts appended through the library's own interface, which knows none."""
LIBRARY_TENANT = "eventsourcing"
"""Whose keys they spend when they belong to no tenant."""
EVENTS = "stored_events"
"""A ledger's table by its library name, and the channel on which the library's subscriptions listen."""

RECORDED = "SELECT stream, version, pos, topic, state FROM read_recorded(%b, %b, %b)"
SPENT = "SELECT spent_digest, last_position, fact_count FROM spent_key(%b, %b, %b)"


class LogTicket:
    """An append in the queue, told in the words of the port."""

    __slots__ = ("append", "ticket")

    def __init__(self, append: Append) -> None:
        self.append, self.ticket = append, Ticket()

    @property
    def settled(self) -> bool:
        return self.ticket.settled

    @property
    def failed(self) -> bool:
        return self.ticket.failed

    def result(self) -> Outcome:
        return self._told(self.ticket.wait())

    def __await__(self) -> Generator[Any, Any, Outcome]:
        return self._told((yield from self.ticket.waiting()))

    def _told(self, verdict: Verdict) -> Outcome:
        match verdict.outcome:
            case "appended":
                return Appended(self._recorded(verdict), verdict.last_position)
            case "spent":
                return Spent(bytes(verdict.spent_digest), verdict.last_position, verdict.fact_count)
            case "stale":
                tenant = self.append.envelope.tenant
                return Stale(tuple(recorded_of(tenant, *fact) for fact in verdict.newer))
            case "restored":
                return Stale(())
            case _:
                return Undone()

    def _recorded(self, verdict: Verdict) -> tuple[Recorded, ...]:
        append, version_of = self.append, dict(self.append.versions)
        at, first = instant(verdict.recorded_us), verdict.last_position - verdict.fact_count + 1
        facts = []
        for number, fact in enumerate(append.facts):
            stream = fact.stream
            version = version_of[stream] = version_of[stream] + 1
            facts.append(Recorded(fact, stream, version, first + number, at, number, append.envelope))
        return tuple(facts)


class PostgresLog:
    """`commands.log.Log` for one ledger: one connection for reading, one on which all callers' appends go."""

    def __init__(self, dsn: str, schema: str, claim_key: bytes) -> None:
        self.connection = Connection(dsn, schema)
        self.group = Group(Connection(dsn, schema), (schema, EVENTS), stamped=True)
        self.reads, self.turns = Reads(self.connection), Turns(dsn, schema)
        self.snapshots = Snapshots(dsn, schema)
        self.claim_key = claim_key

    @property
    def epoch(self) -> int:
        return self.group.epoch

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        if not after:
            return []
        return [recorded_of(tenant, *row) for row in self.reads.read(tenant, after)]

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        epoch, rows = self.reads.recall(tenant, wanted)
        self.group.learn(epoch)
        bases: dict[str, Base] = {}
        facts: list[Recorded] = []
        spoilt: dict[str, int] = {}
        for row in rows:
            stream, *_, name, _ = row
            form = wanted[stream]
            if form is None or name:
                if stream not in spoilt:
                    facts.append(recorded_of(tenant, *row))
            elif base := base_of(tenant, form, epoch, row):
                bases[stream] = base
            else:
                spoilt[stream] = 0
        return Recalled(epoch, bases, facts + self.read(tenant, spoilt))

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        self.snapshots.keep(tenant, take)

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        pending, envelope = LogTicket(append), append.envelope
        prefix, written = f"{envelope.tenant}/", envelope_json(envelope)
        asked = Asked(
            envelope.tenant,
            envelope.actor,
            envelope.key,
            append.digest,
            append.command,
            microseconds(append.at),
            append.spends,
            {prefix + stream: version for stream, version in append.versions.items()},
            [
                (prefix + fact.stream, fact.name, rest_of(fact, number, written))
                for number, fact in enumerate(append.facts)
            ],
            follows,
            pending.ticket,
            append.epoch,
        )
        self.group.submit(asked)
        return pending

    def append(self, append: Append) -> Outcome:
        return self.submit(append).result()

    def spent(self, envelope: Envelope) -> Spent | None:
        """What the envelope's key was used for, if it was."""
        arguments = (envelope.tenant, envelope.actor, envelope.key)
        row = self.connection.retrying(lambda conn: conn.execute(SPENT, arguments, binary=True).fetchone())
        digest, position, count = cast(tuple[Any, ...], row)
        return None if digest is None else Spent(bytes(digest), position, count)

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        return tuple(self._facts(tenant, RECORDED, (tenant, first, count))) if count else ()

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        return self.turns.take([f"{tenant}/{stream}" for stream in streams])

    def claim(self, tenant: str, kind: str, value: str) -> str:
        blind = hmac.digest(self.claim_key, f"{tenant}\n{kind}\n{value}".encode(), "sha256").hex()
        return f"claim-{kind}-{blind[:40]}"

    def close(self) -> None:
        self.group.close()
        self.turns.close()
        self.snapshots.close()
        self.connection.close()

    def _facts(self, tenant: str, query: str, arguments: Sequence[Any]) -> list[Recorded]:
        rows = self.connection.retrying(
            lambda conn: cast(list[Newer], conn.execute(query, arguments, binary=True).fetchall())
        )
        return [recorded_of(tenant, *row) for row in rows]


# ── the eventsourcing library ─────────────────────────────────────────────────────────────────────

FAULTS = (
    (psycopg.InterfaceError, library.InterfaceError),
    (psycopg.OperationalError, library.OperationalError),
    (psycopg.DataError, library.DataError),
    (psycopg.IntegrityError, library.IntegrityError),
    (psycopg.InternalError, library.InternalError),
    (psycopg.ProgrammingError, library.ProgrammingError),
    (psycopg.NotSupportedError, library.NotSupportedError),
    (psycopg.DatabaseError, library.DatabaseError),
    (psycopg.Error, library.PersistenceError),
    (LogUnavailable, library.OperationalError),
    (Overloaded, library.OperationalError),
)
"""Of the driver and ours, and what the library's users catch."""


@contextmanager
def faults_of_the_library() -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, LogUnavailable, Overloaded) as fault:
        raise next(theirs for ours, theirs in FAULTS if isinstance(fault, ours))(str(fault)) from fault


class GroupCommitRecorder(PostgresApplicationRecorder):
    """The library's recorder on a ledger's tables: its readers as they are, appends under the head row.

    For anybody's application, with ids that are text or UUIDs and states of any bytes. A ledger holds one
    application's events, whatever that is called, so the table's name is not taken from its user.
    """

    stamped = False
    """States are stored as they are, without a recorded time."""

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = EVENTS) -> None:
        super().__init__(datastore, events_table_name=EVENTS)
        self.uuids = datastore.originator_id_type == "uuid"
        if self.uuids:  # a ledger's ids are text
            self.select_events_statement = SQL(
                "SELECT originator_id::uuid, originator_version, topic, state FROM {}.{}"
                " WHERE originator_id = %s::text"
            ).format(Identifier(datastore.schema), Identifier(EVENTS))
        channels = (datastore.schema, self.channel_name)
        self.group = Group(PooledConnection(datastore), channels, stamped=self.stamped)
        _close_first(self.group, datastore)

    def create_table(self) -> None:
        """Nothing: tables come from migrations."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """All or nothing, in one commit with what others append meanwhile; their positions, in order.

        Raises IntegrityError where a version is taken or would leave a gap; a stream begins at 0 or at 1.
        OperationalError: the database did not answer, and the events may be recorded; or too many wait.
        """
        if not stored_events:
            return []
        asked = self.asked(stored_events)
        with faults_of_the_library():
            self.group.submit(asked)
            verdict = asked.ticket.wait()
        if verdict.outcome not in ("appended", "spent"):
            raise IntegrityError(f"{verdict.outcome}: a version is taken, or one before it is missing")
        position = verdict.last_position
        return list(range(position - len(stored_events) + 1, position + 1))

    def asked(self, stored_events: Sequence[StoredEvent]) -> Asked:
        now_us = time.time_ns() // 1_000
        return _asked(LIBRARY_TENANT, now_us, stored_events, [event.state for event in stored_events])

    def select_notifications(self, *args: Any, **kwargs: Any) -> Sequence[Notification]:
        found: Sequence[Notification] = super().select_notifications(*args, **kwargs)
        if not self.uuids:
            return found
        return [replace(each, originator_id=UUID(str(each.originator_id))) for each in found]

    def close(self) -> None:
        """Record what waits, and let go of the connections."""
        self.datastore.close()


class LedgerRecorder(GroupCommitRecorder):
    """The same by the house's rules: streams are tenant/stream and begin at 1; a call is for one tenant.

    The first 8 bytes of a state are the time it asks for; what is recorded is that or later.
    """

    stamped = True

    def asked(self, stored_events: Sequence[StoredEvent]) -> Asked:
        tenants = {split(str(event.originator_id))[0] for event in stored_events}
        if len(tenants) != 1:
            raise IntegrityError("events of several tenants cannot be appended together")
        if any(event.originator_version < 1 for event in stored_events):
            raise IntegrityError("versions of a stream begin at 1")
        at_us = int.from_bytes(stored_events[0].state[:8], "big", signed=True)
        return _asked(tenants.pop(), at_us, stored_events, [event.state[8:] for event in stored_events])


def _asked(tenant: str, at_us: int, events: Sequence[StoredEvent], states: Sequence[bytes]) -> Asked:
    """Each stream as its first event wants to find it; raises IntegrityError if they disagree."""
    reads: dict[str, int] = {}
    running: dict[str, int] = {}
    facts = []
    for event, state in zip(events, states, strict=True):
        stream = str(event.originator_id)
        before = running.setdefault(stream, event.originator_version - 1)
        reads.setdefault(stream, before)
        if event.originator_version != before + 1:
            raise IntegrityError(f"versions of {stream} leave a gap")
        running[stream] += 1
        facts.append((stream, event.topic, state))
    key = uuid4().hex  # to tell an append that was sent twice from one that was asked for twice
    return Asked(tenant, LIBRARY_ACTOR, key, b"", LIBRARY_ACTOR, at_us, True, reads, facts, (), Ticket())


class PooledConnection(Connection):
    """To where the library's pool connects, with the password of the day."""

    def __init__(self, datastore: PostgresDatastore) -> None:
        super().__init__("", datastore.schema)
        self.pool = datastore.pool

    def open(self) -> psycopg.Connection[Any]:
        if self.live is None or self.live.closed:
            given = dict(cast(dict[str, Any], self.pool.kwargs))
            if self.pool.get_password_func is not None:
                given["password"] = self.pool.get_password_func()
            self.dsn = make_conninfo(
                **{name: given[name] for name in ("dbname", "host", "port", "user", "password")}
            )
        return super().open()


def _close_first(group: Group, datastore: PostgresDatastore) -> None:
    """The library closes an application's pool and nothing else: what waits is recorded before that."""
    pool = datastore.pool
    close = pool.close

    def closing(timeout: float = 5.0) -> None:
        group.close()
        close(timeout)

    pool.close = closing  # type: ignore[method-assign]


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
