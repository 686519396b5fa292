"""The relay: every fact leaves in log order, at least once, and what it says about it is fenced."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from commands.catalog import ListOffer
from commands.handling import Handler
from commands.ordering import PlaceOrder
from domain.ordering import OrderPlaced
from infra.bus import RECORD_BYTES_MAX, Bus, BusUnavailable
from infra.engines.broker import EmbeddedBroker
from infra.eventstore import PostgresLog
from infra.ledger import Deposed, Ledger, Place
from infra.places import PARTITIONS, context_of, topics
from streams import relay as relay_module
from streams.relay import Publisher, Relay
from streams.topics import Run, unpack
from tests.ledgers import CLAIM_KEY
from tests.spec import ANA, T0, document
from tests.spec import line as order_line
from tests.streams.line import LEDGER, Line
from tests.streams.test_projector import heal, order_id, place, right


class MemoryBus:
    """A broker's memory, shared by the publishers that were given it."""

    def __init__(self, name: str = "a broker") -> None:
        self.name = name
        self.records: list[Run] = []
        self.failing = 0
        self.closed = 0
        self.before: Callable[[], None] = lambda: None

    def identity(self) -> str:
        return self.name

    def publish(self, records: list[tuple[str, int, bytes]]) -> None:
        self.before()
        if self.failing:
            self.failing -= 1
            raise BusUnavailable("it does not answer")
        self.records += [unpack(*record) for record in records]

    def close(self) -> None:
        self.closed += 1

    def forget(self, name: str) -> None:
        """Killed, and another one on its port."""
        self.name, self.records = name, []

    def places(self) -> dict[Place, list[Run]]:
        by_place: dict[Place, list[Run]] = {}
        for run in self.records:
            by_place.setdefault(run.place, []).append(run)
        return by_place


def go(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 90))


