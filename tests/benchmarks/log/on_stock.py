"""eventsourcing as it comes: its recorder in the default lock mode, its aggregates. `on_stock DSN`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

from tests.benchmarks.log.rotation import EVENTS_AT_FIRST, STREAMS_EACH, Rotation
from tests.benchmarks.log.wire import EVENTS_OF_STREAM, PAYLOAD_BYTES, Answer, Op, closed, serve

STATE = bytes(range(PAYLOAD_BYTES))
NOTE = "n" * 90
"""Brings a stored hold to about PAYLOAD_BYTES in the library's own JSON."""


class Pool(Aggregate):
    def __init__(self) -> None:
        self.held = 0

    @event("Held")
    def hold(self, hold_id: UUID, quantity: int, note: str) -> None:
        self.held += quantity


class Stock:
    def __init__(self, dsn: str) -> None:
        url = urlsplit(dsn)
        self.environment = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": url.path.strip("/"),
            "POSTGRES_HOST": str(url.hostname),
            "POSTGRES_PORT": str(url.port),
            "POSTGRES_USER": str(url.username),
            "POSTGRES_PASSWORD": str(url.password),
        }
        Application[UUID](self.environment | {"POSTGRES_POOL_SIZE": "2"}).close()  # makes the tables
        self.url = url

    @contextmanager
    def recorder(self, concurrent: int) -> Iterator[PostgresApplicationRecorder]:
        datastore = PostgresDatastore(
            dbname=self.url.path.strip("/"),
            host=str(self.url.hostname),
            port=str(self.url.port),
            user=str(self.url.username),
            password=str(self.url.password),
            pool_size=concurrent,
            max_overflow=4,
        )
        try:
            yield PostgresApplicationRecorder(datastore, events_table_name="application_events")
        finally:
            datastore.close()

    def append(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        with self.recorder(concurrent) as recorder:
            return closed([self.writer(recorder) for _ in range(concurrent)], seconds, **measured)

    @staticmethod
    def writer(recorder: PostgresApplicationRecorder) -> Op:
        stream, version = uuid4(), 0

        def op() -> None:
            nonlocal stream, version
            if version == EVENTS_OF_STREAM:
                stream, version = uuid4(), 0
            version += 1
            recorder.insert_events([StoredEvent(stream, version, "capacity.places-held", STATE)])

        return op

    def decide(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        app = Application[UUID](self.environment | {"POSTGRES_POOL_SIZE": str(concurrent)})
        try:
            return closed([self.decider(app) for _ in range(concurrent)], seconds, **measured)
        finally:
            app.close()

    @staticmethod
    def decider(app: Application[UUID]) -> Op:
        def opened() -> UUID:
            pool = Pool()
            for _ in range(EVENTS_AT_FIRST - 1):
                pool.hold(uuid4(), 1, NOTE)
            app.save(pool)
            return pool.id

        turn = Rotation(opened, STREAMS_EACH)

        def op() -> None:
            pool: Pool = app.repository.get(turn.next())
            pool.hold(uuid4(), 1, NOTE)
            app.save(pool)

        return op


if __name__ == "__main__":
    stock = Stock(sys.argv[1])
    serve(
        {"append": stock.append, "decide": stock.decide},
        eventsourcing=version_of("eventsourcing"),
    )
