"""The floor: psycopg, one INSERT and its COMMIT a command, a connection a thread. `on_raw DSN`

Also the negative control: positions from a sequence, read in their order, with nothing that keeps order.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import psycopg

from tests.benchmarks.log.wire import EVENTS_OF_STREAM, PAYLOAD_BYTES, Answer, Op, closed, serve

TABLE = """
CREATE TABLE events (
    stream text COLLATE "C" NOT NULL, version bigint NOT NULL, position bigserial UNIQUE, name text NOT NULL,
    state bytea NOT NULL, PRIMARY KEY (stream, version)
)"""
INSERT = b"INSERT INTO events (stream, version, name, state) VALUES (%b, %b, %b, %b)"
STATE = bytes(range(PAYLOAD_BYTES))


class Raw:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(TABLE)

    def writer(self, conn: psycopg.Connection[Any]) -> Op:
        stream, version = str(uuid4()), 0

        def op() -> None:
            nonlocal stream, version
            if version == EVENTS_OF_STREAM:
                stream, version = str(uuid4()), 0
            version += 1
            conn.execute(INSERT, (stream, version, "capacity.places-held", STATE), binary=True)

        return op

    def append(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        with ExitStack() as opened:
            ops = []
            for _ in range(concurrent):
                conn = opened.enter_context(psycopg.connect(self.dsn, autocommit=True, prepare_threshold=0))
                ops.append(self.writer(conn))
            return closed(ops, seconds, **measured)


if __name__ == "__main__":
    serve({"append": Raw(sys.argv[1]).append}, psycopg=psycopg.__version__)
