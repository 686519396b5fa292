"""One ledger's tables, from one snapshot of one database into one transaction of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from infra.audit.findings import Progress
from infra.moving.standing import Conn, MoveRefused
from infra.readmodel import definitions, past, physical
from projections.registry import PROJECTIONS
from projections.rows import Engine, Table

NOT_COPIED = frozenset({"migrations", "state_snapshots"})
"""The target's own say what has been applied to it; snapshots are of an epoch that ends here."""
TABLES = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::text::regnamespace AND relkind = 'r'"
)
COLUMNS = """
SELECT attname FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
CONTENT = """
SELECT count(*), coalesce(bit_xor(
       ('x' || left(encode(sha256(convert_to(whole_row::text, 'UTF8')), 'hex'), 16))::bit(64)::bigint), 0)
  FROM {} whole_row
"""
"""Rows have keys and so are all different: whatever order they are in, what they come to is the same."""
UNGAPPED = """
SELECT h.position, count(*), coalesce(max(e.notification_id), 0), coalesce(min(e.notification_id), 1)
  FROM head h LEFT JOIN stored_events e ON true GROUP BY 1
"""
SAME_TEXT = (
    "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET bytea_output = 'hex'; SET extra_float_digits = 1"
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a table comes to."""

    rows: int
    sum: int


@dataclass(frozen=True, slots=True)
class Copied:
    """Rows by table; and the source's tables that are not this program's, or of versions nobody is shown."""

    rows: dict[str, int]
    left_behind: tuple[str, ...]


def copy(source: Conn, target: Conn, progress: Progress) -> Copied:
    """Everything, and compare. Both connections are in a transaction, the source's with one snapshot.

    Raises MoveRefused where the two differ, or the log has a gap.
    """
    shown = dict(source.execute("SELECT name, version FROM projections WHERE engine = 'postgres'").fetchall())
    tables = _prepare(target, shown)
    present = {name for (name,) in source.execute(TABLES)}
    for conn in (source, target):
        conn.execute(SAME_TEXT)
    rows = {}
    for table in tables:
        before = _content(source, table)
        _copy(source, target, table, progress)
        if _content(target, table) != before:
            raise MoveRefused(f"{table} is not the same in both databases; the old ledger is as it was")
        rows[table] = before.rows
    _require_ungapped(target)
    return Copied(rows, tuple(sorted(present - NOT_COPIED - set(tables))))


def _prepare(target: Conn, shown: dict[str, int]) -> list[str]:
    """Empty tables, of the versions that are shown; returns the names of all that are to be filled."""
    for projection in PROJECTIONS:
        version = shown.get(projection.name, 1)
        if version == 1:
            continue
        for table in projection.tables_in(Engine.POSTGRES):
            for name in _names(table, 1):
                target.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
            for statement in definitions(table, version):
                target.execute(statement.encode())
    tables = sorted({name for (name,) in target.execute(TABLES)} - NOT_COPIED)
    target.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, tables))))
    return tables


def _names(table: Table, version: int) -> Iterator[str]:
    yield physical(table, version)
    yield past(table, version)


def _copy(source: Conn, target: Conn, table: str, progress: Progress) -> None:
    """COPY into a table passes its row-level security by: for that moment its owner is not held to it."""
    name = sql.Identifier(table)
    columns = sql.SQL(", ").join(sql.Identifier(column) for (column,) in target.execute(COLUMNS, (table,)))
    forced = target.execute(
        "SELECT relforcerowsecurity FROM pg_class WHERE oid = %s::regclass", (table,)
    ).fetchone()
    size = source.execute("SELECT pg_relation_size(%s::regclass)", (table,)).fetchone()
    assert forced is not None
    assert size is not None
    if forced[0]:
        target.execute(sql.SQL("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY").format(name))
    done = 0
    with (
        source.cursor().copy(sql.SQL("COPY {} ({}) TO STDOUT (FORMAT binary)").format(name, columns)) as out,
        target.cursor().copy(
            sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(name, columns)
        ) as into,
    ):
        for block in out:
            into.write(block)
            done += len(block)
            progress(f"{table}, bytes", done, max(done, size[0]))
    progress(f"{table}, bytes", done, done)
    if forced[0]:
        target.execute(sql.SQL("ALTER TABLE {} FORCE ROW LEVEL SECURITY").format(name))


def _content(conn: Conn, table: str) -> Content:
    row = conn.execute(sql.SQL(CONTENT).format(sql.Identifier(table))).fetchone()
    assert row is not None
    return Content(*row)


def _require_ungapped(conn: Conn) -> None:
    row = conn.execute(UNGAPPED).fetchone()
    assert row is not None
    position, facts, last, first = row
    if not (position == facts == last and first == 1):
        raise MoveRefused(f"the log ends at {position} and has {facts} facts: run `counterfoil verify` first")


def is_empty(conn: Conn) -> bool:
    """Whether nothing was ever recorded here."""
    row: tuple[Any, ...] | None = conn.execute(
        "SELECT position = 0 AND NOT EXISTS (SELECT FROM commands) FROM head"
    ).fetchone()
    return row is not None and bool(row[0])
