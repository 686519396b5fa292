"""Projections as sentences: given facts, a table shows these rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from domain.facts import Event, Recorded
from infra.memory import MemoryLog
from projections.fold import Fold
from projections.registry import PROJECTIONS
from projections.rows import Table
from tests.spec import TENANT, given


@dataclass(frozen=True)
class Shown:
    facts: tuple[Recorded, ...]

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """In the order of their keys, without the tenant."""
        fold = Fold()
        for fact in self.facts:
            for projection in PROJECTIONS:
                if fact.event.name in projection.names and table in projection.tables:
                    fold.add(fact, projection.project(fact))
        names = [column.name for column in table.columns]
        shown = [dict(zip(names, row, strict=True)) for _, row in sorted(fold.rows(table).items())]
        assert all(row.pop("tenant") == TENANT for row in shown)
        return shown

    def row(self, table: Table) -> dict[str, Any]:
        (row,) = self.rows(table)
        return row


def after(*events: Event, log: MemoryLog | None = None) -> Shown:
    """The tables after these facts, which were stored and read back."""
    return Shown(given(*events, log=log).facts())
