"""Read models in Postgres: rows, their past and their checkpoint, in one transaction.

The shown version of a table is `NAME_vN`; beside it stands its past: `NAME_vN_history` for rows
that are put, one row for each `[from_position, to_position)`; `NAME_vN_moves` for sums, one row for
each (key, position). So the state at any position can be told of every table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import psycopg

from infra.arrays import Array, Bools, Instants, Ints4, Ints8, Locals, Numerics, Texts, Uuids
from infra.ledger import Ledger, Place
from infra.mapper import StoredFact
from infra.sinks import Follower, Held, Reached, Refused, Taken, Wanted
from projections.rows import Add, Column, Delete, Engine, Kind, Projection, Put, Table

TYPES: dict[Kind, str] = {
    "text": "text",
    "int": "bigint",
    "big": "numeric",
    "bool": "boolean",
    "uuid": "uuid",
    "instant": "timestamptz",
    "local": "timestamp",
}
ARRAYS: dict[Kind, type[Array]] = {
    "text": Texts,
    "int": Ints8,
    "big": Numerics,
    "bool": Bools,
    "uuid": Uuids,
    "instant": Instants,
    "local": Locals,
}


def physical(table: Table, version: int) -> str:
    return f"{table.name}_v{version}"


def past(table: Table, version: int) -> str:
    return f"{physical(table, version)}_{'moves' if table.sums else 'history'}"


# ── definitions ───────────────────────────────────────────────────────────────────────────────────


def definitions(table: Table, version: int) -> Iterator[str]:
    """Statements that make a table and its past, closed to other tenants; run by the owner."""
    name, key = physical(table, version), _list(table.whole_key)
    yield f"CREATE TABLE {name} ({_ddl(table.columns)}, PRIMARY KEY ({key}))"
    if table.sums:
        kept = tuple(column for column in table.columns if column.name in (*table.whole_key, *table.sums))
        yield (
            f"CREATE TABLE {past(table, version)} ({_ddl(kept)}, from_position bigint NOT NULL,"
            f" PRIMARY KEY ({key}, from_position))"
        )
    else:
        yield (
            f"CREATE TABLE {past(table, version)} ({_ddl(table.columns)}, from_position bigint NOT NULL,"
            f" to_position bigint, PRIMARY KEY ({key}, from_position))"
        )
    for each in (name, past(table, version)):
        yield f"ALTER TABLE {each} ENABLE ROW LEVEL SECURITY"
        yield f"ALTER TABLE {each} FORCE ROW LEVEL SECURITY"
        yield f"CREATE POLICY owner_all ON {each} TO counterfoil_owner USING (true) WITH CHECK (true)"
        yield f"CREATE POLICY worker_all ON {each} TO counterfoil_worker USING (true) WITH CHECK (true)"
        yield (
            f"CREATE POLICY app_own_tenant ON {each} FOR SELECT TO counterfoil_app"
            " USING (tenant = current_setting('counterfoil.tenant', true))"
        )
        yield f"GRANT SELECT ON {each} TO counterfoil_app"
        yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {each} TO counterfoil_worker"


def _ddl(columns: Iterable[Column]) -> str:
    return ", ".join(
        f'"{column.name}" {TYPES[column.kind]}{"" if column.nullable else " NOT NULL"}' for column in columns
    )


def _list(names: Iterable[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{name}"' for name in names)


def define(conn: psycopg.Connection[Any], projections: Iterable[Projection]) -> None:
    """Make version 1 of every projection that has no tables yet; the connection is the owner's."""
    for projection in projections:
        tables = projection.tables_in(Engine.POSTGRES)
        known = conn.execute(
            "SELECT 1 FROM projections WHERE engine = 'postgres' AND name = %s", (projection.name,)
        ).fetchone()
        if tables and known is None:
            for table in tables:
                for statement in definitions(table, 1):
                    conn.execute(statement.encode())
            conn.execute("INSERT INTO projections VALUES ('postgres', %s, 1)", (projection.name,))


# ── statements ────────────────────────────────────────────────────────────────────────────────────


def _holes(count: int) -> str:
    return ", ".join(["%b"] * count)


@lru_cache(maxsize=1_000)
def _kinds(columns: tuple[Column, ...]) -> tuple[type[Array], ...]:
    return tuple(ARRAYS[column.kind] for column in columns)


