"""protean: event-sourced aggregates on message-db, through its repository. `on_protean DSN`

Runs in protean's own environment, so it imports nothing of ours but the wire.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.metadata import version as version_of
from typing import Any
from uuid import uuid4

from tests.benchmarks.log.rotation import EVENTS_AT_FIRST, STREAMS_EACH, Rotation
from tests.benchmarks.log.wire import EVENTS_OF_STREAM, Answer, Op, closed, serve

protean: Any = importlib.import_module("protean")
fields: Any = importlib.import_module("protean.fields")
NOTE = "n" * 90
"""Brings the data to about 250 bytes; protean adds about 680 of its own metadata."""
CONNECTIONS_MAX = 80

domain = protean.Domain(
    name="bench",
    config={
        "event_store": {
            "provider": "message_db",
            "database_uri": sys.argv[1],
            "max_connections": CONNECTIONS_MAX,
        },
        "databases": {"default": {"provider": "memory"}},
    },
)


@domain.event(part_of="Pool")
class Held:
    pool = fields.Identifier(identifier=True)
    hold_id = fields.Identifier()
    quantity = fields.Integer()
    note = fields.String(max_length=500)


@domain.aggregate(event_sourced=True)
class Pool:
    pool = fields.Identifier(identifier=True)
    used = fields.Integer(default=0)

    def hold(self) -> None:
        raising: Any = self
        raising.raise_(Held(pool=self.pool, hold_id=str(uuid4()), quantity=1, note=NOTE))  # type: ignore[call-arg]

    def held(self, fact: Held) -> None:
        self.pool, self.used = fact.pool, (self.used or 0) + fact.quantity

    held = protean.apply(held)


local = threading.local()


def repository() -> Any:
    """Of the thread, which enters a domain context and never leaves it. Ask before making an aggregate."""
    if not hasattr(local, "repository"):
        domain.domain_context().push()
        local.repository = domain.repository_for(Pool)
    return local.repository


def new_pool(holds: int) -> str:
    pools = repository()
    pool: Any = Pool(pool=str(uuid4()))  # type: ignore[call-arg]
    for _ in range(holds):
        pool.hold()
    pools.add(pool)
    return str(pool.pool)


def appender() -> Op:
    """The aggregate is kept between commands: nothing is loaded."""
    kept: Any = None
    version = EVENTS_OF_STREAM

    def op() -> None:
        nonlocal kept, version
        pools = repository()
        if version == EVENTS_OF_STREAM:
            kept, version = Pool(pool=str(uuid4())), 0  # type: ignore[call-arg]
        kept.hold()
        pools.add(kept)
        version += 1

    return op


def decider() -> Op:
    turn: Rotation[str] | None = None

    def op() -> None:
        nonlocal turn
        if turn is None:  # by the thread that uses it: the context is the thread's
            turn = Rotation(lambda: new_pool(EVENTS_AT_FIRST), STREAMS_EACH)
        pool = repository().get(turn.next())
        pool.hold()
        repository().add(pool)

    return op


def append(concurrent: int, seconds: float, **measured: Any) -> Answer:
    return closed([appender() for _ in range(concurrent)], seconds, **measured)


def decide(concurrent: int, seconds: float, **measured: Any) -> Answer:
    return closed([decider() for _ in range(concurrent)], seconds, **measured)


if __name__ == "__main__":
    domain.init(traverse=False)
    serve({"append": append, "decide": decide}, protean=version_of("protean"))
