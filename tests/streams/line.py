"""One ledger in Postgres from end to end, with the relay and the broker played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg

from commands.handling import Handler
from commands.log import Append, Appended
from domain.facts import Event, Recorded
from domain.payments import PaymentRecorded
from infra.analytics import ClickHouse, ClickHouseSink
from infra.eventstore import PostgresLog
from infra.ledger import Ledger, Place
from infra.mapper import StoredFact, recorded_of, split
from infra.memory import MemoryLog
from infra.migrate import admin_dsn, schema_of
from infra.readmodel import PostgresSink, physical
from infra.settings import Settings
from infra.sinks import Follower, Sink
from projections.fold import Fold, Key, Row
from projections.registry import PROJECTIONS, projections_in
from projections.rows import Engine, Projection, Table
from streams.projector import Projecting, Projector
from streams.reactions import ReactionSink
from streams.registry import REACTIONS
from streams.topics import Run, runs
from tests.e2e.chaos.judge import agree, shown_in_clickhouse, shown_in_postgres, told_by_the_past
from tests.ledgers import CLAIM_KEY
from tests.spec import T0, envelope

LEDGER = "0"
KEPT = {"migrations", "projections"}
"""What a migration fills."""


class Line:
    """Facts go in at one end; the test says which records arrive at the other."""

    def __init__(self, settings: Settings, clickhouse: ClickHouse | None = None) -> None:
        self.settings, self.schema, self.clickhouse = settings, schema_of(settings), clickhouse
        self.conn = psycopg.connect(
            admin_dsn(settings), autocommit=True, options=f"-c search_path={self.schema}"
        )
        self.log = PostgresLog(settings.role_dsn("app"), self.schema, CLAIM_KEY)
        self.opened: list[PostgresLog] = []
        self.given_before = 0

    def empty(self) -> None:
        """As migrated; in ClickHouse too."""
        while self.opened:
            self.opened.pop().close()
        tables = self.conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s", (self.schema,)
        ).fetchall()
        emptied = [name for (name,) in tables if name not in KEPT | {"head", "relay"}]
        self.conn.execute(f"TRUNCATE {', '.join(emptied)}".encode())
        self.conn.execute("UPDATE head SET position = 0, at_us = 0")
        self.conn.execute("UPDATE relay SET through = 0, broker = '', fence = 0, lease_until = '-infinity'")
        self.conn.execute("UPDATE projections SET version = 1")
        if self.clickhouse is not None:
            self.clickhouse.define()
            for table in ("progress", *(physical(table, 1) for table in _tables(Engine.CLICKHOUSE))):
                self.clickhouse.command(f"TRUNCATE TABLE {table}")

    def close(self) -> None:
        self.conn.close()
        for log in (self.log, *self.opened):
            log.close()

    # ── facts ─────────────────────────────────────────────────────────────────────────────────────

    def handler(self, now: datetime = T0) -> Handler:
        """One that remembers nothing, on a connection of its own."""
        self.opened.append(PostgresLog(self.settings.role_dsn("worker"), self.schema, CLAIM_KEY))
        return Handler(self.opened[-1], lambda: now)

    def given(self, *events: Event) -> None:
        """Recorded, each by a command of its own, in their streams' order."""
        for event in events:
            self.given_before += 1
            version = self.conn.execute(
                "SELECT count(*) FROM stored_events WHERE originator_id = %s", (f"acme/{event.stream}",)
            ).fetchone()
            assert version is not None
            append = Append(
                envelope(f"given-{self.given_before}"),
                b"given",
                "Given",
                {event.stream: version[0]},
                [event],
                T0,
            )
            assert isinstance(self.log.append(append), Appended)

    def copied(self, memory: MemoryLog) -> None:
        """A history from elsewhere, position by position."""
        with self.conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)"
                " VALUES (%s, %s, %s, %s, %s)",
                [
                    (f"{tenant}/{stream}", version, name, state, position)
                    for position, (tenant, stream, version, name, state) in enumerate(memory.rows, 1)
                ],
            )
        self.conn.execute("UPDATE head SET position = %s, at_us = %s", (len(memory.rows), memory.at_us))

    def poison(self, stream: str, name: str = "ordering.order-placed", state: bytes = b"?" * 20) -> int:
        """A fact nobody can read, as only a mistake or an intruder writes it; returns its position."""
        row = self.conn.execute(
            "WITH h AS (UPDATE head SET position = position + 1 RETURNING position)"
            " INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)"
            " SELECT %s, (SELECT count(*) + 1 FROM stored_events WHERE originator_id = %s), %s, %s, position"
            " FROM h RETURNING notification_id",
            (stream, stream, name, state),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def stored(self) -> list[StoredFact]:
        rows = self.conn.execute(
            "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
            " ORDER BY notification_id",
            binary=True,
        ).fetchall()
        return [StoredFact(*row) for row in rows]

    def runs(self, each: int = 3) -> list[Run]:
        """All there is, as a relay that looks every so many facts cuts it into records."""
        facts, heads = self.stored(), dict[Place, int]()
        return [
            run
            for first in range(0, len(facts), each)
            for run in runs(LEDGER, facts[first : first + each], heads)
        ]

    def publish(self, every: Sequence[Run] | None = None) -> None:
        """Say that all has been published, as the relay says it."""
        heads = dict[Place, int]()
        for run in every if every is not None else self.runs():
            heads[run.place] = max(heads.get(run.place, 0), run.last)
        for (topic, partition), last in heads.items():
            self.conn.execute(
                "INSERT INTO relay_head VALUES (%s, %s, %s) ON CONFLICT (topic, partition)"
                " DO UPDATE SET last_position = excluded.last_position",
                (topic, partition, last),
            )
        self.conn.execute("UPDATE relay SET through = (SELECT position FROM head), broker = 'a broker'")

    # ── effects ───────────────────────────────────────────────────────────────────────────────────

    def fold(self, through: int = 2**62, projections: Sequence[Projection] = PROJECTIONS) -> Fold:
        fold = Fold()
        for fact in self.stored():
            if fact.position <= through:
                recorded = readable(fact)
                for projection in projections:
                    if recorded is not None and fact.name in projection.names:
                        fold.add(recorded, projection.project(recorded))
        return fold

    def shown(self, table: Table) -> dict[Key, Row]:
        if table.engine is Engine.CLICKHOUSE:
            assert self.clickhouse is not None
            return shown_in_clickhouse(self.clickhouse, table)
        return shown_in_postgres(self.conn, table)

    def told(self, table: Table, as_of: int) -> dict[Key, Row]:
        return told_by_the_past(self.conn, table, as_of)

    def agrees(
        self, engine: Engine = Engine.POSTGRES, projections: Sequence[Projection] = PROJECTIONS
    ) -> None:
        """The suite's own assertion: the tables are what the log comes to, and so is their past."""
        fold = self.fold(projections=projections)
        for table in _tables(engine, projections):
            agree(table, fold.rows(table), self.shown(table))
            if engine is Engine.POSTGRES:
                agree(table, fold.rows(table), self.told(table, 2**62))

    def parked(self) -> list[tuple[str, str, int, str]]:
        return self.conn.execute(
            "SELECT name, stream, position, reason FROM parked ORDER BY name, position"
        ).fetchall()

    def marks(self, engine: str = "postgres") -> dict[tuple[str, str, int], int]:
        rows = self.conn.execute(
            "SELECT name, topic, partition, position FROM checkpoints WHERE engine = %s", (engine,)
        ).fetchall()
        return {(name, topic, partition): position for name, topic, partition, position in rows}

    def payments(self) -> list[Any]:
        return [
            recorded.event.paper
            for fact in self.stored()
            if (recorded := readable(fact)) and isinstance(recorded.event, PaymentRecorded)
        ]

    # ── projectors, each with connections of its own ──────────────────────────────────────────────

    def sink(self, kind: str, ledger: Ledger) -> Sink:
        match kind:
            case "postgres":
                return PostgresSink(ledger)
            case "clickhouse":
                assert self.clickhouse is not None
                return ClickHouseSink(ClickHouse(self.clickhouse.url, self.clickhouse.database), ledger)
            case _:
                return ReactionSink(ledger, self.handler())

    @asynccontextmanager
    async def projecting(
        self, kind: str = "postgres", followers: Sequence[Follower] | None = None
    ) -> AsyncIterator[Projector]:
        log, mine = self.ledger(), self.ledger()
        sink = self.sink(kind, mine)
        try:
            yield Projector(LEDGER, log, sink, followers_in(kind) if followers is None else followers)
        finally:
            await log.close()
            await mine.close()
            if isinstance(sink, ClickHouseSink):
                sink.clickhouse.close()

    def ledger(self) -> Ledger:
        return Ledger(self.settings.role_dsn("worker"), self.schema)


def followers_in(kind: str) -> Sequence[Follower]:
    if kind == "reaction":
        return REACTIONS
    return [Projecting(projection) for projection in projections_in(Engine(kind))]


def _tables(engine: Engine, projections: Sequence[Projection] = PROJECTIONS) -> list[Table]:
    return [table for projection in projections for table in projection.tables_in(engine)]


def readable(fact: StoredFact) -> Recorded | None:
    tenant, stream = split(fact.originator_id)
    try:
        return recorded_of(tenant, stream, fact.version, fact.position, fact.name, fact.state)
    except ValueError:
        return None
