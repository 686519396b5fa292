"""Two versions of a table, row by row, compared where they lie."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import psycopg

from infra.analytics import ClickHouse
from infra.analytics import physical as physical_in_clickhouse
from infra.audit.findings import shown_value
from infra.readmodel import past, physical
from projections.rows import Table

EXAMPLES_MAX = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the version that was shown and the new one, both at the same positions."""

    engine: str
    table: str
    rows: int
    """Of the new version."""
    missing: int
    """In the old version only."""
    added: int
    """In the new version only."""
    changed: int
    examples: tuple[dict[str, Any], ...]

    @property
    def count(self) -> int:
        return self.missing + self.added + self.changed

    def and_also(self, other: Difference) -> Difference:
        """Of two parts of one table."""
        return Difference(
            self.engine,
            self.table,
            self.rows + other.rows,
            self.missing + other.missing,
            self.added + other.added,
            self.changed + other.changed,
            (*self.examples, *other.examples)[:EXAMPLES_MAX],
        )


async def shown_in_postgres(
    conn: psycopg.AsyncConnection[Any], table: Table, old: int, new: int
) -> Difference:
    """What is shown."""
    columns = [column.name for column in table.columns]
    return await _in_postgres(
        conn, table.name, physical(table, old), physical(table, new), list(table.whole_key), columns
    )


async def past_in_postgres(
    conn: psycopg.AsyncConnection[Any], table: Table, old: int, new: int, through: int
) -> Difference:
    """What was shown up to a position that both versions have passed in every partition."""
    columns = [c.name for c in table.columns if not table.sums or c.name in (*table.whole_key, *table.sums)]
    key = [*table.whole_key, "from_position"]
    if not table.sums:
        columns.append("to_position")
    listed = ", ".join(
        f"CASE WHEN to_position <= {through} THEN to_position END AS to_position"
        if name == "to_position"
        else f'"{name}"'
        for name in (*columns, "from_position")
    )
    before, after = (
        f"(SELECT {listed} FROM {past(table, version)} WHERE from_position <= {through})"
        for version in (old, new)
    )
    return await _in_postgres(conn, past(table, new), before, after, key, columns)


async def _in_postgres(
    conn: psycopg.AsyncConnection[Any], name: str, old: str, new: str, key: list[str], columns: list[str]
) -> Difference:
    using = ", ".join(f'"{each}"' for each in key)
    o, n = (", ".join(f'{side}."{column}"' for column in columns) for side in "on")
    (counted,) = await (await conn.execute(f"SELECT count(*) FROM {new} n".encode())).fetchall()
    rows = await (
        await conn.execute(
            f"SELECT {using}, to_jsonb(o), to_jsonb(n), count(*) OVER (),"
            " count(*) FILTER (WHERE n.tenant IS NULL) OVER (),"
            " count(*) FILTER (WHERE o.tenant IS NULL) OVER ()"
            f" FROM {old} o FULL JOIN {new} n USING ({using})"
            f" WHERE ROW({o}) IS DISTINCT FROM ROW({n}) LIMIT {EXAMPLES_MAX}".encode()
        )
    ).fetchall()
    every, missing, added = rows[0][-3:] if rows else (0, 0, 0)
    examples = tuple(
        {
            "key": {each: shown_value(value) for each, value in zip(key, row, strict=False)},
            "old": row[len(key)],
            "new": row[len(key) + 1],
        }
        for row in rows
    )
    return Difference("postgres", name, counted[0], missing, added, every - missing - added, examples)


async def shown_in_clickhouse(
    clickhouse: ClickHouse, table: Table, old: int, new: int, after: int, through: int | None
) -> Difference:
    """What is shown of positions in (after, through]. Rows' hashes are taken there; only keys that differ
    come here."""
    key = ", ".join(table.whole_key)
    columns = ", ".join(column.name for column in table.columns)
    where = f"position > {after}" + ("" if through is None else f" AND position <= {through}")
    name = physical_in_clickhouse(table, new)

    def side(number: int, version: int) -> str:
        return (
            f"SELECT {key}, {number} AS side, sipHash64(toString(tuple({columns}))) AS row_hash"
            f" FROM {physical_in_clickhouse(table, version)} FINAL WHERE {where}"
        )

    differing = (
        f"SELECT {key}, countIf(side = 0) AS in_old, countIf(side = 1) AS in_new"
        f" FROM ({side(0, old)} UNION ALL {side(1, new)}) GROUP BY {key}"
        " HAVING in_old != in_new OR uniqExact(row_hash) != 1"
    )
    _, totals = await asyncio.to_thread(
        clickhouse.query,
        f"SELECT count(), countIf(in_new = 0), countIf(in_old = 0),"
        f" (SELECT count() FROM {name} FINAL WHERE {where}) FROM ({differing})",
    )
    every, missing, added, rows = (int(each) for each in totals[0])
    examples: list[dict[str, Any]] = []
    if every:
        _, keys = await asyncio.to_thread(
            clickhouse.query, f"{differing} ORDER BY {key} LIMIT {EXAMPLES_MAX}"
        )
        for row in keys:
            at = dict(zip(table.whole_key, row, strict=False))
            values = [await _row(clickhouse, table, version, at) for version in (old, new)]
            shown = {each: shown_value(value) for each, value in at.items()}
            examples.append({"key": shown, "old": values[0], "new": values[1]})
    changed = every - missing - added
    return Difference("clickhouse", table.name, rows, missing, added, changed, tuple(examples))


async def _row(
    clickhouse: ClickHouse, table: Table, version: int, key: dict[str, Any]
) -> dict[str, Any] | None:
    columns = ", ".join(column.name for column in table.columns)
    where = " AND ".join(f"{name} = %({name})s" for name in key)
    name = physical_in_clickhouse(table, version)
    names, rows = await asyncio.to_thread(
        clickhouse.query, f"SELECT {columns} FROM {name} FINAL WHERE {where} LIMIT 1", key
    )
    if not rows:
        return None
    return {name: shown_value(value) for name, value in zip(names, rows[0], strict=True)}
