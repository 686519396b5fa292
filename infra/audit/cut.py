"""One instant of a ledger, whoever writes meanwhile: how far everything is, and cursors over what is stored.

Everything of Postgres is read in one repeatable-read transaction, which takes as long as sorting the
tables does: held cursors keep their rows in files of the server after it, so that a verification of
minutes does not stand in the way of cleaning up the head row, which every append makes anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from infra.audit.findings import ParkedFact
from infra.audit.reading import HeldRows
from infra.ledger import Place
from infra.mapper import split
from infra.readmodel import past, physical
from projections.registry import projections_in
from projections.rows import Engine, Table

PARKED_TOLD_MAX = 100


@dataclass(slots=True)
class Stored:
    """What Postgres holds of one table: what is shown, its past in order, how it was at some positions."""

    shown: HeldRows
    opened: HeldRows
    """Of puts: every row that ever was and where it begins. Of sums: every move. By from_position."""
    closed: HeldRows | None
    """Of puts: (key, from_position, to_position), by to_position."""
    as_of: dict[int, HeldRows] = field(default_factory=dict)


@dataclass(slots=True)
class Cut:
    """All of one instant."""

    position: int
    at_us: int
    beyond: int
    through: int
    heads: dict[Place, int]
    versions: dict[tuple[str, str], int]
    marks: dict[tuple[str, str], dict[Place, int]]
    """Of shown versions, by (engine, projection)."""
    parked: dict[tuple[str, str], set[int]]
    parked_facts: list[ParkedFact]
    parked_count: int
    keys: HeldRows
    tables: dict[Table, Stored]

    def version(self, engine: str, name: str) -> int:
        return self.versions.get((engine, name), 1)


async def take_cut(
    conn: psycopg.AsyncConnection[Any], tenant: str | None, sample: Any, samples: int
) -> tuple[Cut, tuple[int, ...]]:
    """The cut, and the positions it was sampled at: `sample` picks from a range of positions."""
    await conn.execute("SET statement_timeout = 0")
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cut = await _standing(conn)
        at = tuple(sorted(sample(range(1, cut.position + 1), min(samples, cut.position))))
        cut.keys = await _held(
            conn,
            "SELECT tenant, actor, key, first_position, facts FROM commands WHERE facts > 0"
            " ORDER BY first_position",
        )
        for projection in projections_in(Engine.POSTGRES):
            version = cut.version("postgres", projection.name)
            for table in projection.tables_in(Engine.POSTGRES):
                cut.tables[table] = await _stored(conn, table, version, tenant, at)
    return cut, at


async def _standing(conn: psycopg.AsyncConnection[Any]) -> Cut:
    ((head, at_us, beyond, through),) = await _rows(
        conn,
        "SELECT head.position, at_us, (SELECT count(*) FROM stored_events"
        " WHERE notification_id > head.position), through FROM head, relay",
    )
    heads = await _rows(conn, "SELECT topic, partition, last_position FROM relay_head")
    versions = await _rows(conn, "SELECT engine, name, version FROM projections")
    marks: dict[tuple[str, str], dict[Place, int]] = {}
    for engine, name, topic, partition, position in await _rows(
        conn,
        "SELECT c.engine, c.name, topic, partition, position FROM checkpoints c"
        " LEFT JOIN projections p USING (engine, name) WHERE c.version = coalesce(p.version, 1)",
    ):
        marks.setdefault((engine, name), {})[topic, partition] = position
    parked = await _rows(
        conn, "SELECT engine, name, stream, position, reason FROM parked ORDER BY position, engine, name"
    )
    by_follower: dict[tuple[str, str], set[int]] = {}
    for engine, name, _, position, _ in parked:
        by_follower.setdefault((engine, name), set()).add(position)
    return Cut(
        head,
        at_us,
        beyond,
        through,
        {(topic, partition): last for topic, partition, last in heads},
        {(engine, name): version for engine, name, version in versions},
        marks,
        by_follower,
        [
            ParkedFact(engine, name, *split(stream), position, reason)
            for engine, name, stream, position, reason in parked[:PARKED_TOLD_MAX]
        ],
        len(parked),
        HeldRows(conn, "keys"),
        {},
    )


async def _stored(
    conn: psycopg.AsyncConnection[Any], table: Table, version: int, tenant: str | None, samples: Sequence[int]
) -> Stored:
    mine = "true" if tenant is None else sql.SQL("tenant = {}").format(sql.Literal(tenant)).as_string(conn)
    name, old = physical(table, version), past(table, version)
    columns, keys = _list(column.name for column in table.columns), _list(table.whole_key)
    shown = await _held(conn, f"SELECT {columns} FROM {name} WHERE {mine}")
    if table.sums:
        kept = _list(c.name for c in table.columns if c.name in (*table.whole_key, *table.sums))
        moves = f"SELECT {kept}, from_position FROM {old} WHERE {mine} ORDER BY from_position"
        stored = Stored(shown, await _held(conn, moves), None)
        sums = ", ".join(
            f'sum("{column.name}")' if column.name in table.sums else f'"{column.name}"'
            for column in table.columns
        )
        as_of = f"SELECT {sums} FROM {old} WHERE {mine} AND from_position <= {{}} GROUP BY {keys}"
    else:
        opened = await _held(
            conn,
            f"SELECT {columns}, from_position FROM {old} WHERE {mine}"
            " AND to_position IS DISTINCT FROM from_position ORDER BY from_position",
        )
        closed = await _held(
            conn,
            f"SELECT {keys}, from_position, to_position FROM {old} WHERE {mine}"
            " AND to_position <> from_position ORDER BY to_position",
        )
        stored = Stored(shown, opened, closed)
        as_of = (
            f"SELECT {columns} FROM {old} WHERE {mine} AND from_position <= {{0}}"
            " AND (to_position IS NULL OR to_position > {0})"
        )
    for position in samples:
        stored.as_of[position] = await _held(conn, as_of.format(position))
    return stored


async def _held(conn: psycopg.AsyncConnection[Any], query: str) -> HeldRows:
    name = f"held_{uuid4().hex}"
    await conn.execute(f'DECLARE "{name}" NO SCROLL CURSOR WITH HOLD FOR {query}'.encode())
    return HeldRows(conn, name)


def _list(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


async def _rows(conn: psycopg.AsyncConnection[Any], query: str) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode())).fetchall()
