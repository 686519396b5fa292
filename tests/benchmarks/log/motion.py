"""The log in motion: the relay with a publisher that throws everything away, and decode + fold."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import psycopg

from domain.capacity import Pool
from infra.mapper import StoredFact
from infra.runtime import Runtime
from infra.settings import Settings
from streams.relay import Relay

RELAY_S_MAX = 300.0
LOOK_S = 0.002


class Discard:
    """A broker that has everything at once."""

    records = 0
    octets = 0

    def identity(self) -> str:
        return "discard"

    def publish(self, records: list[tuple[str, int, bytes]]) -> None:
        self.records += len(records)
        self.octets += sum(len(value) for _, _, value in records)

    def close(self) -> None:
        """Nothing is open."""


async def relay(runtime: Runtime, facts: int) -> dict[str, Any]:
    """The relay itself, its own reads, cuts and marks included, from the first fact to the `facts`-th."""
    ledger, bus = runtime.ledger(), Discard()
    made = Relay(runtime.settings.ledger, ledger, bus)
    began, cpu_s = time.monotonic(), time.process_time()
    running = asyncio.ensure_future(made.run())
    ends = began + RELAY_S_MAX
    while made.published < facts and not running.done() and time.monotonic() < ends:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    spent_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await ledger.close()
    return {
        "per_s": made.published / spent_s,
        "published": made.published,
        "records": bus.records,
        "cpu_us": cpu_s / made.published * 1e6,
    }


async def fold(runtime: Runtime, facts: int) -> dict[str, Any]:
    """Stored bytes to facts to states, by CPU time of one core; reading them from Postgres is told beside."""
    ledger = runtime.ledger()
    stored: list[StoredFact] = []
    began = time.monotonic()
    while len(stored) < facts:
        page = await ledger.facts(stored[-1].position if stored else 0, facts)
        if not page:
            break
        stored += page
    read_s = time.monotonic() - began
    await ledger.close()
    states: dict[str, Pool] = {}
    cpu_s = time.process_time()
    for fact in stored:
        recorded = fact.recorded()
        state = states.get(recorded.stream)
        if state is None:
            state = states[recorded.stream] = Pool()
        state.apply(recorded.event)
    cpu_s = time.process_time() - cpu_s
    return {"per_s": len(stored) / cpu_s, "facts": len(stored), "read_per_s": len(stored) / read_s}


def head(schema: str, settings: Settings) -> dict[str, Any]:
    """How the one row that every append updates is doing, in tuples and bytes."""
    assert settings.postgres_dsn is not None
    with psycopg.connect(settings.postgres_dsn, autocommit=True, options=f"-c search_path={schema}") as conn:
        row = conn.execute(
            "SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count, pg_relation_size('head'),"
            " pg_total_relation_size('head') FROM pg_stat_user_tables"
            " WHERE schemaname = %s AND relname = 'head'",
            (schema,),
        ).fetchone()
        assert row is not None
        names = ("dead_tuples", "updates", "hot_updates", "autovacuums", "bytes", "total_bytes")
        return dict(zip(names, row, strict=True))
