"""I7, I10: what is shown is what the log comes to, in both engines, now and as of earlier positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domain.facts import Recorded
from infra.queries import Standing
from infra.readmodel import past, physical
from projections.fold import Fold, Key, Row
from projections.registry import PROJECTIONS, projections_in
from projections.rows import Engine, Projection, Table
from tests.simulation.blocks import Blocks
from tests.simulation.database import Database
from tests.simulation.notes import Broken

HEAD = 2**62
SHOWN = "I7 what is shown is what the log comes to"
AT_LEAST = "I13 what is said to be shown is"


def folded(facts: Sequence[Recorded], projections: Sequence[Projection] = PROJECTIONS) -> Fold:
    fold = Fold()
    for fact in facts:
        for projection in projections:
            if fact.event.name in projection.names:
                fold.add(fact, projection.project(fact))
    return fold


def judge_views(database: Database, blocks: Blocks, facts: Sequence[Recorded]) -> None:
    fold = folded(facts)
    for projection in PROJECTIONS:
        for table in projection.tables_in(Engine.POSTGRES):
            agree(table, "now", fold.rows(table), dict(database.tables[physical(table, 1)]))
        for table in projection.tables_in(Engine.CLICKHOUSE):
            agree(table, "now", fold.rows(table), in_blocks(blocks, table, HEAD))
    judge_past(database, fold, HEAD)
    middle = len(facts) // 2
    judge_past(database, folded(facts[:middle]), middle)


def judge_past(
    database: Database, fold: Fold, position: int, projections: Sequence[Projection] = PROJECTIONS
) -> None:
    for projection in projections:
        for table in projection.tables_in(Engine.POSTGRES):
            agree(table, f"as of {position}", fold.rows(table), told(database, table, position))


def judge_read(database: Database, blocks: Blocks, facts: Sequence[Recorded], standing: Standing) -> None:
    """I13: what is said to have come as far as these facts shows them all, but for what is parked."""
    position = len(facts)
    parked = {name for engine, name, _ in standing.desk.parked if engine == standing.engine}
    projections = [each for each in projections_in(standing.engine) if each.name not in parked]
    fold = folded(facts, projections)
    for projection in projections:
        for table in projection.tables_in(standing.engine):
            if standing.engine is Engine.POSTGRES:
                shown = told(database, table, position)
            else:
                shown = in_blocks(blocks, table, position)
            agree(table, f"at least as new as {position}", fold.rows(table), shown, AT_LEAST)


def told(database: Database, table: Table, position: int) -> dict[Key, Row]:
    """The table at a position, from its history or its moves."""
    rows: dict[Key, Any] = {}
    for (key, _), row in database.tables[past(table, 1)].items():
        if table.sums:
            *names, since = row
            if since <= position:
                before = rows.get(key, (*key, *[0] * len(table.sums)))
                deltas = names[len(key) :]
                rows[key] = (*key, *map(sum, zip(before[len(key) :], deltas, strict=True)))
        else:
            *names, since, until = row
            if since <= position and (until is None or until > position):
                rows[key] = tuple(names)
    return rows


def in_blocks(blocks: Blocks, table: Table, position: int) -> dict[Key, Row]:
    """A table in ClickHouse, of what was written up to a position."""
    names = [column.name for column in table.columns]
    return {
        key: tuple(row[name] for name in names)
        for key, row in blocks.tables[physical(table, 1)].items()
        if row["from_position"] <= position
    }


def agree(
    table: Table, when: str, expected: dict[Key, Row], found: dict[Key, Row], invariant: str = SHOWN
) -> None:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [key for key in expected.keys() & found.keys() if expected[key] != found[key]]
    if missing or extra or other:
        example = [(key, expected.get(key), found.get(key)) for key in [*missing, *extra, *other][:2]]
        raise Broken(
            invariant,
            f"{table.name} {when}: {len(missing)} rows missing, {len(extra)} too many,"
            f" {len(other)} different; e.g. {example}",
        )
