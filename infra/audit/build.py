"""A new version of a read model, made from the log: each fact taken up to where the shown version stands.

The log is read and decoded once for both engines; rows are written by the sinks' own code. Nothing here
can do more than write those tables: there is no handler, no broker, no reaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from domain.facts import Recorded
from domain.registry import EVENTS
from infra.analytics import ClickHouseUnit
from infra.audit.findings import Progress
from infra.audit.reading import pages_of
from infra.ledger import Ledger, Place
from infra.mapper import StoredFact
from infra.places import PARTITIONS, place_of, topic_of
from infra.readmodel import PostgresUnit
from infra.sinks import Refused, Taken
from projections.rows import Projection, RowOp

BATCH_FACTS = 5_000
BATCH_OPS = 20_000
"""Whichever comes first; a fact may bring a thousand rows."""
BEHIND = "behind a parked fact of its stream"


class Rebuilding:
    """A projection as a follower."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.name, self.names, self.contexts = projection.name, projection.names, projection.contexts

    def take(self, recorded: Recorded) -> Sequence[Any]:
        return self.projection.project(recorded)


@dataclass(slots=True)
class Side:
    """One engine's share. `done` says, for each partition, that exactly its facts so far are in the rows."""

    engine: str
    unit: PostgresUnit | ClickHouseUnit
    follower: Rebuilding
    version: int
    done: dict[Place, int]
    skipped: dict[Place, int] = field(default_factory=dict)
    """The first fact of each partition that the shown version had not come to."""
    waiting: list[Taken] = field(default_factory=list)
    ops: int = 0
    facts: int = 0
    parked: dict[int, tuple[StoredFact, Place, str]] = field(default_factory=dict)
    parked_streams: set[str] = field(default_factory=set)

    def wants(self, fact: StoredFact, place: Place, live: dict[Place, int]) -> bool:
        if fact.position <= self.done[place]:
            return False
        if fact.position > live.get(place, 0):
            self.skipped.setdefault(place, fact.position)
            return False
        return True

    def park(self, fact: StoredFact, place: Place, reason: str) -> None:
        self.parked[fact.position] = (fact, place, reason)
        self.parked_streams.add(fact.originator_id)

    def collected(self) -> list[Taken]:
        """What waits, to be written; another batch may be collected meanwhile."""
        taken, self.waiting, self.ops = self.waiting, [], 0
        return taken

    async def flush(self, ledger: str, taken: list[Taken]) -> None:
        self.facts += len(taken)
        for fact, reason in await self._write(taken):
            self.park(fact, place_of(ledger, fact), reason)

    async def _write(self, taken: list[Taken]) -> list[tuple[StoredFact, str]]:
        """All at once or, when the store refuses one, in halves down to it; returns those not taken."""
        behind = [(fact, BEHIND) for fact, _, _ in taken if fact.originator_id in self.parked_streams]
        if behind:
            taken = [each for each in taken if each[0].originator_id not in self.parked_streams]
        if not taken:
            return behind
        try:
            await self.unit.write(self.follower, self.version, taken)
        except Refused as refused:
            if len(taken) == 1:
                self.parked_streams.add(taken[0][0].originator_id)
                return [*behind, (taken[0][0], refused.reason)]
            half = len(taken) // 2
            return [*behind, *await self._write(taken[:half]), *await self._write(taken[half:])]
        return behind


class Building:
    """Brings the sides of one projection up to wherever the shown versions stand, as often as asked."""

    def __init__(self, ledger: str, log: Ledger, projection: Projection, progress: Progress) -> None:
        self.ledger, self.log, self.projection, self.progress = ledger, log, projection, progress
        self.sides: list[Side] = []
        self.writing: list[asyncio.Task[None]] = []
        """One batch for each side at most, while the next one is read and decoded."""
        self.places = [
            (topic_of(ledger, context), partition)
            for context in sorted(projection.contexts)
            for partition in range(PARTITIONS)
        ]

    def add(self, engine: str, unit: PostgresUnit | ClickHouseUnit, version: int) -> Side:
        """A side at the beginning of the log."""
        side = Side(engine, unit, Rebuilding(self.projection), version, dict.fromkeys(self.places, 0))
        self.sides.append(side)
        return side

    def lag(self, live: dict[str, dict[Place, int]]) -> int:
        """Positions that `advance` would have to read."""
        lows = [
            side.done[place]
            for side in self.sides
            for place in self.places
            if live[side.engine].get(place, 0) > side.done[place]
        ]
        highest = max((mark for marks in live.values() for mark in marks.values()), default=0)
        return highest - min(lows) if lows else 0

    async def advance(self, live: dict[str, dict[Place, int]]) -> None:
        """Take what the shown versions have taken and these have not."""
        high = max((mark for marks in live.values() for mark in marks.values()), default=0)
        low = high - self.lag(live)
        if low >= high:
            return
        for side in self.sides:
            side.skipped = {}
        try:
            await self._read(low, high, live)
        finally:
            await asyncio.gather(*self.writing, return_exceptions=True)
        self.progress(f"building version {self.sides[0].version}", high, high)
        for side in self.sides:
            for place in self.places:
                side.done[place] = side.skipped.get(place, high + 1) - 1

    async def _read(self, low: int, high: int, live: dict[str, dict[Place, int]]) -> None:
        what = f"building version {self.sides[0].version}"
        async for page in pages_of(self.log, self.projection.names, EVENTS, low, high):
            for fact in page:
                place = place_of(self.ledger, fact)
                if place in self.sides[0].done:
                    self._offer(fact, place, [s for s in self.sides if s.wants(fact, place, live[s.engine])])
                if any(side.ops >= BATCH_OPS for side in self.sides):
                    await self._flush()
            await self._flush(at_least=BATCH_FACTS)
            self.progress(what, page[-1].position, high)
        await self._flush()
        await self._written()

    def _offer(self, fact: StoredFact, place: Place, sides: list[Side]) -> None:
        for side in sides:
            if fact.originator_id in side.parked_streams:
                side.park(fact, place, BEHIND)
        takers = [side for side in sides if fact.originator_id not in side.parked_streams]
        if not takers:
            return
        try:
            recorded = fact.recorded()
            ops: Sequence[RowOp] = self.projection.project(recorded)
        except Exception as broken:  # noqa: BLE001  as the projector has it: it is parked, with its stream
            for side in takers:
                side.park(fact, place, f"{type(broken).__name__}: {broken}")
            return
        for side in takers:
            side.waiting.append((fact, recorded, ops))
            side.ops += len(ops)

    async def _flush(self, at_least: int = 1) -> None:
        due = [side for side in self.sides if len(side.waiting) >= at_least]
        if due:
            await self._written()
            self.writing = [asyncio.create_task(side.flush(self.ledger, side.collected())) for side in due]

    async def _written(self) -> None:
        writing, self.writing = self.writing, []
        for task in writing:
            await task

    def complete_through(self) -> int:
        """Up to here every fact is in the rows, or parked, on every side."""
        return min(mark for side in self.sides for mark in side.done.values())
