"""Ours: appends, decisions, one hot pool, an open loop. `on_ours DSN HOME`

HOME keeps the installation's secrets: all databases of one server share it, as roles are the server's.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import uvloop
from eventsourcing.persistence import StoredEvent

from commands.capacity import ConfirmHold, HoldPlaces, OpenPool
from commands.log import Append
from domain.capacity import PlacesHeld, PoolOpened, pool_stream
from domain.facts import Envelope, Event
from domain.values import HoldId
from infra.mapper import TIME, envelope_json, microseconds, rest_of
from infra.migrate import migrate
from infra.runtime import Runtime, now
from infra.settings import Settings
from tests.benchmarks.log import motion, ours
from tests.benchmarks.log.preload import preload
from tests.benchmarks.log.rotation import EVENTS_AT_FIRST, STREAMS_EACH, Rotation
from tests.benchmarks.log.wire import (
    EVENTS_OF_STREAM,
    WARM_UP,
    Answer,
    AsyncOp,
    Op,
    closed,
    closed_async,
    paced,
    serve,
)

DIGEST = b"d" * 32
COLD = 16
"""States in memory when each command has to load its own: fewer than come between two visits."""
HOLD_S = 3_600


ids = count(uuid4().int >> 1)


def new_id() -> UUID:
    """Nobody else's; the kernel's chance costs as much as half of what is measured here."""
    return UUID(int=next(ids))


def holds_of(pool: str, holds: int) -> list[PlacesHeld]:
    """With its envelope about 250 bytes each, as stored."""
    at, until = now(), now() + timedelta(seconds=HOLD_S)
    return [
        PlacesHeld(pool=pool, hold_id=HoldId(new_id()), quantity=1, at=at, expires_at=until)
        for _ in range(holds)
    ]


class Appends:
    """One writer's commands on the port: each is one fact, and pins its stream's version."""

    numbers = count()

    def __init__(self) -> None:
        self.writer, self.version = new_id().hex, EVENTS_OF_STREAM

    def next(self) -> Append:
        if self.version == EVENTS_OF_STREAM:
            self.version = 0
            pool = new_id().hex
            self.facts = holds_of(pool, 1)
            self.stream = pool_stream(pool)
        envelope = Envelope(ours.TENANT, "bench", f"{self.writer}-{next(self.numbers)}")
        versions = {self.stream: self.version}
        self.version += 1
        return Append(envelope, DIGEST, "HoldPlaces", versions, self.facts, now())


class Ours:
    def __init__(self, dsn: str, home: str) -> None:
        self.settings = Settings(home=Path(home), postgres_dsn=dsn)
        migrate(self.settings)
        self.runtime = Runtime(self.settings)

    # ── one event a command ───────────────────────────────────────────────────────────────────────

    def library(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        made = ours.library(self.settings)
        fact = holds_of("library", 1)[0]
        state = TIME.pack(microseconds(now())) + rest_of(
            fact, 0, envelope_json(Envelope(ours.TENANT, "bench", "k" * 20))
        )

        def writer() -> Op:
            stream, version = "", EVENTS_OF_STREAM

            def op() -> None:
                nonlocal stream, version
                if version == EVENTS_OF_STREAM:
                    stream, version = f"{ours.TENANT}/pool-{uuid4()}", 0
                version += 1
                made.insert_events([StoredEvent(stream, version, PlacesHeld.name, state)])

            return op

        try:
            return closed([writer() for _ in range(concurrent)], seconds, **measured)
        finally:
            made.close()

    def threads(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        with closing(ours.Front(self.settings)) as front:

            def writer() -> Op:
                appends = Appends()
                return lambda: front.append(appends.next())

            return closed([writer() for _ in range(concurrent)], seconds, **measured)

    def asyncio(self, concurrent: int, seconds: float, **measured: Any) -> Answer:
        with closing(ours.Front(self.settings)) as front:

            def writer() -> AsyncOp:
                appends = Appends()
                return lambda: front.append_async(appends.next())

            return uvloop.run(closed_async([writer() for _ in range(concurrent)], seconds, **measured))

    def paced(self, per_s: float, seconds: float) -> Answer:
        """Each command opens a stream, so that no two of them meet; what they ask for is made before."""
        made = iter([Appends().next() for _ in range(int(per_s * seconds) + WARM_UP)])
        gc.freeze()  # a million objects of the load's, which no server would hold
        with closing(ours.Front(self.settings)) as front:
            return uvloop.run(paced(lambda: front.append_async(next(made)), per_s, seconds))

    # ── load + decide + append ────────────────────────────────────────────────────────────────────

    def decide(self, concurrent: int, seconds: float, front: str, cold: bool, **measured: Any) -> Answer:
        """`cold`: every command loads its stream; else states are in memory, as they are in production."""
        with closing(ours.Front(self.settings, COLD if cold else None)) as made:

            def opening() -> tuple[str, Append]:
                """A pool with EVENTS_AT_FIRST facts, in one append."""
                pool = uuid4().hex
                facts: list[Event] = [
                    PoolOpened(pool=pool, capacity=None),
                    *holds_of(pool, EVENTS_AT_FIRST - 1),
                ]
                envelope = Envelope(ours.TENANT, "bench", f"open {pool}")
                versions = {pool_stream(pool): 0}
                return pool, Append(envelope, DIGEST, "OpenPool", versions, facts, now())

            def opened() -> str:
                pool, append = opening()
                made.append(append)
                return pool

            turns = [Rotation(opened, STREAMS_EACH) for _ in range(concurrent)]

            def writer(turn: Rotation[str]) -> Op:
                return lambda: made.handle(held(turn.next()), new_id().hex)

            def task(turn: Rotation[str]) -> AsyncOp:
                async def op() -> None:
                    pool = turn.at_last()
                    if pool is None:
                        pool, append = opening()
                        await made.append_async(append)
                        turn.renewed(pool)
                    await made.handle_async(held(pool), new_id().hex)

                return op

            if front == "threads":
                return closed([*map(writer, turns)], seconds, **measured)
            return uvloop.run(closed_async([*map(task, turns)], seconds, **measured))

    # ── one hot pool ──────────────────────────────────────────────────────────────────────────────

    def open_pool(self, pool: str) -> Answer:
        with closing(ours.Front(self.settings)) as front:
            front.handle(OpenPool(pool=pool), f"open {pool}")
        return {}

    def hot(self, pool: str, concurrent: int, seconds: float, **measured: Any) -> Answer:
        """Sales on one pool without a ceiling: a hold, then its confirmation, each a decided command."""
        accepted = 0
        with closing(ours.Front(self.settings)) as front:

            def writer() -> AsyncOp:
                hold_id: HoldId | None = None

                async def op() -> None:
                    nonlocal hold_id, accepted
                    if hold_id is None:
                        answer = await front.handle_async(held(pool), new_id().hex)
                        fact = answer.facts[0].event
                        assert isinstance(fact, PlacesHeld)
                        hold_id = fact.hold_id
                    else:
                        await front.handle_async(ConfirmHold(pool=pool, hold_id=hold_id), new_id().hex)
                        hold_id = None
                    accepted += 1

                return op

            answer = uvloop.run(closed_async([writer() for _ in range(concurrent)], seconds, **measured))
        return answer | {"accepted": accepted}

    def stream(self, pool: str) -> Answer:
        """What is on record of a pool: to compare with what was accepted."""
        with self.admin() as conn:
            row = conn.execute(
                "SELECT count(*), coalesce(max(originator_version), 0) FROM stored_events"
                " WHERE originator_id = %s",
                (f"{ours.TENANT}/{pool_stream(pool)}",),
            ).fetchone()
            assert row is not None
            return {"facts": row[0], "version": row[1]}

    # ── the log in motion ─────────────────────────────────────────────────────────────────────────

    def preload(self, facts: int) -> Answer:
        with self.admin() as conn:
            return preload(conn, ours.TENANT, facts)

    def relay(self, facts: int) -> Answer:
        with self.admin() as conn:
            conn.execute("UPDATE relay SET through = 0, lease_until = '-infinity'")
            conn.execute("DELETE FROM relay_head")
        return uvloop.run(motion.relay(self.runtime, facts))

    def fold(self, facts: int) -> Answer:
        return uvloop.run(motion.fold(self.runtime, facts))

    def head(self) -> Answer:
        return motion.head(self.runtime.schema, self.settings)

    @contextmanager
    def admin(self) -> Iterator[psycopg.Connection[Any]]:
        assert self.settings.postgres_dsn is not None
        options = f"-c search_path={self.runtime.schema}"
        with psycopg.connect(self.settings.postgres_dsn, autocommit=True, options=options) as conn:
            yield conn


def held(pool: str) -> HoldPlaces:
    return HoldPlaces(pool=pool, quantity=1, ttl_s=HOLD_S)


if __name__ == "__main__":
    made = Ours(*sys.argv[1:])
    names = [
        "library",
        "threads",
        "asyncio",
        "paced",
        "decide",
        "open_pool",
        "hot",
        "stream",
        "preload",
        "relay",
        "fold",
        "head",
    ]
    serve({name: getattr(made, name) for name in names}, schema=made.runtime.schema)
