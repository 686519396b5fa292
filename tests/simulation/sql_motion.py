"""Statements of the relay's desk, of checkpoints and parked facts, and of the agenda."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.simulation.database import Session
from tests.simulation.sql import Result, statement

ONLY = ()


def _stored(session: Session, after: int, through: int) -> list[tuple[Any, ...]]:
    stored = session.database.tables["stored_events"]
    return [(at, *row) for at in range(after + 1, through + 1) if (row := stored.get((at,))) is not None]


# ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────


@statement(r"SELECT position, epoch, closed IS NOT DISTINCT FROM 'moved' FROM head")
def head(session: Session, parameters: Sequence[Any]) -> Result:
    """No ledger moves here."""
    position, _, epoch = session.get("head", ONLY)
    return Result([(position, epoch, False)])


@statement(r"SELECT notification_id, .* AND notification_id <= %b ORDER BY notification_id LIMIT")
def facts(session: Session, parameters: Sequence[Any]) -> Result:
    after, through, limit = parameters
    return Result(_stored(session, after, through)[:limit])


@statement(r"SELECT notification_id, .* AND topic >= %b AND topic < %b ORDER BY notification_id")
def facts_of_context(session: Session, parameters: Sequence[Any]) -> Result:
    after, through, low, high = parameters
    return Result([row for row in _stored(session, after, through) if low <= row[3] < high])


@statement(r"SELECT notification_id, .* WHERE notification_id = ANY\(%b\) ORDER BY notification_id")
def facts_at(session: Session, parameters: Sequence[Any]) -> Result:
    stored = session.database.tables["stored_events"]
    return Result([(at, *stored[at,]) for at in sorted(parameters[0]) if (at,) in stored])


# ── the relay's desk: (through, broker, fence, lease_until) ───────────────────────────────────────────────


@statement(r"UPDATE relay SET fence = fence \+ 1,.* WHERE lease_until < clock_timestamp\(\) RETURNING fence")
def take_over(session: Session, parameters: Sequence[Any]) -> Result:
    session.lock(("relay",))
    through, broker, fence, lease_until = session.get("relay", ONLY)
    if lease_until >= session.database.clock():
        return Result([])
    session.put("relay", ONLY, (through, broker, fence + 1, session.database.clock() + parameters[0]))
    return Result([(fence + 1,)], 1)


@statement(r"SELECT through, broker FROM relay")
def relayed(session: Session, parameters: Sequence[Any]) -> Result:
    return Result([session.get("relay", ONLY)[:2]])


@statement(r"SELECT topic, partition, last_position FROM relay_head")
def relay_heads(session: Session, parameters: Sequence[Any]) -> Result:
    return Result([(*place, last) for place, last in session.scan("relay_head")])


@statement(r"UPDATE relay SET through = greatest\(.* WHERE fence = %s")
def advance(session: Session, parameters: Sequence[Any]) -> Result:
    session.lock(("relay",))
    reached, named, lease_s, mine = parameters
    through, broker, fence, _ = session.get("relay", ONLY)
    if fence != mine:
        return Result([], 0)
    broker = broker if named is None else named
    session.put("relay", ONLY, (max(through, reached), broker, fence, session.database.clock() + lease_s))
    return Result([], 1)


@statement(r"INSERT INTO relay_head SELECT \* FROM unnest.* ON CONFLICT \(topic, partition\) DO UPDATE")
def advance_heads(session: Session, parameters: Sequence[Any]) -> Result:
    for topic, partition, last in zip(*parameters, strict=True):
        session.lock(("relay_head", topic, partition))
        before = session.get("relay_head", (topic, partition)) or 0
        session.put("relay_head", (topic, partition), max(before, last))
    return Result([])


@statement(r"UPDATE relay SET lease_until = '-infinity' WHERE fence = %s")
def resign(session: Session, parameters: Sequence[Any]) -> Result:
    session.lock(("relay",))
    through, broker, fence, _ = session.get("relay", ONLY)
    if fence == parameters[0]:
        session.put("relay", ONLY, (through, broker, fence, float("-inf")))
    return Result([])


@statement(r"SELECT min\(c.position\) FROM checkpoints c JOIN relay_head h")
def oldest_checkpoint(session: Session, parameters: Sequence[Any]) -> Result:
    behind = [
        position
        for (engine, name, version, *place), position in session.scan("checkpoints")
        if version == (session.get("projections", (engine, name)) or 1)
        and position < (session.get("relay_head", tuple(place)) or 0)
    ]
    return Result([(min(behind, default=None),)])


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────


@statement(r"SELECT name, version FROM projections WHERE engine = %s( AND name = ANY\(%s\) FOR SHARE)?$")
def shown_versions(session: Session, parameters: Sequence[Any]) -> Result:
    return Result([(name, v) for (engine, name), v in session.scan("projections") if engine == parameters[0]])


@statement(
    r"SELECT c.name, c.topic, c.partition, c.position FROM checkpoints c JOIN unnest.* FOR UPDATE OF c"
)
def hold_marks(session: Session, parameters: Sequence[Any]) -> Result:
    *columns, engine = parameters
    rows = []
    for name, version, topic, partition in sorted(
        zip(*columns, strict=True), key=lambda row: (row[0], *row[2:])
    ):
        key = (engine, name, version, topic, partition)
        if session.get("checkpoints", key) is not None:
            session.lock(("checkpoints", *key))
            rows.append((name, topic, partition, session.get("checkpoints", key)))
    return Result(rows)


@statement(r"INSERT INTO checkpoints SELECT %s, %s, %s, w.topic, w.partition, 0 FROM unnest")
def begin_marks(session: Session, parameters: Sequence[Any]) -> Result:
    engine, name, version, topics, partitions = parameters
    for place in zip(topics, partitions, strict=True):
        _begin(session, (engine, name, version, *place), 0)
    return Result([])


@statement(r"INSERT INTO checkpoints SELECT %s, %s, 1, w.topic, w.partition, h.position FROM unnest")
def begin_marks_at_head(session: Session, parameters: Sequence[Any]) -> Result:
    engine, name, topics, partitions = parameters
    for place in zip(topics, partitions, strict=True):
        _begin(session, (engine, name, 1, *place), session.get("head", ONLY)[0])
    return Result([])


def _begin(session: Session, key: tuple[Any, ...], position: int) -> None:
    if session.get("checkpoints", key) is None:
        session.lock(("checkpoints", *key))
        session.put("checkpoints", key, position)


@statement(r"UPDATE checkpoints c SET position = w.position FROM unnest.* AND c.position < w.position")
def move_marks(session: Session, parameters: Sequence[Any]) -> Result:
    *columns, engine = parameters
    for *name, position in zip(*columns, strict=True):
        key = (engine, *name)
        session.lock(("checkpoints", *key))
        before = session.get("checkpoints", key)
        if before is not None and before < position:
            session.put("checkpoints", key, position)
    return Result([])


@statement(r"SELECT c.name, c.topic, c.partition, c.position FROM checkpoints c LEFT JOIN projections p")
def standing(session: Session, parameters: Sequence[Any]) -> Result:
    wanted, names = parameters
    return Result(
        [
            (name, topic, partition, position)
            for (engine, name, version, topic, partition), position in session.scan("checkpoints")
            if engine == wanted
            and name in names
            and version == (session.get("projections", (engine, name)) or 1)
        ]
    )


# ── parked facts ──────────────────────────────────────────────────────────────────────────────────────────


@statement(r"SELECT DISTINCT name, stream FROM parked WHERE engine = %s AND name = ANY\(%s\)")
def parked_streams(session: Session, parameters: Sequence[Any]) -> Result:
    wanted, names = parameters
    rows = dict.fromkeys(
        (name, stream)
        for (engine, name, stream, _), _ in session.scan("parked")
        if engine == wanted and name in names
    )
    return Result(list(rows))


@statement(r"INSERT INTO parked \(engine, name, stream, position, topic, partition, reason\)")
def park(session: Session, parameters: Sequence[Any]) -> Result:
    key, row = tuple(parameters[:4]), tuple(parameters[4:])
    session.lock(("parked", *key))
    if session.get("parked", key) is None:
        session.put("parked", key, row)
    return Result([])


@statement(r"DELETE FROM parked WHERE \(engine, name\) = \(%s, %s\) AND position = ANY\(%s\)")
def unpark(session: Session, parameters: Sequence[Any]) -> Result:
    engine, name, positions = parameters
    for key in [
        key for key, _ in session.scan("parked") if key[:2] == (engine, name) and key[3] in positions
    ]:
        session.delete("parked", key)
    return Result([])


@statement(
    r"SELECT stream, position, topic, partition FROM parked WHERE .* ORDER BY position LIMIT %s FOR UPD"
)
def parked_facts(session: Session, parameters: Sequence[Any]) -> Result:
    engine, name, after, limit = parameters
    found = sorted(
        (key[3], key, row)
        for key, row in session.scan("parked")
        if key[:2] == (engine, name) and key[3] > after
    )[:limit]
    for _, key, _ in found:
        session.lock(("parked", *key))
    return Result([(key[2], position, *row[:2]) for position, key, row in found])


# ── what is due: (at, command, body, causation, correlation) ──────────────────────────────────────────────


@statement(r"SELECT key, tenant, at, command, body, causation, correlation FROM due")
def due(session: Session, parameters: Sequence[Any]) -> Result:
    now = session.database.now()
    found = sorted((row[0], key, row) for key, row in session.scan("due") if row[0] <= now)
    return Result([(key, tenant, *row) for _, (tenant, key), row in found[: parameters[0]]])


@statement(r"INSERT INTO due \(key, tenant, at, command, body, causation, correlation\)")
def set_due(session: Session, parameters: Sequence[Any]) -> Result:
    key, tenant, at, command, body, causation, correlation = parameters
    session.lock(("due", tenant, key))
    if session.get("due", (tenant, key)) is None:
        row = (at, command, json.loads(json.dumps(body.obj)), causation, correlation)
        session.put("due", (tenant, key), row)
    return Result([])


@statement(r"DELETE FROM due USING unnest")
def done(session: Session, parameters: Sequence[Any]) -> Result:
    for key in zip(*parameters, strict=True):
        if session.get("due", key) is not None:
            session.delete("due", key)
    return Result([])
