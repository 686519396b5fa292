"""Versions of a projection's tables, in both engines: which there are, made and dropped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

import psycopg

from infra.analytics import ClickHouse
from infra.ledger import connect
from infra.readmodel import definitions, past, physical
from projections.rows import Engine, Projection, Table

LOCK_MS_MAX = 5_000
"""A reader who holds on for longer keeps an old table alive until the next rebuild."""


class Versions:
    """Of one projection. Tables are the owner's; ClickHouse knows one user."""

    def __init__(self, owner_dsn: str, schema: str, clickhouse: ClickHouse, projection: Projection) -> None:
        self.owner_dsn, self.schema, self.clickhouse = owner_dsn, schema, clickhouse
        self.projection = projection
        self.in_postgres = projection.tables_in(Engine.POSTGRES)
        self.in_clickhouse = projection.tables_in(Engine.CLICKHOUSE)
        self.engines = tuple(engine.value for engine in Engine if projection.tables_in(engine))

    async def shown(self, conn: psycopg.AsyncConnection[Any]) -> dict[str, int]:
        """By engine; every engine that the projection fills has its row from here on, which is what a
        rebuild and the workers lock."""
        for engine in self.engines:
            await conn.execute(
                "INSERT INTO projections VALUES (%s, %s, 1) ON CONFLICT DO NOTHING",
                (engine, self.projection.name),
            )
        cursor = await conn.execute(
            "SELECT engine, version FROM projections WHERE name = %s AND engine = ANY(%s)",
            (self.projection.name, list(self.engines)),
        )
        return dict(await cursor.fetchall())

    async def present(self, conn: psycopg.AsyncConnection[Any]) -> set[tuple[str, int]]:
        """(engine, version) of whatever is there, be it a table or a mark."""
        cursor = await conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (self.schema,))
        names = [name for (name,) in await cursor.fetchall()]
        found = {("postgres", version) for version in _numbers(self.in_postgres, names)}
        cursor = await conn.execute(
            "SELECT engine, version FROM checkpoints WHERE name = %s AND engine = ANY(%s)",
            (self.projection.name, list(self.engines)),
        )
        found |= {(engine, version) for engine, version in await cursor.fetchall()}
        if self.in_clickhouse:
            _, rows = await asyncio.to_thread(
                self.clickhouse.query, "SELECT name FROM system.tables WHERE database = currentDatabase()"
            )
            found |= {
                ("clickhouse", version) for version in _numbers(self.in_clickhouse, [r[0] for r in rows])
            }
            _, rows = await asyncio.to_thread(
                self.clickhouse.query,
                "SELECT DISTINCT version FROM progress WHERE name = %(name)s",
                {"name": self.projection.name},
            )
            found |= {("clickhouse", int(version)) for (version,) in rows}
        return found

    async def make(self, version: int) -> None:
        if self.in_postgres:
            owner = await connect(self.owner_dsn, self.schema)
            try:
                async with owner.transaction():
                    for table in self.in_postgres:
                        for statement in definitions(table, version):
                            await owner.execute(statement.encode())
            finally:
                await owner.close()
        if self.in_clickhouse:
            await asyncio.to_thread(self.clickhouse.define, [self.projection], version)

    async def drop(self, unwanted: Iterable[tuple[str, int]]) -> None:
        """Tables first, marks last: what is interrupted is found again."""
        owner = await connect(self.owner_dsn, self.schema)
        try:
            for engine, version in sorted(unwanted):
                if engine == "postgres":
                    await owner.execute(f"SET lock_timeout = {LOCK_MS_MAX}".encode())
                    for table in self.in_postgres:
                        for name in (past(table, version), physical(table, version)):
                            await owner.execute(f"DROP TABLE IF EXISTS {name}".encode())
                else:
                    await asyncio.to_thread(self._drop_in_clickhouse, version)
                await owner.execute(
                    "DELETE FROM checkpoints WHERE (engine, name, version) = (%s, %s, %s)",
                    (engine, self.projection.name, version),
                )
        finally:
            await owner.close()

    def _drop_in_clickhouse(self, version: int) -> None:
        for table in self.in_clickhouse:
            self.clickhouse.command(f"DROP TABLE IF EXISTS {physical(table, version)}")
        self.clickhouse.command(
            f"ALTER TABLE progress DELETE WHERE name = '{self.projection.name}' AND version = {version}"
            " SETTINGS mutations_sync = 2"
        )


def _numbers(tables: Iterable[Table], names: Iterable[str]) -> set[int]:
    listed = "|".join(re.escape(table.name) for table in tables)
    if not listed:
        return set()
    pattern = re.compile(rf"(?:{listed})_v(\d+)(?:_history|_moves)?")
    return {int(found[1]) for name in names if (found := pattern.fullmatch(name))}
