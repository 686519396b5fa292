"""The worker: Faust brings records, projectors take them.

Faust gives membership, assignment and batches, and nothing else is asked of it: what is
acknowledged to the broker is a hint, the truth is the mark that commits with the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import faust
import faust.transport.drivers.aiokafka as driver
import mode

from commands.log import Busy
from infra.analytics import AnalyticsUnavailable, ClickHouseSink
from infra.connection import LedgerMoved, LogUnavailable
from infra.ledger import DATABASE_FAULTS, Ledger
from infra.readmodel import PostgresSink
from infra.runtime import Runtime, run_role
from projections.registry import projections_in
from projections.rows import Engine
from streams.projector import Decoding, Projecting, Projector, Read
from streams.reactions import ReactionSink
from streams.registry import REACTIONS
from streams.topics import PARTITIONS, BadRecord, Run, topic_of, unpack

FETCH_WAIT_MS = 50
"""Faust asks brokers to wait 1,500 ms for more; the embedded one sleeps that long whatever comes."""
HEAL_S = 1.0
JOIN_S = 6.0
"""Before the first record nothing counts as lost for so long: a group takes a few seconds to form."""
DRAIN_S = 5.0
RETRY_S_MAX = 5.0
STALLED_S = 20.0
"""Of healing tails while Faust brings nothing; more than a group needs to find another owner."""
STOP_S_MAX = 3.0
FAULTS = (*DATABASE_FAULTS, LogUnavailable, AnalyticsUnavailable, Busy, OSError)

T = TypeVar("T")
log = logging.getLogger("counterfoil.worker")


class Stalled(RuntimeError):
    """The relay publishes, and Faust brings nothing: rows come from the log alone, and late. Start anew."""


class BrokerChanged(RuntimeError):
    """The relay has filled another broker, where this worker's offsets mean nothing. Start anew."""


def shorten_fetch_wait() -> None:
    """Faust hard-codes its consumer's fetch wait; the consumer's own attribute is the only lever."""
    made = driver.AIOKafkaConsumerThread._create_worker_consumer

    def create(self: Any, transport: Any) -> Any:
        consumer = made(self, transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    setattr(driver.AIOKafkaConsumerThread, made.__name__, create)


def faust_app(runtime: Runtime, broker: str) -> faust.App:
    """The group is named after the broker's memory: offsets from before it forgot are never asked for."""
    session_s = float(os.environ.get("COUNTERFOIL_KAFKA_SESSION_S", "6"))
    return faust.App(
        f"counterfoil-{runtime.settings.ledger}-{zlib.crc32(broker.encode()):08x}",
        broker=[f"kafka://{each}" for each in runtime.kafka.split(",")],
        store="memory://",
        datadir=tempfile.mkdtemp(prefix="counterfoil-worker-"),
        topic_partitions=PARTITIONS,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        processing_guarantee="at_least_once",
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 6,
        broker_rebalance_timeout=10,
        broker_request_timeout=30,
        broker_commit_interval=1,
        stream_wait_empty=False,
        stream_buffer_maxsize=1_024,
        stream_recovery_delay=0,
        web_enabled=False,
        worker_redirect_stdouts=False,
        value_serializer="raw",
        key_serializer="raw",
    )


class Pace(NamedTuple):
    """How a feed takes records: so many at most, or what comes within so long; and facts of one commit."""

    records: int
    within_s: float
    facts: int


AT_ONCE, IN_BLOCKS = Pace(100, 0.03, 4_000), Pace(150, 0.2, 40_000)


class Feed:
    """One projector behind one agent: batches in, retried until the store takes them."""

    def __init__(self, name: str, projector: Projector, pace: Pace) -> None:
        self.name, self.projector, self.pace = name, projector, pace
        self.fed = asyncio.Event()
        """Records have come since the start."""
        self.healing_since: float | None = None
        """When healing began without a record since; None: records come."""

    def attach(self, app: faust.App, ledger: str) -> None:
        names = [topic_of(ledger, context) for context in sorted(self.projector.contexts)]
        topic = app.topic(*names, value_type=bytes, key_type=bytes, internal=False)

        async def agent(stream: Any) -> None:
            async for events in stream.noack_take(self.pace.records, within=self.pace.within_s):
                self.fed.set()
                self.healing_since = None
                await self._take(_portions(_runs(events), self.pace.facts))
                for event in events:
                    event.ack()

        app.agent(
            topic, name=f"counterfoil-{self.name}", concurrency=1, supervisor_strategy=mode.CrashingSupervisor
        )(agent)

    async def _take(self, portions: Iterator[list[Run]]) -> None:
        """Each is decoded while the store commits the one before."""
        ready = await self._read(portions)
        while ready is not None:
            take = partial(self.projector.take, *ready)
            _, ready = await asyncio.gather(insist(self.name, take), self._read(portions))

    async def _read(self, portions: Iterator[list[Run]]) -> tuple[list[Run], Read] | None:
        runs = next(portions, None)
        return None if runs is None else (runs, await self.projector.read(runs))

    async def tend(self) -> None:
        """Heal tails and drain what is parked, until cancelled. Raises Stalled.

        A look every so often, but never twice within one batch: what Faust holds back is not lost.
        """
        clock = asyncio.get_running_loop().time
        drain_at = clock()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.fed.wait(), JOIN_S)
        while True:
            await asyncio.sleep(max(HEAL_S, 2 * self.pace.within_s))
            if await insist(self.name, self.projector.heal_tails):
                self.healing_since = self.healing_since or clock()
                if clock() - self.healing_since > STALLED_S:
                    raise Stalled(f"{self.name}: nothing came for {STALLED_S:.0f} s but from the log")
            if clock() >= drain_at:
                await insist(self.name, self.projector.drain)
                drain_at = clock() + DRAIN_S


