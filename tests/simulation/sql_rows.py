"""Statements on read models and their past, for whatever table: the text says which, and its columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from projections.rows import Table
from tests.simulation.database import Key, Session
from tests.simulation.sql import Result, statement


@lru_cache(maxsize=1_000)
def columns(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))


def _key(names: tuple[str, ...], row: Sequence[Any], wanted: tuple[str, ...]) -> Key:
    return tuple(row[names.index(name)] for name in wanted)


@statement(
    r"INSERT INTO (?P<table>\w+_v\d+) \((?P<names>[^)]*)\) SELECT \* FROM unnest.* "
    r"ON CONFLICT \((?P<key>[^)]*)\) DO (UPDATE|NOTHING)"
)
def upsert(session: Session, parameters: Sequence[Any], table: str, names: str, key: str) -> Result:
    for row in zip(*parameters, strict=True):
        session.put(table, _key(columns(names), row, columns(key)), row)
    return Result([])


@statement(r"DELETE FROM (?P<table>\w+_v\d+) t USING unnest")
def remove(session: Session, parameters: Sequence[Any], table: str) -> Result:
    for key in zip(*parameters, strict=True):
        if session.get(table, key) is not None:
            session.delete(table, key)
    return Result([])


# ── the past: rows by (key, from_position); beside them, where each key's open row began ──────────────────


@statement(r"UPDATE (?P<table>\w+_v\d+_history) t SET to_position = d.at FROM unnest")
def close(session: Session, parameters: Sequence[Any], table: str) -> Result:
    for *parts, at in zip(*parameters, strict=True):
        key = tuple(parts)
        began = session.get(f"{table} open", key)
        if began is not None:
            *row, _ = session.get(table, (key, began))
            session.put(table, (key, began), (*row, at))
            session.delete(f"{table} open", key)
    return Result([])


@statement(r"INSERT INTO (?P<table>\w+_v\d+)_history \((?P<names>[^)]*)\) SELECT \* FROM unnest")
def open_row(session: Session, parameters: Sequence[Any], table: str, names: str) -> Result:
    past, wanted = f"{table}_history", KEYS[table]
    for row in zip(*parameters, strict=True):
        key = _key(columns(names), row, wanted)
        session.insert(past, (key, row[-2]), row)
        if row[-1] is None:
            session.insert(f"{past} open", key, row[-2])
    return Result([])


@statement(
    r"WITH moved AS \(INSERT INTO (?P<past>\w+_v\d+_moves) \((?P<names>[^)]*)\).* RETURNING .*\)"
    r" INSERT INTO (?P<table>\w+_v\d+) \(.* GROUP BY (?P<key>.*) ORDER BY .* ON CONFLICT"
)
def move(session: Session, parameters: Sequence[Any], past: str, names: str, table: str, key: str) -> Result:
    wanted = columns(key)
    sums: dict[Key, list[int]] = {}
    for row in zip(*parameters, strict=True):
        mine = _key(columns(names), row, wanted)
        session.insert(past, (mine, row[-1]), row)
        deltas = row[len(wanted) : -1]
        total = sums.setdefault(mine, [0] * len(deltas))
        for nth, delta in enumerate(deltas):
            total[nth] += delta
    for mine in sorted(sums):
        session.lock((table, *mine))
        before = session.get(table, mine) or (*mine, *[0] * len(sums[mine]))
        after = [old + delta for old, delta in zip(before[len(wanted) :], sums[mine], strict=True)]
        session.put(table, mine, (*mine, *after))
    return Result([])


KEYS: dict[str, tuple[str, ...]] = {}
"""Of each table that has a history: its whole key, which the statement on the past does not say."""


def know(name: str, table: Table) -> None:
    KEYS[name] = table.whole_key
    keys = tuple(column.name for column in table.columns if column.name in table.whole_key)
    assert keys == table.whole_key, f"{table.name}: statements name the parts of a key in another order"
