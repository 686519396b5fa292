"""What the log comes to, beside what ClickHouse holds: each window of positions is complete by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any

from domain.facts import Recorded
from infra.analytics import ClickHouse, physical
from infra.audit.compare import Report, places_of_key
from infra.ledger import Head
from projections.fold import Key, Row
from projections.rows import Column, Put, RowOp

STRAYS_MAX = 10_000
"""Rows after the head that are looked at: no more than a worker writes while a verification runs."""


class KeyWithoutPosition(TypeError):
    """A bug: a ClickHouse table's key has to hold the position, so that each row is put by one fact."""


class ClickHouseTable:
    """One table in ClickHouse; its key holds the position, so every window is complete by itself."""

    def __init__(self, report: Report, version: int, clickhouse: ClickHouse, tenant: str | None) -> None:
        self.report, self.clickhouse, self.tenant = report, clickhouse, tenant
        self.table = report.table
        if "position" not in self.table.key:
            raise KeyWithoutPosition(self.table.name)
        self.name = physical(self.table, version)
        self.where = f"clickhouse.{self.name}"
        self.keys = places_of_key(self.table)
        self.at = self.keys[self.table.whole_key.index("position")]
        self.kinds = [_normal(column) for column in self.table.columns]
        self.rows: dict[Key, Row] = {}

    def add(self, recorded: Recorded, op: RowOp) -> None:
        if isinstance(op, Put):
            self.rows[recorded.tenant, *op.key] = (recorded.tenant, *op.values, recorded.position)

    async def window(self, after: int, through: int, ignored: set[int]) -> None:
        """Compare the rows of these positions; those of `ignored` may be there or not."""
        stored = await self._stored(f"position > {after} AND position <= {through}")
        found = {
            tuple(row[place] for place in self.keys): row for row in stored if row[self.at] not in ignored
        }
        self.report.same_window(self.where, self.rows, found)
        self.rows = {}

    async def finish(self, head: int, head_now: Callable[[], Awaitable[Head]]) -> None:
        """Rows that stand for no position of the log, not even for one that came since it was looked at."""
        strays = await self._stored(f"(position < 1 OR position > {head}) LIMIT {STRAYS_MAX}")
        now = (await head_now()).position if strays else head
        for row in strays:
            if not 1 <= row[self.at] <= now:
                self.report.row(self.where, [row[place] for place in self.keys], None, row)

    async def _stored(self, condition: str) -> list[Row]:
        columns = ", ".join(column.name for column in self.table.columns)
        mine = "" if self.tenant is None else "tenant = %(tenant)s AND "
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            f"SELECT {columns}, from_position FROM {self.name} FINAL WHERE {mine}{condition}",
            {"tenant": self.tenant},
        )
        convert = [(place, kind) for place, kind in enumerate(self.kinds) if kind is not None]
        if not convert:
            return rows
        normal = []
        for row in rows:
            values = list(row)
            for place, zone in convert:
                if values[place] is not None:
                    values[place] = values[place].replace(tzinfo=zone[0])
            normal.append(tuple(values))
        return normal


def _normal(column: Column) -> tuple[Any] | None:
    """The client leaves UTC out of times: what an instant has to have again, and a local time has not."""
    return {"instant": (UTC,), "local": (None,)}.get(column.kind)