def _same_key(table: Table, left: str, right: str) -> str:
    return " AND ".join(f'{left}."{name}" = {right}."{name}"' for name in table.whole_key)


def _key_columns(table: Table) -> tuple[Column, ...]:
    return tuple(column for column in table.columns if column.name in table.whole_key)


def _sum_columns(table: Table) -> tuple[Column, ...]:
    return _key_columns(table) + tuple(column for column in table.columns if column.name in table.sums)


@lru_cache(maxsize=1_000)
def _upsert(table: Table, version: int) -> str:
    rest = [column.name for column in table.columns if column.name not in table.whole_key]
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in rest)
    return (
        f"INSERT INTO {physical(table, version)} ({_list(c.name for c in table.columns)})"
        f" SELECT * FROM unnest({_holes(len(table.columns))}) ON CONFLICT ({_list(table.whole_key)})"
        f" DO {f'UPDATE SET {updates}' if rest else 'NOTHING'}"
    )


@lru_cache(maxsize=1_000)
def _remove(table: Table, version: int) -> str:
    keys = _key_columns(table)
    return (
        f"DELETE FROM {physical(table, version)} t"
        f" USING unnest({_holes(len(keys))}) d({_list(c.name for c in keys)})"
        f" WHERE {_same_key(table, 't', 'd')}"
    )


@lru_cache(maxsize=1_000)
def _close(table: Table, version: int) -> str:
    keys = _key_columns(table)
    return (
        f"UPDATE {past(table, version)} t SET to_position = d.at"
        f" FROM unnest({_holes(len(keys) + 1)}) d({_list(c.name for c in keys)}, at)"
        f" WHERE {_same_key(table, 't', 'd')} AND t.to_position IS NULL"
    )


@lru_cache(maxsize=1_000)
def _open(table: Table, version: int) -> str:
    return (
        f"INSERT INTO {past(table, version)}"
        f" ({_list(c.name for c in table.columns)}, from_position, to_position)"
        f" SELECT * FROM unnest({_holes(len(table.columns) + 2)})"
    )


@lru_cache(maxsize=1_000)
def _move(table: Table, version: int) -> str:
    """Keep the moves, and add them up: one statement, so that nothing but the moves is sent."""
    columns, name = _sum_columns(table), physical(table, version)
    key, names = _list(table.whole_key), _list(c.name for c in columns)
    updates = ", ".join(f'"{each}" = {name}."{each}" + excluded."{each}"' for each in table.sums)
    totals = ", ".join(f'sum("{each}")' for each in table.sums)
    return (
        f"WITH moved AS (INSERT INTO {past(table, version)} ({names}, from_position)"
        f" SELECT * FROM unnest({_holes(len(columns) + 1)}) RETURNING {names})"
        f" INSERT INTO {name} ({names}) SELECT {key}, {totals} FROM moved GROUP BY {key} ORDER BY {key}"
        f" ON CONFLICT ({key}) DO UPDATE SET {updates}"
    )


def _columnar(kinds: Sequence[type[Array]], rows: Sequence[Sequence[Any]]) -> list[Array]:
    return _arrays(kinds, zip(*rows, strict=True) if rows else [()] * len(kinds))


def _arrays(kinds: Sequence[type[Array]], columns: Iterable[Sequence[Any]]) -> list[Array]:
    return [kind(column) for kind, column in zip(kinds, columns, strict=True)]


# ── one table's share of a batch ──────────────────────────────────────────────────────────────────


