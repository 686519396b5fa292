"""Many facts at once: COPY into the log's own tables, all their indexes in place."""

from __future__ import annotations

import struct
import time
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

import psycopg

from domain.capacity import (
    HoldConfirmed,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    PoolOpened,
    StockAdjusted,
    pool_stream,
)
from domain.facts import Envelope, Event
from domain.values import AdjustmentId, HoldId, OrderId, ReturnId
from infra.mapper import EPOCH, TIME, envelope_json, microseconds, rest_of

CODE = "0" * 32
"""Stands for a pool's code in what is encoded once."""
KEY = "k" * 32
STREAMS_OF_BLOCK = 1_000
BEGIN = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
END = struct.pack(">h", -1)
AT = EPOCH + timedelta(days=20_000)


def life(pool: str) -> list[Event]:
    """A pool's ten facts; no field is sealed, and none is of an older version."""
    ids = [uuid5(UUID(int=0), str(number)) for number in range(6)]
    facts: list[Event] = [PoolOpened(pool=pool, capacity=None)]
    for each in ids[:3]:
        hold_id = HoldId(each)
        facts.append(
            PlacesHeld(pool=pool, hold_id=hold_id, quantity=2, at=AT, expires_at=AT + timedelta(hours=1))
        )
        facts.append(HoldConfirmed(pool=pool, hold_id=hold_id, quantity=2, at=AT))
    facts.append(PlacesTaken(pool=pool, quantity=3, order_id=OrderId(ids[3])))
    facts.append(PlacesReturned(pool=pool, quantity=1, return_id=ReturnId(ids[4])))
    facts.append(
        StockAdjusted(pool=pool, quantity=-1, reason="broken in transit", adjustment_id=AdjustmentId(ids[5]))
    )
    return facts


def preload(conn: psycopg.Connection[Any], tenant: str, facts: int) -> dict[str, Any]:
    """As many commands as there are pools, ten facts each, after what is there; then VACUUM ANALYZE."""
    envelope = envelope_json(Envelope(tenant, "bench", KEY))
    templates = [
        (fact.name.encode(), TIME.pack(microseconds(AT)) + rest_of(fact, number, envelope))
        for number, fact in enumerate(life(CODE))
    ]
    row = conn.execute("SELECT position FROM head").fetchone()
    assert row is not None
    position, streams = int(row[0]), facts // len(templates)
    began = time.monotonic()
    for first in range(0, streams, STREAMS_OF_BLOCK):
        stored, spent = bytearray(BEGIN), bytearray(BEGIN)
        for nth in range(first, min(first + STREAMS_OF_BLOCK, streams)):
            code = uuid5(UUID(int=position), str(nth)).hex.encode()
            stream = f"{tenant}/".encode() + pool_stream(CODE).encode().replace(CODE.encode(), code)
            spent += _row(
                tenant.encode(),
                b"bench",
                code,
                code,
                b"Preloaded",
                struct.pack(">q", position + 1),
                struct.pack(">i", len(templates)),
            )
            for version, (name, state) in enumerate(templates, 1):
                position += 1
                known = state.replace(CODE.encode(), code).replace(KEY.encode(), code)
                stored += _row(stream, struct.pack(">q", version), name, known, struct.pack(">q", position))
        _copy(conn, "stored_events", stored)
        _copy(conn, "commands", spent)
    conn.execute("UPDATE head SET position = %s", (position,))
    for table in ("stored_events", "commands"):
        conn.execute(f"VACUUM ANALYZE {table}".encode())
    conn.execute("CHECKPOINT")
    size = conn.execute("SELECT pg_database_size(current_database())").fetchone()
    assert size is not None
    return {"position": position, "seconds": time.monotonic() - began, "bytes": size[0]}


def _row(*values: bytes) -> bytes:
    """In COPY's binary format."""
    parts = [struct.pack(">h", len(values))]
    for value in values:
        parts += (struct.pack(">i", len(value)), value)
    return b"".join(parts)


def _copy(conn: psycopg.Connection[Any], table: str, block: bytearray) -> None:
    with conn.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT binary)".encode()) as copy:
        copy.write(bytes(block) + END)
