"""What the log comes to, beside what is stored: row by row, in windows of positions, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from domain.facts import Recorded
from infra.audit.cut import Stored
from infra.audit.findings import REBUILD, Findings, shown_value
from infra.readmodel import past, physical
from projections.fold import Fold, Key, Row
from projections.rows import Add, Delete, Put, RowOp, Table


@dataclass(slots=True)
class Report:
    """Where the comparisons of one table go."""

    findings: Findings
    projection: str
    table: Table
    rows: dict[str, int]

    def compared(self, where: str, count: int) -> None:
        self.rows[where] = self.rows.get(where, 0) + count

    def differ(self, kind: str, what: str, where: str, key: Iterable[Any]) -> None:
        values = list(key)
        named = ", ".join(
            f"{name}={shown_value(value)}" for name, value in zip(self.table.whole_key, values, strict=False)
        )
        do = REBUILD.format(self.projection)
        self.findings.add(kind, f"{what} ({named})", where, do, group=where)

    def row(self, where: str, key: Iterable[Any], expected: Row | None, stored: Row | None) -> None:
        """Tell one row's difference."""
        if expected is None and stored is not None:
            self.differ("row-extra", "a row that no fact accounts for", where, key)
        elif stored is None:
            self.differ("row-missing", "a row is missing", where, key)
        elif expected is not None:
            names = [column.name for column in self.table.columns]
            values = zip(names, expected, stored, strict=False)
            what = "; ".join(
                f"{name} is {shown_value(there)!r:.80}, the log says {shown_value(due)!r:.80}"
                for name, due, there in values
                if due != there
            )
            self.differ("row-different", what or "its position differs", where, key)

    async def same(
        self, where: str, expected: Mapping[Key, Row], stored: AsyncIterable[Row], counted: str = ""
    ) -> None:
        """Compare a whole table as it is, or as it was at some position."""
        places = places_of_key(self.table)
        left = dict(expected)
        async for row in stored:
            key = tuple(row[place] for place in places)
            due = left.pop(key, None)
            if due != row:
                self.row(where, key, due, row)
        for key, due in left.items():
            self.row(where, key, due, None)
        self.compared(counted or where, len(expected))

    def same_window(self, where: str, expected: Mapping[Any, Any], stored: Mapping[Any, Any]) -> None:
        """Compare what came about within some positions."""
        if expected != stored:
            for key in expected.keys() | stored.keys():
                if expected.get(key) != stored.get(key):
                    self.row(where, key, expected.get(key), stored.get(key))
        self.compared(where, len(expected))


def places_of_key(table: Table) -> list[int]:
    names = [column.name for column in table.columns]
    return [names.index(name) for name in table.whole_key]


# ── Postgres ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class PutPast:
    """What the history of one table has to say: rows with where they begin, and where each ended."""

    since: dict[Key, int] = field(default_factory=dict)
    opened: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    closed: dict[tuple[Any, ...], Row] = field(default_factory=dict)

    def add(self, tenant: str, position: int, op: RowOp, row: Row | None) -> None:
        key = (tenant, *op.key)
        before = self.since.pop(key, None)
        if before == position:
            self.opened.pop((*key, position), None)  # put twice by one fact: only the later one ever was
        elif before is not None:
            self.closed[*key, before, position] = ()
        if row is not None:
            self.since[key] = position
            self.opened[*key, position] = row


class PostgresTable:
    """One table in Postgres: its fold is compared with what is shown, its events with its past."""

    def __init__(self, report: Report, version: int, stored: Stored, fold: Fold) -> None:
        self.report, self.stored, self.fold = report, stored, fold
        self.table = report.table
        self.shown = f"postgres.{physical(self.table, version)}"
        self.past = f"postgres.{past(self.table, version)}"
        self.puts = PutPast()
        self.moves: dict[tuple[Any, ...], list[int]] = {}
        self.keys = places_of_key(self.table)
        kept = [c.name for c in self.table.columns if c.name in (*self.table.whole_key, *self.table.sums)]
        self.move_keys = [kept.index(name) for name in self.table.whole_key]
        self.move_sums = [kept.index(name) for name in self.table.sums]

    def add(self, recorded: Recorded, op: RowOp) -> None:
        """What one fact, which has been folded already, does to the table's past."""
        match op:
            case Add(deltas=deltas):
                key = (recorded.tenant, *op.key, recorded.position)
                move = self.moves.setdefault(key, [0] * len(self.table.sums))
                for nth, name in enumerate(self.table.sums):
                    move[nth] += deltas.get(name, 0)
            case Put():
                row = self.fold.rows(self.table)[recorded.tenant, *op.key]
                self.puts.add(recorded.tenant, recorded.position, op, row)
            case Delete():
                self.puts.add(recorded.tenant, recorded.position, op, None)

    async def window(self, through: int) -> None:
        """Compare what came about up to `through` and not in the window before."""
        rows = await self.stored.opened.upto(-1, through)
        if self.table.sums:
            due = {key: tuple(sums) for key, sums in self.moves.items()}
            moves = {
                (*[row[n] for n in self.move_keys], row[-1]): tuple(row[n] for n in self.move_sums)
                for row in rows
            }
            self._moves(due, moves)
            self.moves = {}
            return
        opened = {(*[row[n] for n in self.keys], row[-1]): row[:-1] for row in rows}
        self.report.same_window(self.past, self.puts.opened, opened)
        assert self.stored.closed is not None
        closed: dict[tuple[Any, ...], Row] = dict.fromkeys(await self.stored.closed.upto(-1, through), ())
        for key in self.puts.closed.keys() ^ closed.keys():
            there = "ends" if key in closed else "does not end"
            what = f"the row from position {key[-2]} {there} at {key[-1]}, where the log says otherwise"
            self.report.differ("past-different", what, self.past, key)
        self.puts.opened, self.puts.closed = {}, {}

    def _moves(self, due: dict[Key, Row], stored: dict[Key, Row]) -> None:
        self.report.compared(self.past, len(due))
        for key in due.keys() | stored.keys() if due != stored else ():
            if due.get(key) != stored.get(key):
                what = (
                    f"position {key[-1]} moved {_told(self.table, stored.get(key))},"
                    f" the log says {_told(self.table, due.get(key))}"
                )
                self.report.differ("past-different", what, self.past, key)

    async def sampled(self, position: int) -> None:
        where = f"{self.past} as of {position}"
        rows = self.fold.rows(self.table)
        await self.report.same(where, rows, self.stored.as_of[position].every(), "samples")

    async def finish(self, head: int) -> None:
        for row in [row async for row in self.stored.opened.every()]:
            self.report.differ("past-different", f"an entry at {row[-1]}, after {head}", self.past, row)
        await self.report.same(self.shown, self.fold.rows(self.table), self.stored.shown.every())


def _told(table: Table, sums: Row | None) -> str:
    if sums is None:
        return "nothing"
    return ", ".join(f"{name} {shown_value(each)}" for name, each in zip(table.sums, sums, strict=True))
