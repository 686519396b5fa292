"""The moment at which a new version of a projection takes the place of the one that is shown."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import psycopg

from infra.analytics import ClickHouse
from infra.audit.blocks import KeyWithoutPosition
from infra.audit.build import Building, Side
from infra.audit.diff import Difference, past_in_postgres, shown_in_clickhouse, shown_in_postgres
from infra.audit.findings import Progress
from infra.audit.versions import Versions
from infra.ledger import Place
from infra.readmodel import PostgresUnit
from projections.rows import Projection, Table

WINDOW = 100_000
"""Positions compared at once: bounded memory there, and an answer well within the client's time."""


@dataclass(slots=True)
class Switch:
    """One attempt, in one transaction; everything of the shown version is locked until it ends."""

    conn: psycopg.AsyncConnection[Any]
    clickhouse: ClickHouse
    projection: Projection
    versions: Versions
    building: Building
    shown: dict[str, int]
    version: int
    settled: dict[Table, tuple[int, Difference]] = field(default_factory=dict)
    """Of ClickHouse, compared before the workers are stopped: as far as this position."""

    async def marks(self, *, hold: bool) -> dict[str, dict[Place, int]]:
        """Where the shown version stands, by engine.

        Held in the order in which the workers take things: parked rows, then the version, then the marks.
        The version by the whole table, not by its row: a row lock has no queue, and workers who share it
        in turns were measured to keep a third out for 20 s and longer. They wait for any one of the rows
        anyway, and readers are not touched.
        """
        live: dict[str, dict[Place, int]] = {}
        name, lock = self.projection.name, " FOR UPDATE" if hold else ""
        if hold:
            await self.conn.execute("SELECT FROM parked WHERE name = %s FOR UPDATE", (name,))
            await self.conn.execute("LOCK TABLE projections IN EXCLUSIVE MODE")
        for engine, version in sorted(self.shown.items()):
            cursor = await self.conn.execute(
                "SELECT topic, partition, position FROM checkpoints"
                f" WHERE (engine, name, version) = (%s, %s, %s) ORDER BY 1, 2{lock}".encode(),
                (engine, name, version),
            )
            found = {(topic, partition): position for topic, partition, position in await cursor.fetchall()}
            if engine == "clickhouse":
                found = await self._as_far_as_clickhouse(found, version)
            live[engine] = {place: mark for place, mark in found.items() if place in self.building.places}
        return live

    async def _as_far_as_clickhouse(self, found: dict[Place, int], version: int) -> dict[Place, int]:
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            "SELECT topic, partition, max(position) FROM progress"
            " WHERE name = %(name)s AND version = %(version)s GROUP BY topic, partition",
            {"name": self.projection.name, "version": version},
        )
        written = {(topic, partition): int(position) for topic, partition, position in rows}
        return {place: min(mark, written.get(place, 0)) for place, mark in found.items()}

    async def differences(self) -> tuple[Difference, ...]:
        in_postgres = [
            await shown_in_postgres(self.conn, table, self.shown["postgres"], self.version)
            for table in self.versions.in_postgres
        ]
        in_clickhouse = []
        for table in self.versions.in_clickhouse:
            through, settled = self.settled.get(table, (0, None))
            rest = await self._blocks(table, through, None)
            in_clickhouse.append(rest if settled is None else settled.and_also(rest))
        return (*in_postgres, *in_clickhouse)

    async def settle(self, progress: Progress) -> None:
        """Compare in ClickHouse what will not change any more: a row belongs to one position for ever."""
        through = self.building.complete_through()
        for table in self.versions.in_clickhouse:
            if "position" not in table.key:
                raise KeyWithoutPosition(table.name)
            after, settled = 0, None
            while after < through:
                upto = min(after + WINDOW, through)
                part = await self._blocks(table, after, upto)
                settled = part if settled is None else settled.and_also(part)
                after = upto
                progress(f"comparing {table.name}", after, through)
            if settled is not None:
                self.settled[table] = after, settled

    async def _blocks(self, table: Table, after: int, through: int | None) -> Difference:
        return await shown_in_clickhouse(
            self.clickhouse, table, self.shown["clickhouse"], self.version, after, through
        )

    async def past_differences(self) -> tuple[Difference, ...]:
        """After the switch: the old version moves no more."""
        through = self.building.complete_through()
        old = self.shown.get("postgres", 0)
        return tuple(
            [
                await past_in_postgres(self.conn, table, old, self.version, through)
                for table in self.versions.in_postgres
            ]
        )

    async def show(self, live: dict[str, dict[Place, int]]) -> None:
        """Say that the new version is the one, standing where the old one stood."""
        name = self.projection.name
        for side in self.building.sides:
            marks = sorted(live[side.engine].items())
            columns = (
                [place[0] for place, _ in marks],
                [place[1] for place, _ in marks],
                [m for _, m in marks],
            )
            if side.engine == "clickhouse" and marks:
                await asyncio.to_thread(
                    self.clickhouse.insert,
                    "progress",
                    ["name", "version", "topic", "partition", "position"],
                    [[name, self.version, *place, mark] for place, mark in marks],
                )
            await self.conn.execute(
                "INSERT INTO checkpoints SELECT %s, %s, %s, w.*"
                " FROM unnest(%s::text[], %s::int[], %s::bigint[]) w",
                (side.engine, name, self.version, *columns),
            )
            await self.conn.execute(
                "UPDATE projections SET version = %s WHERE (engine, name) = (%s, %s)",
                (self.version, side.engine, name),
            )
            await self._park(side)

    async def _park(self, side: Side) -> None:
        """What the new version could not take is parked, and nothing else."""
        await self.conn.execute(
            "DELETE FROM parked WHERE (engine, name) = (%s, %s)", (side.engine, self.projection.name)
        )
        desk = PostgresUnit(self.conn, side.engine)
        for _, (fact, place, reason) in sorted(side.parked.items()):
            await desk.park(side.follower, place, [(fact, reason)])
