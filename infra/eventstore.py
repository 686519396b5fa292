"""The log in Postgres: `handle`'s port on it, and the eventsourcing library's recorder on the same tables."""

from __future__ import annotations

import hmac
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast
from uuid import uuid4

from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from commands.log import Append, Appended, Outcome, Spent, Stale, Undone
from domain.facts import Envelope, Recorded
from infra.arrays import Ints8, Texts
from infra.connection import Connection
from infra.groupcommit import Asked, Group, Newer, Ticket, Verdict
from infra.mapper import envelope_json, instant, microseconds, recorded_of, rest_of, split
from infra.turns import Turns

LIBRARY_ACTOR = "eventsourcing"
"""The actor of facts appended through the library's own interface, which knows none."""

READ = "SELECT stream, version, pos, topic, state FROM read_streams(%b, %b, %b)"
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
        self.connection, self.group = Connection(dsn, schema), Group(dsn, schema)
        self.turns = Turns(dsn, schema)
        self.claim_key = claim_key

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        if not after:
            return []
        return self._facts(tenant, READ, (tenant, Texts(list(after)), Ints8(list(after.values()))))

    def submit(self, append: Append) -> LogTicket:
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
            append.follows,
            pending.ticket,
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
        self.connection.close()

    def _facts(self, tenant: str, query: str, arguments: Sequence[Any]) -> list[Recorded]:
        rows = self.connection.retrying(
            lambda conn: cast(list[Newer], conn.execute(query, arguments, binary=True).fetchall())
        )
        return [recorded_of(tenant, *row) for row in rows]


class LedgerRecorder(PostgresApplicationRecorder):
    """The library's recorder on a ledger's tables: its readers as they are, appends under the head row."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.group = Group(_dsn_of(datastore), datastore.schema)

    def create_table(self) -> None:
        """Nothing: tables come from migrations."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """All or nothing; raises IntegrityError where a version is taken or would leave a gap."""
        if not stored_events:
            return []
        reads: dict[str, int] = {}
        running: dict[str, int] = {}
        for event in stored_events:
            stream = str(event.originator_id)
            before = running.setdefault(stream, event.originator_version - 1)
            reads.setdefault(stream, before)
            if event.originator_version != before + 1:
                raise IntegrityError(f"versions of {stream} leave a gap")
            running[stream] += 1
        tenants = {split(stream)[0] for stream in reads}
        if len(tenants) != 1:
            raise IntegrityError("events of several tenants cannot be appended together")
        ticket = Ticket()
        self.group.submit(
            Asked(
                tenants.pop(),
                LIBRARY_ACTOR,
                uuid4().hex,  # to tell an append that was sent twice from one that was asked for twice
                b"",
                LIBRARY_ACTOR,
                int.from_bytes(stored_events[0].state[:8], "big", signed=True),
                True,
                reads,
                [(str(event.originator_id), event.topic, event.state[8:]) for event in stored_events],
                (),
                ticket,
            )
        )
        verdict = ticket.wait()
        if verdict.outcome not in ("appended", "spent"):
            raise IntegrityError(f"{verdict.outcome}: a version is taken, or one before it is missing")
        position = verdict.last_position
        return list(range(position - len(stored_events) + 1, position + 1))

    def close(self) -> None:
        """Record what waits, and let go of the connections."""
        self.group.close()
        self.datastore.close()


def _dsn_of(datastore: PostgresDatastore) -> str:
    given = cast(dict[str, Any], datastore.pool.kwargs)
    return make_conninfo(**{name: given[name] for name in ("dbname", "host", "port", "user", "password")})


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