class PutBatch:
    """Puts and deletes of one table, in log order: the last one of a key is shown, all are kept."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.last: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
        self.closed: dict[tuple[Any, ...], int] = {}
        self.lives: dict[tuple[tuple[Any, ...], int], list[Any]] = {}
        """History rows by (key, from_position): what a fact's last operation left is all there ever was."""
        self.open: dict[tuple[Any, ...], int] = {}

    def add(self, tenant: str, position: int, op: Put | Delete) -> None:
        key = (tenant, *op.key)
        since = self.open.pop(key, None)
        if since == position:
            del self.lives[key, position]
        elif since is not None:
            self.lives[key, since][-1] = position
        elif key not in self.closed:
            self.closed[key] = position
        if isinstance(op, Delete):
            self.last[key] = None
            return
        row = (tenant, *op.values)
        self.last[key] = row
        self.open[key] = position
        self.lives[key, position] = [*row, position, None]

    async def write(self, conn: psycopg.AsyncConnection[Any], version: int) -> None:
        keys, whole = _kinds(_key_columns(self.table)), _kinds(self.table.columns)
        if rows := [row for row in self.last.values() if row is not None]:
            await conn.execute(_upsert(self.table, version), _columnar(whole, rows), binary=True)
        if gone := [key for key, row in self.last.items() if row is None]:
            await conn.execute(_remove(self.table, version), _columnar(keys, gone), binary=True)
        closes = [(*key, position) for key, position in self.closed.items()]
        await conn.execute(_close(self.table, version), _columnar((*keys, Ints8), closes), binary=True)
        if self.lives:
            opened = _columnar((*whole, Ints8, Ints8), list(self.lives.values()))
            await conn.execute(_open(self.table, version), opened, binary=True)


class SumBatch:
    """Additions to one table: each fact's share is kept as a move, and they are added up."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.zeros = (0,) * len(table.sums)
        self.moves: dict[tuple[Any, ...], Sequence[int]] = {}
        """What each fact added, by key and position."""

    def add(self, tenant: str, position: int, op: Add) -> None:
        where = (tenant, *op.key, position)
        deltas = (*map(op.deltas.get, self.table.sums, self.zeros),)
        move = self.moves.get(where)
        self.moves[where] = deltas if move is None else list(map(sum, zip(move, deltas, strict=True)))

    async def write(self, conn: psycopg.AsyncConnection[Any], version: int) -> None:
        *keys, positions = zip(*self.moves, strict=True)
        sums = zip(*self.moves.values(), strict=True)
        kinds = (*_kinds(_sum_columns(self.table)), Ints8)
        moved = _arrays(kinds, (*keys, *sums, positions))
        await conn.execute(_move(self.table, version), moved, binary=True)


def batches(taken: Iterable[Taken]) -> dict[Table, PutBatch | SumBatch]:
    """The Postgres operations of some facts, by table."""
    found: dict[Table, PutBatch | SumBatch] = {}
    for fact, recorded, ops in taken:
        for op in ops:
            table = op.table
            batch = found.get(table)
            if batch is None:
                if table.engine is not Engine.POSTGRES:
                    continue
                batch = found[table] = SumBatch(table) if table.sums else PutBatch(table)
            batch.add(recorded.envelope.tenant, fact.position, op)
    return found


# ── the sink ──────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def refusals() -> Iterator[None]:
    """What the database says to content, as Refused."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as refused:
        raise Refused(str(refused).splitlines()[0]) from refused


