"""message-db: its own SQL's `write_message`, a call a command, a connection a thread. `on_message_db DSN SQL`

All streams are of one category, as all of ours are of one ledger: it is the category that it locks.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.benchmarks.log.wire import EVENTS_OF_STREAM, PAYLOAD_BYTES, Answer, Op, closed, serve

FILES = (
    "roles/message-store",
    "schema/message-store",
    "tables/messages",
    "types/message",
    *(
        f"functions/{name}"
        for name in (
            "message-store-version",
            "hash-64",
            "acquire-lock",
            "category",
            "is-category",
            "id",
            "cardinal-id",
            "stream-version",
            "write-message",
            "get-stream-messages",
            "get-category-messages",
            "get-last-stream-message",
        )
    ),
    "indexes/messages-id",
    "indexes/messages-category",
    "indexes/messages-stream",
)
"""In the order of its install.sh; without pgcrypto, whose gen_random_uuid is PostgreSQL's own since 13."""
WRITE = b"SELECT message_store.write_message(%t, %t, %t, %t::jsonb, NULL, %b)"
DATA = json.dumps({"hold_id": str(uuid4()), "quantity": 1, "note": ""})
DATA = json.dumps(json.loads(DATA) | {"note": "n" * (PAYLOAD_BYTES - len(DATA))})


def install(dsn: str, folder: Path) -> str:
    """Its SQL files into a fresh database; its version."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = str(conninfo_to_dict(dsn)["dbname"])
        conn.execute(f'ALTER DATABASE "{name}" SET search_path TO message_store, public'.encode())
    with psycopg.connect(dsn, autocommit=True) as conn:
        for file in FILES:
            conn.execute((folder / f"{file}.sql").read_bytes())
        row = conn.execute("SELECT message_store_version()").fetchone()
        assert row is not None
        return str(row[0])


class MessageDb:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def writer(self, conn: psycopg.Connection[Any]) -> Op:
        stream, version = f"pool-{uuid4()}", -1

        def op() -> None:
            nonlocal stream, version
            if version == EVENTS_OF_STREAM - 1:
                stream, version = f"pool-{uuid4()}", -1
            conn.execute(WRITE, (str(uuid4()), stream, "PlacesHeld", DATA, version))
            version += 1

        return op

    def append(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        with ExitStack() as opened:
            ops = []
            for _ in range(concurrent):
                conn = opened.enter_context(psycopg.connect(self.dsn, autocommit=True, prepare_threshold=0))
                ops.append(self.writer(conn))
            return closed(ops, seconds, **measured)


if __name__ == "__main__":
    installed = install(sys.argv[1], Path(sys.argv[2]))
    serve({"append": MessageDb(sys.argv[1]).append}, message_db=installed)
