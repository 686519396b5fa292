"""Read models folded in memory: what every table has to hold, whoever else keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from domain.facts import Recorded
from projections.rows import Add, Delete, Put, RowOp, Table

Key = tuple[Any, ...]
"""The tenant, then the table's key."""
Row = tuple[Any, ...]
"""The values of the table's columns, in their order."""


class Fold:
    """The tables that some facts come to, of both engines; facts of one stream in their order."""

    def __init__(self) -> None:
        self.tables: dict[Table, dict[Key, Row]] = {}

    def add(self, recorded: Recorded, ops: Iterable[RowOp]) -> None:
        for op in ops:
            rows = self.tables.setdefault(op.table, {})
            key = (recorded.tenant, *op.key)
            match op:
                case Put():
                    rows[key] = (recorded.tenant, *op.values)
                case Delete():
                    rows.pop(key, None)
                case Add(deltas=deltas):
                    rows[key] = _added(op.table, key, rows.get(key), deltas)

    def rows(self, table: Table) -> dict[Key, Row]:
        """By key; empty when no fact filled the table."""
        return self.tables.get(table, {})


def _added(table: Table, key: Key, before: Row | None, deltas: Any) -> Row:
    columns = [column.name for column in table.columns]
    held = (
        dict(zip(table.whole_key, key, strict=True))
        if before is None
        else dict(zip(columns, before, strict=True))
    )
    for name in table.sums:
        held[name] = held.get(name, 0) + deltas.get(name, 0)
    return tuple(held[name] for name in columns)