def _runs(events: list[Any]) -> Iterator[Run]:
    for event in events:
        message = event.message
        try:
            yield unpack(message.topic, message.partition, event.value)
        except BadRecord as bad:  # what it stood for is a gap now, and read from the log
            log.warning("%s/%d: %s", message.topic, message.partition, bad)


def _portions(runs: Iterable[Run], facts_max: int) -> Iterator[list[Run]]:
    """So many facts a commit, or one run: after a pause the database works on one while the next is read."""
    portion: list[Run] = []
    facts = 0
    for run in runs:
        if portion and facts + len(run.facts) > facts_max:
            yield portion
            portion, facts = [], 0
        portion.append(run)
        facts += len(run.facts)
    if portion:
        yield portion


async def insist(name: str, call: Callable[[], Awaitable[T]]) -> T:
    """Until it works: a fault is waited out, anything else is a bug and ends the worker."""
    pause_s = 0.1
    while True:
        try:
            return await call()
        except FAULTS as fault:
            log.warning("%s: %s: %s; again in %.1f s", name, type(fault).__name__, fault, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_S_MAX)


async def feeds(runtime: Runtime) -> list[Feed]:
    """Postgres at once, ClickHouse in blocks of less than half a second, reactions at once."""
    name = runtime.settings.ledger
    rows = [Projecting(projection) for projection in projections_in(Engine.POSTGRES)]
    blocks = [Projecting(projection) for projection in projections_in(Engine.CLICKHOUSE)]
    ledgers = [runtime.ledger() for _ in range(3)]
    reacting = ReactionSink(ledgers[2], runtime.handler("worker"))
    await insist("reactions", partial(reacting.enlist, name, REACTIONS))
    sinks = (PostgresSink(ledgers[0]), ClickHouseSink(runtime.clickhouse(), ledgers[1]), reacting)
    logs = [runtime.ledger() for _ in range(3)]
    decoding = Decoding()
    return [
        Feed("postgres", Projector(name, logs[0], sinks[0], rows, decoding), AT_ONCE),
        Feed("clickhouse", Projector(name, logs[1], sinks[1], blocks, decoding), IN_BLOCKS),
        Feed("reactions", Projector(name, logs[2], sinks[2], REACTIONS, decoding), AT_ONCE),
    ]


async def main(runtime: Runtime) -> None:
    shorten_fetch_wait()
    ledger = runtime.ledger()
    broker = await filled_broker(ledger)
    app = faust_app(runtime, broker)
    served = await feeds(runtime)
    for feed in served:
        feed.attach(app, runtime.settings.ledger)
    tending = [asyncio.ensure_future(feed.tend()) for feed in served]
    tending.append(asyncio.ensure_future(while_filled(ledger, broker)))
    try:
        await app.start()
        done, _ = await asyncio.wait(
            [*tending, asyncio.ensure_future(app.wait_until_stopped())], return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
        raise RuntimeError("the worker stopped by itself")
    finally:
        for task in tending:
            task.cancel()
        try:
            await asyncio.wait_for(app.stop(), STOP_S_MAX)
        except TimeoutError:
            log.warning("Faust does not stop")
        await ledger.close()


async def filled_broker(ledger: Ledger) -> str:
    """The broker that the relay has filled last, as soon as there is one."""
    while True:
        _, broker, _ = await insist("relay", ledger.relayed)
        if broker:
            return broker
        await asyncio.sleep(HEAL_S / 10)


async def while_filled(ledger: Ledger, broker: str) -> None:
    """Watch it, and the ledger; raises BrokerChanged, LedgerMoved."""
    while True:
        await asyncio.sleep(HEAL_S)
        if (await insist("ledger", ledger.head)).moved:
            raise LedgerMoved("the settings still point at where it was")
        if await filled_broker(ledger) != broker:
            raise BrokerChanged(broker[:60])


if __name__ == "__main__":
    run_role("worker", main)
