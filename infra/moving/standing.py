"""Where a ledger stands in a move: open; closed, to be copied; or closed for good, as it is elsewhere."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from infra.migrate import migrations, schema_of
from infra.settings import Settings

Conn = psycopg.Connection[Any]
GUARDED = ("commands", "stored_events")
"""In the order in which `append` writes them; their trigger `closed` refuses it while it is on."""
LOCK_S_MAX = 10
"""For a move that was killed to let go of the ledger, and for an append to end that was under way."""


class MoveRefused(Exception):
    """The move cannot be made, or cannot be called off; what to do instead."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A ledger's head row."""

    position: int
    epoch: int
    closed: str | None
    move: UUID | None

    def arrived_from(self, source: Standing) -> bool:
        """Whether the move that closed `source` was completed here."""
        return source.closed is not None and self.move == source.move and self.closed is None


def opened(settings: Settings) -> Conn:
    """A session of the owner in the ledger, alone: no other move is at work there. Raises MoveRefused."""
    schema = schema_of(settings)
    options = f"-c search_path={schema} -c lock_timeout={LOCK_S_MAX}s"
    conn = psycopg.connect(settings.role_dsn("owner"), autocommit=True, options=options)
    try:
        conn.execute("SELECT pg_advisory_lock(%s)", (zlib.crc32(f"move of {schema}".encode()) | 3 << 32,))
    except psycopg.errors.LockNotAvailable:
        conn.close()
        raise MoveRefused("another move is at work there, or both addresses are the same database") from None
    return conn


def standing(conn: Conn) -> Standing:
    row = conn.execute("SELECT position, epoch, closed, move FROM head").fetchone()
    assert row is not None
    return Standing(*row)


def require_migrated(conn: Conn) -> None:
    """Columns and tables are those of this program. Raises MoveRefused."""
    try:
        applied = {name for (name,) in conn.execute("SELECT name FROM migrations")}
    except psycopg.errors.UndefinedTable:
        applied = set()
    if applied != {name for name, _ in migrations()}:
        raise MoveRefused("there is no ledger as this program has it: run `counterfoil migrate` first")


def close(conn: Conn, move: UUID) -> None:
    """Nobody appends any more, not even a process that was forgotten; what was under way is recorded.

    The head row is locked first, as `append` does: whoever waits for it finds the guards on.
    """
    with conn.transaction():
        conn.execute("SELECT 1 FROM head FOR UPDATE")
        _guard(conn, "ENABLE ALWAYS")
        conn.execute("UPDATE head SET closed = 'moving', move = %s", (move,))


def reopen(conn: Conn) -> None:
    """As if it had never been closed."""
    with conn.transaction():
        conn.execute("SELECT 1 FROM head FOR UPDATE")
        unguard(conn)
        conn.execute("UPDATE head SET closed = NULL, move = NULL")


def unguard(conn: Conn) -> None:
    """Of a ledger that will be open at the end of the transaction."""
    _guard(conn, "DISABLE")


def begin(conn: Conn) -> None:
    """The next epoch of a ledger that has arrived. What a process remembers of the old one is void."""
    conn.execute("UPDATE head SET epoch = epoch + 1, closed = NULL")


def retire(conn: Conn) -> None:
    """It is elsewhere now: also its relay, its workers and its readers stop here."""
    conn.execute("UPDATE head SET closed = 'moved'")


def _guard(conn: Conn, switch: str) -> None:
    for table in GUARDED:
        conn.execute(
            sql.SQL("ALTER TABLE {} {} TRIGGER closed").format(sql.Identifier(table), sql.SQL(switch))
        )
