"""Read models in ClickHouse: blocks of rows, then how far they reach, in a progress table.

Nothing there is transactional, so everything is idempotent: a table's sorting key is its identity
(ReplacingMergeTree, read with FINAL), and progress is written after the block is acknowledged. A
crash between the two repeats a block, which changes nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver import options
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, DataError, ProgrammingError

from infra.ledger import Ledger, Place
from infra.mapper import StoredFact
from infra.readmodel import PostgresSink, PostgresUnit
from infra.sinks import Follower, Held, Reached, Refused, Taken, Wanted
from projections.registry import projections_in
from projections.rows import Column, Engine, Kind, Projection, Put, Table

options.np = options.pd = options.pd_time_test = None
"""As if they were not installed: rows come as tuples, and to ask whether they are a frame imports pandas,
most of a second and 60 MB of every process that writes."""

TYPES: dict[Kind, str] = {
    "text": "String",
    "int": "Int64",
    "big": "Int128",
    "bool": "Bool",
    "uuid": "UUID",
    "instant": "DateTime64(6, 'UTC')",
    "local": "DateTime64(6, 'UTC')",
}
PROGRESS = (
    "CREATE TABLE IF NOT EXISTS progress (name String, version UInt32, topic String, partition UInt32,"
    " position UInt64, written_at DateTime DEFAULT now())"
    " ENGINE = ReplacingMergeTree(position) ORDER BY (name, version, topic, partition)"
)
TIMEOUT_S = 30
UNWRITABLE = (DatabaseError, OverflowError, ValueError, TypeError, AttributeError)
"""What is raised for a value that its column cannot hold: by the client, depending on the column, or by the
server with one of CONTENT_CODES."""
CONTENT_CODES = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        376,  # CANNOT_PARSE_UUID
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
        691,  # UNKNOWN_ELEMENT_OF_ENUM
    }
)
"""The server's own codes for a block whose content it will never take. Whatever else it says (memory, time,
too many parts, a table that is missing, a body cut off on its way) is a fault, and tried again."""


class AnalyticsUnavailable(Exception):
    """A fault: ClickHouse does not answer."""


def physical(table: Table, version: int) -> str:
    return f"{table.name}_v{version}"


def definition(table: Table, version: int) -> str:
    columns = ", ".join(f"{column.name} {_type(column)}" for column in table.columns)
    return (
        f"CREATE TABLE IF NOT EXISTS {physical(table, version)} ({columns}, from_position UInt64)"
        f" ENGINE = ReplacingMergeTree(from_position) ORDER BY ({', '.join(table.whole_key)})"
    )


def _type(column: Column) -> str:
    return f"Nullable({TYPES[column.kind]})" if column.nullable else TYPES[column.kind]


class ClickHouse:
    """One database for each ledger. The stock client is synchronous; calls from tasks go by a thread."""

    def __init__(self, url: str, database: str) -> None:
        self.url, self.database = url, database
        self.client: Client | None = None
        self.lock = threading.Lock()

    def define(self, projections: Iterable[Projection] | None = None, version: int = 1) -> None:
        """Make what is missing."""
        with self.lock:
            admin = self._connect("default")
            admin.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")
            admin.close()
            client = self._open()
            client.command(PROGRESS)
            for projection in projections_in(Engine.CLICKHOUSE) if projections is None else projections:
                for table in projection.tables_in(Engine.CLICKHOUSE):
                    client.command(definition(table, version))

    def query(
        self, sql: str, parameters: dict[str, Any] | None = None
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """(column names, rows). Raises AnalyticsUnavailable; a query it refuses is a bug and passes."""
        with self.lock:
            answer = self._guarded(lambda client: client.query(sql, parameters=parameters))
        return list(answer.column_names), [tuple(row) for row in answer.result_rows]

    def command(self, sql: str) -> None:
        with self.lock:
            self._guarded(lambda client: client.command(sql))

    def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
        """One block, by columns, as the client wants it. Raises one of UNWRITABLE for what is never taken."""
        block = list(zip(*rows, strict=True))
        with self.lock:
            self._guarded(
                lambda client: client.insert(table, block, column_names=columns, column_oriented=True),
                refusals=CONTENT_CODES,
            )

    def _guarded(self, call: Any, *, refusals: frozenset[int] = frozenset()) -> Any:
        try:
            return call(self._open())
        except (DataError, ProgrammingError):
            raise
        except (ClickHouseError, OSError) as lost:
            if isinstance(lost, DatabaseError) and lost.code in refusals:
                raise
            self.close()
            raise AnalyticsUnavailable(str(lost)[:300]) from lost

    def _open(self) -> Client:
        if self.client is None:
            self.client = self._connect(self.database)
        return self.client

    def _connect(self, database: str) -> Client:
        return clickhouse_connect.get_client(
            dsn=self.url,
            database=database,
            connect_timeout=5,
            send_receive_timeout=TIMEOUT_S,
            autogenerate_session_id=False,
        )

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None


class ClickHouseUnit:
    """One flush. Parked facts and versions are kept in Postgres, beside everybody else's."""

    def __init__(self, clickhouse: ClickHouse, desk: PostgresUnit) -> None:
        self.clickhouse, self.desk = clickhouse, desk

    async def hold(self, wanted: Sequence[Wanted]) -> dict[str, Held]:
        held = await self.desk.hold(wanted)
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            "SELECT name, version, topic, partition, max(position) FROM progress"
            " WHERE name IN %(names)s GROUP BY name, version, topic, partition",
            {"names": list(held)},
        )
        written = {
            (name, version, topic, part): int(position) for name, version, topic, part, position in rows
        }
        # Parked facts commit with Postgres' marks, rows with ClickHouse's: what either lacks is done again.
        for name, standing in held.items():
            for place, mark in standing.marks.items():
                standing.marks[place] = min(mark, written.get((name, standing.version, *place), 0))
        return held

    async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
        rows: dict[Table, list[tuple[Any, ...]]] = {}
        for fact, recorded, ops in taken:
            tenant = recorded.envelope.tenant
            for op in ops:
                if isinstance(op, Put) and op.table.engine is Engine.CLICKHOUSE:
                    rows.setdefault(op.table, []).append((tenant, *op.values, fact.position))
        for table, block in rows.items():
            columns = [column.name for column in table.columns] + ["from_position"]
            try:
                await asyncio.to_thread(self.clickhouse.insert, physical(table, version), columns, block)
            except UNWRITABLE as refused:
                raise Refused(str(refused).splitlines()[0]) from refused

    async def park(self, follower: Follower, place: Place, facts: Iterable[tuple[StoredFact, str]]) -> None:
        await self.desk.park(follower, place, facts)

    async def unpark(self, follower: Follower, facts: Iterable[StoredFact]) -> None:
        await self.desk.unpark(follower, facts)

    async def parked_facts(
        self, follower: Follower, after: int, limit: int
    ) -> list[tuple[str, int, str, int]]:
        return await self.desk.parked_facts(follower, after, limit)

    async def mark(self, reached: Sequence[Reached]) -> None:
        rows = [
            [follower.name, version, *place, position]
            for follower, version, places in reached
            for place, position in places.items()
        ]
        columns = ["name", "version", "topic", "partition", "position"]
        await asyncio.to_thread(self.clickhouse.insert, "progress", columns, rows)
        await self.desk.mark(reached)  # a copy, for the relay's rewind


