"""What a snapshot is worth: a cold decision on a pool, folded from its beginning and from a snapshot.

`python -m tests.benchmarks.long_stream` prints a line for each length; both ways take turns in one run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from commands import snapshots
from commands.capacity import HoldPlaces
from commands.handling import Handler
from commands.log import Append, Appended
from domain.capacity import PlacesTaken, Pool, PoolOpened
from domain.facts import Envelope, Event
from domain.values import OrderId
from infra.engines.postgres import EmbeddedPostgres
from infra.eventstore import PostgresLog
from infra.migrate import migrate
from infra.settings import Settings
from tests.ledgers import InPostgres
from tests.spec import ANA, T0, TENANT

LENGTHS = (100, 250, 500, 1_000, 2_300, 10_000, 50_000)
ROUNDS = 9
BATCH_FACTS = 5_000


@contextmanager
def ledger() -> Iterator[InPostgres]:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        server.start()
        try:
            settings = Settings(home=Path(folder) / "home", postgres_dsn=server.dsn)
            migrate(settings)
            stored = InPostgres(settings)
            yield stored
            stored.close()
        finally:
            server.stop()


def fill(log: PostgresLog, pool: str, length: int) -> None:
    """A pool's opening, and one sale after another."""
    facts: list[Event] = [PoolOpened(pool=pool, capacity=None)]
    facts += [PlacesTaken(pool=pool, quantity=1, order_id=OrderId(UUID(int=n))) for n in range(length - 1)]
    for first in range(0, length, BATCH_FACTS):
        few = facts[first : first + BATCH_FACTS]
        envelope = Envelope(TENANT, "ana", f"{pool}-{first}")
        outcome = log.append(Append(envelope, b"d", "Fill", {f"pool-{pool}": first}, few, T0))
        assert isinstance(outcome, Appended)


def cold_ms(log: PostgresLog, pool: str, key: str) -> float:
    """A decision by a handler that remembers nothing, on a connection that is open."""
    handler = Handler(log, lambda: T0)
    began = time.perf_counter()
    handler.handle(HoldPlaces(pool=pool, quantity=1, ttl_s=60), by=ANA, key=key)
    return (time.perf_counter() - began) * 1e3


def kept(stored: InPostgres, log: PostgresLog, pool: str) -> float:
    """Keep a snapshot of the pool as it is; how long that took its thread, in ms."""
    form = snapshots.form_of(Pool)
    assert form is not None
    recalled = log.recall(TENANT, {f"pool-{pool}": None})
    began = time.perf_counter()
    log.snapshots._keep(
        TENANT,
        lambda: snapshots.taken(f"pool-{pool}", Pool, form, None, recalled.facts, recalled.epoch),
    )
    return (time.perf_counter() - began) * 1e3


def forgotten(stored: InPostgres) -> None:
    with stored.admin() as conn:
        conn.execute("DELETE FROM snapshots")


def measure(stored: InPostgres, lengths: Sequence[int]) -> None:
    snapshots.FOLD_FACTS_MIN = 1 << 60  # kept when this says so
    log = stored.open()
    print(f"{'facts':>7} {'folded':>10} {'snapshot':>10} {'ratio':>7} {'keeping':>9}")
    for length in lengths:
        pool = f"p{length}"
        fill(log, pool, length)
        whole, short, keeping = [], [], []
        for turn in range(ROUNDS):
            forgotten(stored)
            whole.append(cold_ms(log, pool, f"{pool}-whole-{turn}"))
            keeping.append(kept(stored, log, pool))
            short.append(cold_ms(log, pool, f"{pool}-short-{turn}"))
        folded, read = statistics.median(whole), statistics.median(short)
        took = statistics.median(keeping)
        print(f"{length:>7,} {folded:>7.1f} ms {read:>7.1f} ms {folded / read:>7.1f} {took:>6.1f} ms")


if __name__ == "__main__":
    with ledger() as stored:
        measure(stored, LENGTHS)
