"""The bus on the embedded broker: what is acknowledged is there, and a broker that forgot is noticed."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.bus import RECORD_BYTES_MAX, Bus, BusUnavailable
from infra.engines.broker import EmbeddedBroker
from infra.engines.server import free_port
from infra.places import PARTITIONS, topics
from streams.topics import Run, pack
from tests.streams.test_relay import consumed

pytestmark = [
    # kafka-python leaves sockets of failed connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOPICS = topics("0")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture
def bus(broker: EmbeddedBroker) -> Iterator[Bus]:
    bus = Bus(broker.address, TOPICS, PARTITIONS)
    yield bus
    bus.close()
    gc.collect()


def records(count: int) -> list[tuple[str, int, bytes]]:
    return [
        (topic, partition, pack(Run(topic, partition, nth, nth + 1, ())))
        for nth in range(count)
        for topic in TOPICS
        for partition in range(PARTITIONS)
    ]


def test_its_identity_stays_as_long_as_its_memory(bus: Bus, broker: EmbeddedBroker) -> None:
    first = bus.identity()
    assert bus.identity() == first
    assert len(first.split("|")) == 1 + len(TOPICS)
    os.kill(broker.pid, signal.SIGKILL)
    broker.start()
    assert bus.identity() != first


def test_what_is_acknowledged_can_be_read_in_its_order(bus: Bus, broker: EmbeddedBroker) -> None:
    bus.identity()
    bus.publish(records(5))
    bus.publish(records(2))
    found: dict[tuple[str, int], list[int]] = {}
    for run in consumed(broker):
        found.setdefault(run.place, []).append(run.last)
    assert found == {(topic, part): [1, 2, 3, 4, 5, 1, 2] for topic in TOPICS for part in range(PARTITIONS)}


def test_a_broker_that_forgot_its_producer_says_so_at_once(bus: Bus, broker: EmbeddedBroker) -> None:
    bus.identity()
    bus.publish(records(1))
    os.kill(broker.pid, signal.SIGKILL)
    broker.start()
    with pytest.raises(BusUnavailable):
        bus.publish(records(1))
    bus.identity()
    bus.publish(records(1))


def test_no_broker_is_a_fault_to_wait_for() -> None:
    nowhere = Bus(f"127.0.0.1:{free_port()}", TOPICS, PARTITIONS)
    with pytest.raises(BusUnavailable):
        nowhere.identity()
    gc.collect()


def test_a_record_no_broker_would_take_is_left_out(bus: Bus, broker: EmbeddedBroker) -> None:
    bus.identity()
    small = records(1)[0]
    bus.publish([small, (TOPICS[0], 0, b"\x01" * (RECORD_BYTES_MAX + 1)), small])
    assert len(consumed(broker)) == 2