class Desk(PostgresSink):
    """Where marks and parked facts of what goes to ClickHouse are kept."""

    engine = "clickhouse"


class ClickHouseSink:
    """Rows in ClickHouse. What has been taken in is what both stores say: its progress table of the rows, the
    desk of what was parked."""

    def __init__(self, clickhouse: ClickHouse, ledger: Ledger) -> None:
        self.clickhouse, self.desk = clickhouse, Desk(ledger)

    @asynccontextmanager
    async def unit(self, *, careful: bool = False) -> AsyncIterator[ClickHouseUnit]:
        async with self.desk.unit() as unit:
            yield ClickHouseUnit(self.clickhouse, unit)

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        """The lesser of the two: a unit that wrote its progress and did not commit is to be repeated, though
        nothing else may ever come, or what it parked would be forgotten."""
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            "SELECT name, version, topic, partition, max(position) FROM progress"
            " GROUP BY name, version, topic, partition",
        )
        conn = await self.desk.ledger.open()
        shown = dict(
            await (
                await conn.execute(
                    "SELECT name, version FROM projections WHERE engine = %s", (self.desk.engine,)
                )
            ).fetchall()
        )
        marks = await self.desk.standing(followers)
        return {
            (name, topic, int(partition)): min(int(position), marks.get((name, topic, int(partition)), 0))
            for name, version, topic, partition, position in rows
            if (name, topic, int(partition)) in marks and version == shown.get(name, 1)
        }
