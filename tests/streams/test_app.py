"""The worker: Faust feeds it, and when Faust brings nothing, or something is broken, the process ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.bus import Bus
from infra.engines.broker import EmbeddedBroker
from infra.mapper import StoredFact
from infra.places import PARTITIONS, topics
from infra.runtime import Runtime
from streams import app as app_module
from streams.app import AT_ONCE, BrokerChanged, Feed, Pace, Stalled, _portions, _runs, insist, while_filled
from streams.projector import Projector, Read
from streams.topics import Run, pack
from tests.streams.line import LEDGER, Line
from tests.streams.test_projector import go, place, right
from tests.streams.test_relay import relaying, until

pytestmark = [
    # kafka-python and aiokafka leave sockets of failed connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(tmp_path).start()
    yield server
    server.stop()
    gc.collect()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "HEAL_S", 0.05)
    monkeypatch.setattr(app_module, "JOIN_S", 0.05)
    monkeypatch.setattr(app_module, "STALLED_S", 0.5)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A worker looks for cycles less often; the suite goes on as it was."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_a_feed_that_lives_on_healing_alone_gives_itself_up(line: Line, quick: None) -> None:
    async def story() -> None:
        async with line.projecting() as projector:
            feed = Feed("postgres", projector, Pace(100, 0.01, 4_000))
            tending = asyncio.ensure_future(feed.tend())
            number = 0
            while not tending.done():
                place(line, range(number, number + 1))
                line.publish()
                number += 1
                await asyncio.sleep(0.1)
            with pytest.raises(Stalled):
                await tending

    go(story())


def test_a_feed_that_is_brought_something_now_and_then_goes_on(line: Line, quick: None) -> None:
    async def story() -> None:
        async with line.projecting() as projector:
            feed = Feed("postgres", projector, Pace(100, 0.01, 4_000))
            tending = asyncio.ensure_future(feed.tend())
            for number in range(12):
                place(line, range(number, number + 1))
                line.publish()
                await asyncio.sleep(0.1)
                feed.healing_since = None  # as the agent does with each batch
            assert not tending.done()
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
            assert projector.counted.healed

    go(story())


def test_another_broker_ends_the_worker_whose_offsets_mean_nothing_there(line: Line, quick: None) -> None:
    async def story() -> None:
        line.publish()
        ledger = line.ledger()
        watching = asyncio.ensure_future(while_filled(ledger, "a broker"))
        await asyncio.sleep(0.3)
        assert not watching.done()
        line.conn.execute("UPDATE relay SET broker = 'another'")
        with pytest.raises(BrokerChanged):
            await watching
        await ledger.close()

    go(story())


def test_a_fault_is_waited_out_and_a_bug_is_not() -> None:
    faults = [OSError("away"), OSError("away")]
    asked: list[int] = []

    async def call() -> int:
        asked.append(1)
        if faults:
            raise faults.pop()
        return 7

    async def broken() -> None:
        raise KeyError("a mistake")

    assert asyncio.run(insist("x", call)) == 7
    assert len(asked) == 3
    with pytest.raises(KeyError):
        asyncio.run(insist("x", broken))


def test_bytes_that_are_no_record_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """The gap they leave is read from the log, as any other."""
    run = Run("counterfoil.0.catalog.v1.p4", 1, 3, 5, ())

    def event(value: bytes) -> Any:
        return SimpleNamespace(message=SimpleNamespace(topic=run.topic, partition=run.partition), value=value)

    assert list(_runs([event(b"\x01junk"), event(pack(run))])) == [run]
    assert "counterfoil.0.catalog.v1.p4/1" in caplog.text


def test_what_has_piled_up_is_taken_a_portion_at_a_time_and_a_long_record_alone() -> None:
    fact = StoredFact(1, "acme/pool-p", 1, "capacity.places-taken", b"")
    runs = [Run("t", 0, nth, nth + 1, (fact,) * count) for nth, count in enumerate((2, 1, 0, 1, 9, 1))]
    portions = list(_portions(runs, 3))
    assert [[len(run.facts) for run in portion] for portion in portions] == [[2, 1, 0], [1], [9], [1]]
    assert [run for portion in portions for run in portion] == runs


def test_before_its_first_record_a_feed_waits_a_little_and_then_heals(
    line: Line, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        place(line, range(1))
        line.publish()
        async with line.projecting() as projector:
            feed = Feed("postgres", projector, Pace(100, 0.01, 4_000))
            monkeypatch.setattr(app_module, "JOIN_S", 0.6)
            tending = asyncio.ensure_future(feed.tend())
            await asyncio.sleep(0.4)
            assert not projector.counted.healed
            await until(lambda: projector.counted.healed > 0)
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)

    go(story())


class Broken(Projector):
    """Has a mistake that no retry mends."""

    async def take(self, arrived: Sequence[Run], decoded: Read | None = None) -> None:
        if arrived:
            raise KeyError("a mistake")


@pytest.mark.parametrize("kind", [Projector, Broken])
@pytest.mark.timeout(180)
def test_the_worker_takes_what_the_relay_sends_and_ends_when_it_has_a_bug(
    line: Line, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, kind: type[Projector]
) -> None:
    """After an exception that escaped, a Faust worker may look alive and do nothing: ours is gone."""
    runtime = Runtime(line.settings.model_copy(update={"kafka": broker.address}))
    bus = Bus(broker.address, topics(LEDGER), PARTITIONS)
    logging.getLogger("mode").setLevel(logging.CRITICAL)

    async def story() -> None:
        place(line, range(5))
        async with line.projecting() as whole:
            projector = kind(LEDGER, whole.log, whole.sink, whole.followers)

            async def feeds(_: Runtime) -> list[Feed]:
                feed = Feed("postgres", projector, AT_ONCE)
                monkeypatch.setattr(feed, "tend", asyncio.Event().wait)  # nothing is healed here
                return [feed]

            monkeypatch.setattr(app_module, "feeds", feeds)
            async with relaying(line, bus):
                working = asyncio.ensure_future(app_module.main(runtime))
                if kind is Broken:
                    await asyncio.wait([working], timeout=60)
                    assert working.done(), "it looks alive"
                    with pytest.raises(Exception, match=r"mistake|stopped"):
                        await working
                    return
                await until(lambda: bool(line.marks()) and _complete(line))
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        right(line, "postgres")

    try:
        go(story())
    finally:
        bus.close()


def _complete(line: Line) -> bool:
    try:
        line.agrees()
    except AssertionError:
        return False
    return True
