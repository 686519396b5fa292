"""Snapshots in Postgres: written down when there is time, and believed only if every byte is as it was."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from commands.snapshots import Base, Form, Snapshot
from infra.connection import Connection, LogUnavailable
from infra.groupcommit import Newer
from infra.mapper import instant, microseconds

WAITING_MAX = 64
"""Snapshots that wait to be taken; more are not. Each keeps the facts that it is folded from in memory."""
DIGEST_BYTES = 32
BODY_FROM = DIGEST_BYTES + 8
KEEP = "SELECT keep_snapshot(%b, %b, %b, %b, %b, %b, %b, %b, %b)"


def digest(tenant: str, snapshot: Snapshot) -> bytes:
    """SHA-256 of everything that is kept about it, the place it is kept in included."""
    form, at_us = snapshot.form, microseconds(snapshot.at)
    place = [tenant, snapshot.stream, form.name, form.shape.hex()]
    told = json.dumps([*place, snapshot.epoch, snapshot.version, snapshot.position, at_us])
    return hashlib.sha256(told.encode() + b"\n" + snapshot.written).digest()


def base_of(tenant: str, form: Form, epoch: int, row: Newer) -> Base | None:
    """Out of a row without a name; None if anything about it is not as it was written."""
    stream, version, position, _, body = row
    try:
        at = instant(int.from_bytes(body[DIGEST_BYTES:BODY_FROM], "big", signed=True))
    except OverflowError:
        return None
    kept = Snapshot(stream, form, epoch, version, position, at, bytes(body[BODY_FROM:]))
    if digest(tenant, kept) != body[:DIGEST_BYTES]:
        return None
    state = form.read(kept.written)
    return None if state is None else Base(state, kept)


class Snapshots:
    """One thread that takes and keeps what it is given, each on a connection of its own: they are rare."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema
        self.thread = ThreadPoolExecutor(1, "snapshots")
        self.room = threading.BoundedSemaphore(WAITING_MAX)

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        """When there is time; not at all if too many wait, or the database does not answer."""
        if self.room.acquire(blocking=False):
            self.thread.submit(self._keep, tenant, take).add_done_callback(lambda _: self.room.release())

    def close(self) -> None:
        """What waits is kept first."""
        self.thread.shutdown()

    def _keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        snapshot = take()
        if snapshot is None:
            return
        form = snapshot.form
        arguments = (
            f"{tenant}/{snapshot.stream}",
            form.name,
            form.shape,
            snapshot.epoch,
            snapshot.version,
            snapshot.position,
            microseconds(snapshot.at),
            digest(tenant, snapshot),
            snapshot.written,
        )
        connection = Connection(self.dsn, self.schema)
        try:
            connection.retrying(lambda conn: conn.execute(KEEP, arguments), once=True)
        except (LogUnavailable, psycopg.Error):
            return  # it is only there to save time
        finally:
            connection.close()
