"""Who is raced, and what each of them does for one command. All write about 250 bytes an event."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.log import ours
from tests.benchmarks.log.peers import Peers

HERE = "tests.benchmarks.log"
RAW, STOCK = "raw", "stock"
PEERS = MESSAGE_DB, EMMETT, PROTEAN = "message-db", "emmett", "protean"
OUR_LOG = (
    "SELECT notification_id, state FROM ledger_0.stored_events WHERE notification_id > %b"
    " ORDER BY 1 LIMIT 4000"
)
MESSAGES = (
    "SELECT global_position, data::text FROM message_store.messages WHERE global_position > %b"
    " ORDER BY 1 LIMIT 4000"
)
Request = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """`tail` is how its follower reads (a page after a position), `committed` every position there is."""

    name: str
    what: str
    argv: Callable[[str, Peers, Path], list[str]]
    tail: str
    committed: str
    append: Request | None = field(default_factory=lambda: {"do": "append"})
    decide: Request | None = None


def _python(module: str, executable: str = sys.executable) -> list[str]:
    return [executable, "-m", f"{HERE}.{module}"]


def our_process(dsn: str, _: Peers, home: Path) -> list[str]:
    return [*_python("on_ours"), dsn, str(home)]


def _message_db(dsn: str, peers: Peers, _: Path) -> list[str]:
    return [*_python("on_message_db"), dsn, str(peers.message_db)]


def _emmett(dsn: str, peers: Peers, _: Path) -> list[str]:
    return ["node", str(Path(__file__).with_name("emmett.mjs")), dsn, str(peers.node)]


def _ours(name: str, what: str, **requests: Request | None) -> Contender:
    return Contender(
        name, what, our_process, OUR_LOG, "SELECT notification_id FROM ledger_0.stored_events", **requests
    )


COLD: Request = {"do": "decide", "cold": True}
WARM: Request = {"do": "decide", "cold": False}
CONTENDERS = (
    Contender(
        RAW,
        "psycopg: INSERT and COMMIT of one row, primary key (stream, version), a unique sequence",
        lambda dsn, *_: [*_python("on_raw"), dsn],
        "SELECT position, state FROM events WHERE position > %b ORDER BY 1 LIMIT 4000",
        "SELECT position FROM events",
    ),
    Contender(
        STOCK,
        "eventsourcing's PostgresApplicationRecorder, default table lock; decides through its aggregates",
        lambda dsn, *_: [*_python("on_stock"), dsn],
        "SELECT notification_id, state FROM application_events WHERE notification_id > %b"
        " ORDER BY 1 LIMIT 4000",
        "SELECT notification_id FROM application_events",
        decide={"do": "decide"},
    ),
    _ours(
        ours.LIBRARY, "insert_events of our recorder for that library, from threads", append={"do": "library"}
    ),
    _ours(
        ours.THREADS,
        "the log's own port from threads; decides through Handler, every command loads its stream",
        append={"do": "threads"},
        decide=COLD | {"front": "threads"},
    ),
    _ours(
        ours.ASYNC,
        "the log's own port from one event loop; decides through Handler, every command loads its stream",
        append={"do": "asyncio"},
        decide=COLD | {"front": "asyncio"},
    ),
    _ours(
        f"{ours.ASYNC}, warm",
        "as before, states kept in memory between commands, as in production",
        append=None,
        decide=WARM | {"front": "asyncio"},
    ),
    Contender(
        MESSAGE_DB,
        "message-db's write_message with an expected version, all streams of one category, from threads",
        _message_db,
        MESSAGES,
        "SELECT global_position FROM message_store.messages",
    ),
    Contender(
        EMMETT,
        "emmett's appendToStream with an expected version (Node); decides through its CommandHandler",
        _emmett,
        "SELECT global_position, message_data::text FROM emt_messages WHERE global_position > %b"
        " AND partition = 'emt:default' AND NOT is_archived"
        " AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())"
        " ORDER BY transaction_id, global_position LIMIT 4000",
        "SELECT global_position FROM emt_messages",
        decide={"do": "decide"},
    ),
    Contender(
        PROTEAN,
        "protean's repository of event-sourced aggregates on message-db, from threads",
        lambda dsn, peers, _: [*_python("on_protean", str(peers.python)), dsn],
        MESSAGES,
        "SELECT global_position FROM message_store.messages",
        decide={"do": "decide"},
    ),
)