@asynccontextmanager
async def relaying(line: Line, bus: Publisher, desk: Any = None) -> AsyncIterator[Relay]:
    """A relay at work in its own task, ended with the block."""
    ledger = line.ledger()
    relay = Relay(LEDGER, desk or ledger, bus)
    task = asyncio.ensure_future(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ledger.close()


async def until(true: Callable[[], bool], timeout_s: float = 40) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not true():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


def through(line: Line) -> int:
    row = line.conn.execute("SELECT through FROM relay").fetchone()
    assert row is not None
    return int(row[0])


def head(line: Line) -> int:
    return len(line.stored())


async def until_through(line: Line) -> None:
    await until(lambda: through(line) == head(line))


def complete(line: Line, bus: MemoryBus, after: int = 0) -> None:
    """Every fact past a position was published, and every partition's records join up."""
    published = {fact.position: fact for run in bus.records for fact in run.facts if fact.position > after}
    assert [published[at] for at in sorted(published)] == [f for f in line.stored() if f.position > after]
    for runs in bus.places().values():
        for one, other in pairwise(sorted(runs, key=lambda run: run.last)):
            assert other.after <= one.last


def test_every_fact_leaves_in_log_order_and_a_partitions_records_join_up(line: Line) -> None:
    async def story() -> None:
        bus = MemoryBus()
        place(line, range(10))
        async with relaying(line, bus):
            await until_through(line)
            place(line, range(10, 14))
            await until_through(line)
        complete(line, bus)
        for runs in bus.places().values():
            assert [run.after for run in runs] == [0, *[run.last for run in runs[:-1]]]
        _, broker, heads = await relayed(line)
        assert broker == "a broker"
        assert heads == {at: runs[-1].last for at, runs in bus.places().items()}

    go(story())


async def relayed(line: Line) -> tuple[int, str, dict[Place, int]]:
    ledger = line.ledger()
    try:
        return await ledger.relayed()
    finally:
        await ledger.close()


def test_it_misses_nothing_while_many_write(line: Line) -> None:
    async def story() -> None:
        bus = MemoryBus()
        async with relaying(line, bus):
            await asyncio.gather(*(asyncio.to_thread(write, line, name) for name in "stuv"))
            await until_through(line)
        assert head(line) == 4 * 30 * 2
        complete(line, bus)

    go(story())


def write(line: Line, name: str) -> None:
    log = PostgresLog(line.settings.role_dsn("app"), line.schema, CLAIM_KEY)
    handler = Handler(log, lambda: T0)
    for number in range(30):
        handler.handle(ListOffer(offer=f"{name}{number}", title="x"), by=ANA, key=f"{name}-{number}")
    log.close()


class DiesBeforeAdvancing:
    """A desk whose relay is killed after it has published, before it can say so."""

    def __init__(self, ledger: Ledger, deaths: int = 1) -> None:
        self.ledger, self.deaths = ledger, deaths

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def advance(
        self, fence: int, through: int, heads: dict[Place, int], broker: str | None = None
    ) -> None:
        if heads and self.deaths:
            self.deaths -= 1
            raise BusUnavailable("killed")
        await self.ledger.advance(fence, through, heads, broker)


def test_a_crash_between_publishing_and_saying_so_repeats_and_the_projector_counts_once(line: Line) -> None:
    async def story() -> None:
        bus = MemoryBus()
        place(line, range(6))
        ledger = line.ledger()
        async with relaying(line, bus, DiesBeforeAdvancing(ledger, deaths=2)):
            await until_through(line)
        await ledger.close()
        assert len(bus.records) > len({(run.place, run.last) for run in bus.records})
        complete(line, bus)
        async with line.projecting() as projector:
            await projector.take(bus.records)
        right(line, "postgres")

    go(story())


def test_a_broker_that_fails_is_asked_again_until_it_takes_everything(line: Line) -> None:
    async def story() -> None:
        bus = MemoryBus()
        bus.failing = 3
        place(line, range(6))
        async with relaying(line, bus):
            await until_through(line)
        assert bus.closed >= 3
        complete(line, bus)

    go(story())


def test_a_second_relay_stands_by_and_takes_over_when_the_first_ends(line: Line) -> None:
    async def story() -> None:
        bus, second = MemoryBus(), MemoryBus()
        async with relaying(line, second):
            place(line, range(3))
            await until_through(line)
            async with relaying(line, bus):
                await asyncio.sleep(0.5)
                place(line, range(3, 6))
                await until_through(line)
            assert not bus.records
        bus.name = second.name
        position = head(line)
        async with relaying(line, bus):
            place(line, range(6, 9))
            await until_through(line)
        complete(line, bus, after=position)
        assert min(run.last for run in bus.records) > position

    go(story())


def test_a_relay_that_was_frozen_finds_itself_deposed_and_says_nothing_more(line: Line) -> None:
    async def story() -> None:
        ledger, other = line.ledger(), line.ledger()
        fence = await ledger.take_over()
        assert fence is not None
        assert await other.take_over() is None
        expire(line)
        newer = await other.take_over()
        assert newer is not None
        assert newer > fence
        place(line, range(2))
        await other.advance(newer, 2, {("t", 0): 2})
        for _ in range(2):
            with pytest.raises(Deposed):
                await ledger.advance(fence, head(line), {("t", 0): head(line)}, "its own broker")
        assert await other.relayed() == (2, "", {("t", 0): 2})
        await ledger.resign(fence)
        assert await ledger.take_over() is None  # it cannot give away what is not its own
        await ledger.close()
        await other.close()

    go(story())


def expire(line: Line) -> None:
    line.conn.execute("UPDATE relay SET lease_until = clock_timestamp() - interval '1 second'")


def test_frozen_in_the_middle_of_publishing_it_stands_by_when_it_wakes(line: Line) -> None:
    """What it had sent until then is a double, and does no harm."""

    async def story() -> None:
        frozen, entered = threading.Event(), threading.Event()
        bus, other = MemoryBus(), MemoryBus()

        def freeze() -> None:
            entered.set()
            frozen.wait(60)

        bus.before = freeze
        place(line, range(4))
        async with relaying(line, bus) as sleeper:
            await until(entered.is_set)
            async with relaying(line, other):
                expire(line)
                await until_through(line)
                complete(line, other)
                frozen.set()
                await until(lambda: bus.closed > 0)
                place(line, range(4, 6))
                await until_through(line)
                assert sleeper.published == 0
        async with line.projecting() as projector:
            await projector.take([*other.records, *bus.records])
        right(line, "postgres")

    go(story())


def test_an_empty_broker_is_refilled_from_the_oldest_checkpoint(line: Line) -> None:
    async def story() -> None:
        bus = MemoryBus("the first")
        place(line, range(8))
        async with relaying(line, bus):
            await until_through(line)
        runs = line.runs()
        async with line.projecting() as projector:
            await projector.take(runs[: len(runs) // 2])
        _, _, heads = await relayed(line)
        oldest = min(mark for (_, topic, part), mark in line.marks().items() if mark < heads[topic, part])
        bus.forget("the second")
        async with relaying(line, bus):
            place(line, range(8, 10))
            await until_through(line)
            await until(lambda: broker_of(line) == "the second")
        complete(line, bus, after=oldest)
        async with line.projecting() as projector:
            await projector.take(bus.records)
            await heal(projector)
        right(line, "postgres")

    go(story())


def test_an_idle_relay_notices_an_empty_broker_and_refills_it(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written any more: it has to look by itself."""
    monkeypatch.setattr(relay_module, "IDENTITY_S", 0.2)

    async def story() -> None:
        bus = MemoryBus("the first")
        place(line, range(8))
        runs = line.runs()
        async with line.projecting() as projector:
            await projector.take(runs[: len(runs) // 2])
        async with relaying(line, bus) as relay:
            await until_through(line)
            _, _, heads = await relayed(line)
            oldest = min(mark for (_, topic, part), mark in line.marks().items() if mark < heads[topic, part])
            bus.forget("the second")
            await until(lambda: broker_of(line) == "the second")
            complete(line, bus, after=oldest)
            assert {fact.position for run in bus.records for fact in run.facts} >= set(
                range(oldest + 1, head(line) + 1)
            )
            published = relay.published
            await asyncio.sleep(0.7)
            assert relay.published == published, "the same broker is not filled again"
        async with line.projecting() as projector:
            await projector.take(bus.records)
            await heal(projector)
        right(line, "postgres")

    go(story())


def test_an_idle_relay_whose_broker_is_gone_waits_for_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "IDENTITY_S", 0.1)

    class Away(MemoryBus):
        away = 0

        def identity(self) -> str:
            if self.away:
                self.away -= 1
                raise BusUnavailable("nobody listens")
            return super().identity()

    async def story() -> None:
        bus = Away()
        place(line, range(2))
        async with relaying(line, bus) as relay:
            await until_through(line)
            published = relay.published
            bus.away = 3
            await until(lambda: bus.away == 0)
            await asyncio.sleep(0.5)
            assert relay.published == published, "it has its memory still"
            place(line, range(2, 4))
            await until_through(line)
        complete(line, bus)

    go(story())


def broker_of(line: Line) -> str:
    row = line.conn.execute("SELECT broker FROM relay").fetchone()
    assert row is not None
    return str(row[0])


def test_a_refill_that_is_cut_short_begins_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new broker is on record only when it holds all that is missed."""
    monkeypatch.setattr(relay_module, "CYCLE_FACTS_MAX", 1)

    async def story() -> None:
        bus = MemoryBus("the first")
        place(line, range(8))
        async with relaying(line, bus):
            await until_through(line)
        async with line.projecting() as projector:
            await projector.take(line.runs()[:2])  # everybody else misses everything
        bus.forget("the second")

        class Short(DiesBeforeAdvancing):
            async def facts(self, after: int, through: int) -> Sequence[Any]:
                return await self.ledger.facts(after, through, limit=5)

        ledger = line.ledger()
        short = Short(ledger, deaths=3)
        async with relaying(line, bus, short):
            await until(lambda: short.deaths == 0)
            await until(lambda: broker_of(line) == "the second")
        await ledger.close()
        complete(line, bus, after=min(line.marks().values()))

    go(story())


def test_a_context_nobody_knows_yet_stops_nothing_and_is_in_the_heads(line: Line) -> None:
    """A newer program wrote it. There is no topic for it here; its followers will read it from the log."""

    async def story() -> None:
        bus = MemoryBus()
        place(line, range(2))
        strange = line.poison("acme/ticket-1", name="ticketing.ticket-issued")
        place(line, range(2, 4))
        async with relaying(line, bus):
            await until_through(line)
        assert "ticketing" not in {context_of(run.topic) for run in bus.records}
        _, _, heads = await relayed(line)
        assert [last for (topic, _), last in heads.items() if context_of(topic) == "ticketing"] == [strange]

    go(story())


# ── on the embedded broker ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(tmp_path).start()
    yield server
    server.stop()


def consumed(broker: EmbeddedBroker) -> list[Run]:
    """All that the broker holds."""
    consumer = KafkaConsumer(bootstrap_servers=broker.address, group_id=None, enable_auto_commit=False)
    parts = [TopicPartition(topic, partition) for topic in topics(LEDGER) for partition in range(PARTITIONS)]
    consumer.assign(parts)
    consumer.seek_to_beginning()
    found: list[Run] = []
    quiet = 0
    while quiet < 3:
        polled = consumer.poll(timeout_ms=400)
        quiet = 0 if polled else quiet + 1
        found += [unpack(at.topic, at.partition, r.value) for at, records in polled.items() for r in records]
    consumer.close()
    return found


@pytest.fixture
def bus(broker: EmbeddedBroker) -> Iterator[Bus]:
    bus = Bus(broker.address, topics(LEDGER), PARTITIONS)
    yield bus
    bus.close()
    gc.collect()  # kafka-python leaves sockets of failed connections to it, in force of this test's filter


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_killed_and_back_empty_is_noticed_and_refilled(
    line: Line, broker: EmbeddedBroker, bus: Bus
) -> None:
    async def story() -> None:
        place(line, range(6))
        async with relaying(line, bus):
            await until_through(line)
            first = broker_of(line)
            os.kill(broker.pid, signal.SIGKILL)
            broker.start()
            place(line, range(6, 9))
            await until_through(line)
            await until(lambda: broker_of(line) not in ("", first))
        found = await asyncio.to_thread(consumed, broker)
        async with line.projecting() as projector:
            await projector.take(found)
            await heal(projector)
        right(line, "postgres")

    go(story())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_idle_relay_notices_that_a_broker_came_back_empty(
    line: Line, broker: EmbeddedBroker, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "IDENTITY_S", 0.5)

    async def story() -> None:
        place(line, range(6))
        async with line.projecting() as projector:
            await projector.take(line.runs()[:2])
        async with relaying(line, bus):
            await until_through(line)
            first = broker_of(line)
            os.kill(broker.pid, signal.SIGKILL)
            broker.start()
            await until(lambda: broker_of(line) not in ("", first))
        found = await asyncio.to_thread(consumed, broker)
        assert max(run.last for run in found) == head(line)
        async with line.projecting() as projector:
            await projector.take(found)
            await heal(projector)
        right(line, "postgres")

    go(story())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_record_too_large_for_a_broker_is_left_out_and_read_from_the_log(
    line: Line, broker: EmbeddedBroker, bus: Bus
) -> None:
    async def story() -> None:
        place(line, range(3))
        lines = tuple(order_line("a", 1, "1.25") for _ in range(12_000))
        large = PlaceOrder(order_id=order_id(77), document=document("77"), lines=lines, settled=True)
        line.handler().handle(large, by=ANA, key="large")
        assert max(len(fact.state) for fact in line.stored()) > RECORD_BYTES_MAX
        place(line, range(3, 5))
        async with relaying(line, bus):
            await until_through(line)
        found = await asyncio.to_thread(consumed, broker)
        carried = {fact.position for run in found for fact in run.facts}
        left = [fact for fact in line.stored() if fact.position not in carried]
        assert {fact.name for fact in left} == {OrderPlaced.name}
        async with line.projecting() as projector:
            await projector.take(found)
            await heal(projector)
        right(line, "postgres")

    go(story())