class PostgresUnit:
    """One transaction. The checkpoints are locked first, which fences a former owner out."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], engine: str, *, careful: bool = False) -> None:
        self.conn, self.engine, self.careful = conn, engine, careful

    async def hold(self, wanted: Sequence[Wanted]) -> dict[str, Held]:
        names = [follower.name for follower, _ in wanted]
        cursor = await self.conn.execute(
            "SELECT name, version FROM projections WHERE engine = %s AND name = ANY(%s) FOR SHARE",
            (self.engine, names),
        )
        versions = dict(await cursor.fetchall())
        held = {name: Held(versions.get(name, 1), {}, set()) for name in names}
        rows = [
            (follower.name, held[follower.name].version, topic, partition)
            for follower, places in wanted
            for topic, partition in places
        ]
        columns = _columnar((Texts, Ints4, Texts, Ints4), rows)
        for _ in range(2):
            cursor = await self.conn.execute(
                "SELECT c.name, c.topic, c.partition, c.position FROM checkpoints c"
                " JOIN unnest(%s, %s, %s, %s)"
                " w(name, version, topic, partition) USING (name, version, topic, partition)"
                " WHERE c.engine = %s ORDER BY 1, 2, 3 FOR UPDATE OF c",
                (*columns, self.engine),
            )
            found = await cursor.fetchall()
            if len(found) == len(rows):
                break
            await self.begin(wanted, held)
        for name, topic, partition, position in found:
            held[name].marks[topic, partition] = position
        cursor = await self.conn.execute(
            "SELECT DISTINCT name, stream FROM parked WHERE engine = %s AND name = ANY(%s)",
            (self.engine, names),
        )
        for name, stream in await cursor.fetchall():
            held[name].parked.add(stream)
        return held

    async def begin(self, wanted: Sequence[Wanted], held: dict[str, Held]) -> None:
        """Give each follower a mark in each of its partitions, at the beginning of the log."""
        for follower, places in wanted:
            await self.conn.execute(
                "INSERT INTO checkpoints SELECT %s, %s, %s, w.topic, w.partition, 0"
                " FROM unnest(%s::text[], %s::int[]) w(topic, partition) ON CONFLICT DO NOTHING",
                (
                    self.engine,
                    follower.name,
                    held[follower.name].version,
                    [topic for topic, _ in places],
                    [partition for _, partition in places],
                ),
            )

    async def begin_at_head(self, follower: Follower, places: Sequence[Place]) -> None:
        """Give a follower without tables its marks, where it has none yet, at the head of the log."""
        await self.conn.execute(
            "INSERT INTO checkpoints SELECT %s, %s, 1, w.topic, w.partition, h.position"
            " FROM unnest(%s::text[], %s::int[]) w(topic, partition), head h ON CONFLICT DO NOTHING",
            (
                self.engine,
                follower.name,
                [topic for topic, _ in places],
                [partition for _, partition in places],
            ),
        )

    async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
        with refusals():
            async with self.conn.transaction() if self.careful else nullcontext():
                for _, batch in sorted(batches(taken).items(), key=lambda item: item[0].name):
                    await batch.write(self.conn, version)

    async def park(self, follower: Follower, place: Place, facts: Iterable[tuple[StoredFact, str]]) -> None:
        async with self.conn.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO parked (engine, name, stream, position, topic, partition, reason)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [
                    (self.engine, follower.name, fact.originator_id, fact.position, *place, reason[:500])
                    for fact, reason in facts
                ],
            )

    async def unpark(self, follower: Follower, facts: Iterable[StoredFact]) -> None:
        await self.conn.execute(
            "DELETE FROM parked WHERE (engine, name) = (%s, %s) AND position = ANY(%s)",
            (self.engine, follower.name, [fact.position for fact in facts]),
        )

    async def parked_facts(
        self, follower: Follower, after: int, limit: int
    ) -> list[tuple[str, int, str, int]]:
        cursor = await self.conn.execute(
            "SELECT stream, position, topic, partition FROM parked WHERE (engine, name) = (%s, %s)"
            " AND position > %s ORDER BY position LIMIT %s FOR UPDATE",
            (self.engine, follower.name, after, limit),
        )
        return await cursor.fetchall()

    async def mark(self, reached: Sequence[Reached]) -> None:
        rows = [
            (follower.name, version, *place, position)
            for follower, version, places in reached
            for place, position in sorted(places.items())
        ]
        await self.conn.execute(
            "UPDATE checkpoints c SET position = w.position"
            " FROM unnest(%s, %s, %s, %s, %s)"
            " w(name, version, topic, partition, position)"
            " WHERE (c.engine, c.name, c.version, c.topic, c.partition)"
            " = (%s, w.name, w.version, w.topic, w.partition) AND c.position < w.position",
            (*_columnar((Texts, Ints4, Texts, Ints4, Ints8), rows), self.engine),
        )


class PostgresSink:
    """Rows and checkpoints in the ledger's own schema, in the worker's role."""

    engine = "postgres"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @asynccontextmanager
    async def unit(self, *, careful: bool = False) -> AsyncIterator[PostgresUnit]:
        with refusals():
            async with self.ledger.transaction(pipelined=not careful) as conn:
                yield PostgresUnit(conn, self.engine, careful=careful)

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        conn = await self.ledger.open()
        cursor = await conn.execute(
            "SELECT c.name, c.topic, c.partition, c.position FROM checkpoints c"
            " LEFT JOIN projections p USING (engine, name)"
            " WHERE c.engine = %s AND c.name = ANY(%s) AND c.version = coalesce(p.version, 1)",
            (self.engine, [follower.name for follower in followers]),
        )
        return {(name, topic, partition): position async for name, topic, partition, position in cursor}
