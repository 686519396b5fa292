"""What the relay expects of a broker, met by Apache Kafka: who it is, and what it has acknowledged."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from infra.bus import RECORD_BYTES_MAX, Bus, BusUnavailable
from tests.e2e.servers.kafka import ApacheKafka, version

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(180),
    # kafka-python leaves sockets of failed connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TOPICS = ["counterfoil.t.catalog.v1.p4", "counterfoil.t.ordering.v1.p4"]
PARTITIONS = 4


@pytest.fixture
def bus(kafka: ApacheKafka, caplog: pytest.LogCaptureFixture) -> Iterator[Bus]:
    """On topics that nobody has made."""
    caplog.set_level(logging.CRITICAL, "kafka")  # kept records would keep those sockets
    admin = KafkaAdminClient(bootstrap_servers=kafka.address)
    if known := [topic for topic in admin.list_topics() if topic in TOPICS]:
        admin.delete_topics(known)
    admin.close()
    bus = Bus(kafka.address, TOPICS, PARTITIONS)
    yield bus
    bus.close()
    gc.collect()  # while this test's filter is in force


def test_it_is_the_kafka_that_compose_deploys(jars: str) -> None:
    assert f"kafka_2.13-{version()}.jar" in jars


def test_it_makes_missing_topics_and_knows_each_of_them_from_the_first_answer(bus: Bus) -> None:
    identity = bus.identity()
    cluster, *topics = identity.split("|")
    assert len(cluster) == 22
    assert len(set(topics) - {"None"}) == len(TOPICS)
    assert [bus.identity() for _ in range(3)] == [identity] * 3


def test_its_identity_ends_with_its_topics(bus: Bus, kafka: ApacheKafka) -> None:
    identity = bus.identity()
    admin = KafkaAdminClient(bootstrap_servers=kafka.address)
    admin.delete_topics(TOPICS[:1])
    admin.close()
    cluster, *topics = identity.split("|")
    new_cluster, *new_topics = bus.identity().split("|")
    assert new_cluster == cluster
    assert len(set(topics) & set(new_topics)) == len(TOPICS) - 1


def test_identity_and_producer_outlive_kill_9_and_records_keep_order_without_doubles(
    bus: Bus, kafka: ApacheKafka
) -> None:
    identity = bus.identity()
    records = [(topic, partition, b"%06d" % nth) for nth in range(500) for topic, partition in places()]
    bus.publish(records)
    producer = bus.producer
    os.kill(kafka.pid, signal.SIGKILL)
    kafka.start()
    bus.publish(records)
    assert bus.producer is producer
    assert bus.identity() == identity
    for topic, partition in places():
        expected = [value for *place, value in records if place == [topic, partition]]
        assert consumed(kafka, topic, partition, len(expected) * 2) == expected * 2


def test_the_largest_record_is_taken_and_a_larger_one_is_left_to_the_log(
    bus: Bus, kafka: ApacheKafka
) -> None:
    bus.identity()
    largest = os.urandom(RECORD_BYTES_MAX)  # noise, which no codec makes smaller
    bus.publish(
        [
            (TOPICS[0], 0, b"before"),
            (TOPICS[0], 0, largest),
            (TOPICS[0], 0, largest + b"."),
            (TOPICS[0], 0, b"after"),
        ]
    )
    assert consumed(kafka, TOPICS[0], 0, 3) == [b"before", largest, b"after"]


def test_nothing_is_promised_without_topics_or_broker_and_a_wiped_broker_is_another_one(
    bus: Bus, kafka: ApacheKafka
) -> None:
    """And no client that failed leaves a thread behind."""
    identity = bus.identity()
    bus.publish([(TOPICS[0], 0, b"x")])
    bus.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka.address)
    admin.delete_topics(TOPICS)
    admin.close()
    threads = threading.active_count()
    with pytest.raises(BusUnavailable):
        bus.publish([(TOPICS[0], 0, b"no such topic")])
    bus.identity()
    bus.publish([(TOPICS[0], 0, b"x")])
    os.kill(kafka.pid, signal.SIGKILL)
    with pytest.raises(BusUnavailable):
        bus.publish([(TOPICS[0], 0, b"no broker")])
    with pytest.raises(BusUnavailable, match="nobody listens"):
        bus.identity()
    assert threading.active_count() == threads
    kafka.wipe()
    kafka.start()
    assert bus.identity().split("|")[0] != identity.split("|")[0]


def places() -> list[tuple[str, int]]:
    return [(topic, partition) for topic in TOPICS for partition in range(PARTITIONS)]


def consumed(kafka: ApacheKafka, topic: str, partition: int, records: int) -> list[bytes]:
    """Everything in a partition: at least so many, and then silence."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.address, consumer_timeout_ms=20_000)
    place = TopicPartition(topic, partition)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    found: list[bytes] = []
    end = consumer.end_offsets([place])[place]
    for message in consumer:
        found.append(message.value)
        if message.offset + 1 >= end:
            break
    consumer.close()
    assert len(found) >= records
    return found
