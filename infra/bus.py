"""The broker, as the relay needs it: topics that exist, records that are acknowledged, and who it is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

RECORD_BYTES_MAX = 900_000
"""Brokers take 1 MiB by default. A larger record is left out: whoever follows reads the gap from the log."""
ACKNOWLEDGED_S_MAX = 15
BROKER_S_MAX = 5
TOPICS_MADE_S_MAX = 5
CLOSE_S_MAX = 2


class BusUnavailable(Exception):
    """The broker does not answer, or has lost its memory of this producer: start afresh."""


class Bus:
    """One producer. After any failure it is worthless: close it and make another."""

    def __init__(self, bootstrap: str, topics: list[str], partitions: int, replication: int = 1) -> None:
        self.bootstrap, self.topics = bootstrap.split(","), topics
        self.partitions, self.replication = partitions, replication
        self.producer: KafkaProducer | None = None

    def identity(self) -> str:
        """Names the broker's memory: it changes when topics had to be made anew. Makes missing topics."""
        self._await_broker()
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self.bootstrap, request_timeout_ms=5_000, bootstrap_timeout_ms=5_000
            )
            try:
                known = set(admin.list_topics())
                for topic in self.topics:
                    if topic not in known:
                        new = NewTopic(
                            topic, num_partitions=self.partitions, replication_factor=self.replication
                        )
                        try:
                            admin.create_topics([new])
                        except TopicAlreadyExistsError:
                            continue
                ids = self._topic_ids(admin)
                cluster = admin.describe_cluster().get("cluster_id")
                return f"{cluster}|{'|'.join(ids)}"
            finally:
                admin.close()
        except (KafkaError, AssertionError, OSError) as lost:
            raise BusUnavailable(f"{type(lost).__name__}: {lost}") from lost

    def _await_broker(self) -> None:
        """A client that cannot begin leaves its thread behind: none is made before somebody listens."""
        deadline_s = time.monotonic() + BROKER_S_MAX
        while time.monotonic() < deadline_s:
            for broker in self.bootstrap:
                host, _, port = broker.rpartition(":")
                with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                    return
            time.sleep(0.1)
        raise BusUnavailable(f"nobody listens at {','.join(self.bootstrap)}")

    def _topic_ids(self, admin: KafkaAdminClient) -> list[str]:
        """Of all topics, or none: Kafka itself answers for one it has just made before it knows its id."""
        deadline_s = time.monotonic() + TOPICS_MADE_S_MAX
        while time.monotonic() < deadline_s:
            ids = [each.get("topic_id") for each in admin.describe_topics(self.topics)]
            if all(ids):
                return sorted(str(each) for each in ids)
            time.sleep(0.05)
        raise BusUnavailable("the topics have been made, and the broker does not know them yet")

    def publish(self, records: Iterable[tuple[str, int, bytes]]) -> None:
        """Send (topic, partition, value) in order and wait until every one is acknowledged."""
        try:
            producer = self._producer()
            futures: list[Any] = [
                producer.send(topic, partition=partition, value=value)
                for topic, partition, value in records
                if len(value) <= RECORD_BYTES_MAX
            ]
            producer.flush(timeout=ACKNOWLEDGED_S_MAX)
            for future in futures:
                future.get(timeout=0.001)
        except (KafkaError, AssertionError, OSError, RuntimeError) as lost:
            self.close()
            raise BusUnavailable(f"{type(lost).__name__}: {lost}") from lost

    def _producer(self) -> KafkaProducer:
        if self.producer is None:
            self.producer = KafkaProducer(
                bootstrap_servers=self.bootstrap,
                acks="all",
                enable_idempotence=True,
                linger_ms=5,
                batch_size=256 * 1024,
                compression_type="lz4",
                delivery_timeout_ms=ACKNOWLEDGED_S_MAX * 1_000,
                request_timeout_ms=5_000,
                max_block_ms=5_000,
                reconnect_backoff_max_ms=1_000,
            )
        return self.producer

    def close(self) -> None:
        """At once: what was not acknowledged is sent again by whoever comes next."""
        if self.producer is not None:
            producer, self.producer = self.producer, None
            # Its own close waits for what it cannot send, then raises and leaves its thread behind.
            producer._sender.force_close()
            producer._sender.join(CLOSE_S_MAX)
            with contextlib.suppress(KafkaError):
                producer.close(timeout=0)
