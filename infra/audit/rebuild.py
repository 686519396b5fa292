"""Rebuild a projection: a new version beside the shown one, from the log, compared row by row, then shown.

1. Leftovers of earlier rebuilds are dropped, the tables of the next version made.
2. They are filled from the log, a batch a transaction, while the workers go on with the shown version.
3. In one transaction the shown version's row and marks are locked, which stops its workers for a moment;
   the rest is taken, so that both versions stand at the same positions; their rows are compared; and,
   unless they differ and nobody agreed to that, `projections.version` is raised and the marks are copied.
4. The rebuild is put on record. The old tables stay for a few seconds, because readers look up what is
   shown now and then, and are dropped.

Whatever is interrupted leaves the shown version as it was, or the new one whole; the next rebuild of the
projection drops what was left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import psycopg
from psycopg.errors import DeadlockDetected, LockNotAvailable

from commands.audit import RecordRebuild
from infra.analytics import ClickHouse, ClickHouseUnit
from infra.audit.build import Building, Side
from infra.audit.diff import Difference, past_in_postgres, shown_in_clickhouse, shown_in_postgres
from infra.audit.findings import Progress, no_progress
from infra.audit.reading import audit_lock
from infra.audit.versions import Versions
from infra.ledger import Place, connect
from infra.readmodel import PostgresUnit
from infra.runtime import Runtime, operator
from projections.registry import projection_named
from projections.rows import Projection

TENANT = "_ledger"
"""Whose facts are about the ledger itself; no shop can have this name."""
GRACE_S = 5.0
"""An old version outlives the switch by this: longer than a reader keeps what it knows, or a query runs."""
NEAR = 2_000
"""Positions still to be read when the workers are stopped."""
ROUNDS_MAX = 10
SWITCHES_MAX = 5
LOCK_MS_MAX = 10_000

Step = Callable[[str], None]


class SwitchContended(Exception):
    """The workers did not let go of their marks; nothing was changed. Try again when less is going on."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild came to. Not switched: rows differed, and that was not accepted; nothing has changed."""

    projection: str
    version: int
    switched: bool
    facts: int
    rows: int
    rows_differing: int
    differences: tuple[Difference, ...]
    """Of what is shown, by table; they decide."""
    past_differences: tuple[Difference, ...]
    """Of history and moves in Postgres; looked at after the switch."""
    parked: int
    old_kept: bool
    """The next rebuild drops it."""
    build_s: float
    stopped_s: float
    """How long the projection's workers stood still."""
    seconds: float

    @property
    def ok(self) -> bool:
        return self.switched

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


@dataclass(slots=True)
class Switch:
    """One attempt, in one transaction; everything of the shown version is locked until it ends."""

    conn: psycopg.AsyncConnection[Any]
    clickhouse: ClickHouse
    projection: Projection
    versions: Versions
    building: Building
    shown: dict[str, int]
    version: int

    async def marks(self, *, hold: bool) -> dict[str, dict[Place, int]]:
        """Where the shown version stands, by engine. Parked rows first, then the version, then the marks:
        the order in which the workers take them."""
        live: dict[str, dict[Place, int]] = {}
        lock = " FOR UPDATE" if hold else ""
        for engine, version in sorted(self.shown.items()):
            mine = (engine, self.projection.name)
            if hold:
                await self.conn.execute("SELECT FROM parked WHERE (engine, name) = (%s, %s) FOR UPDATE", mine)
                await self.conn.execute(
                    "SELECT FROM projections WHERE (engine, name) = (%s, %s) FOR UPDATE", mine
                )
            cursor = await self.conn.execute(
                "SELECT topic, partition, position FROM checkpoints"
                f" WHERE (engine, name, version) = (%s, %s, %s) ORDER BY 1, 2{lock}".encode(),
                (*mine, version),
            )
            found = {(topic, partition): position for topic, partition, position in await cursor.fetchall()}
            if engine == "clickhouse":
                found = await self._as_far_as_clickhouse(found, version)
            live[engine] = {place: mark for place, mark in found.items() if place in self.building.places}
        return live

    async def _as_far_as_clickhouse(self, found: dict[Place, int], version: int) -> dict[Place, int]:
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            "SELECT topic, partition, max(position) FROM progress"
            " WHERE name = %(name)s AND version = %(version)s GROUP BY topic, partition",
            {"name": self.projection.name, "version": version},
        )
        written = {(topic, partition): int(position) for topic, partition, position in rows}
        return {place: min(mark, written.get(place, 0)) for place, mark in found.items()}

    async def differences(self) -> tuple[Difference, ...]:
        found = []
        for table in self.versions.in_postgres:
            found.append(await shown_in_postgres(self.conn, table, self.shown["postgres"], self.version))
        for table in self.versions.in_clickhouse:
            found.append(
                await shown_in_clickhouse(self.clickhouse, table, self.shown["clickhouse"], self.version)
            )
        return tuple(found)

    async def show(self, live: dict[str, dict[Place, int]]) -> None:
        """Say that the new version is the one, standing where the old one stood."""
        name = self.projection.name
        for side in self.building.sides:
            marks = sorted(live[side.engine].items())
            columns = (
                [place[0] for place, _ in marks],
                [place[1] for place, _ in marks],
                [m for _, m in marks],
            )
            if side.engine == "clickhouse" and marks:
                await asyncio.to_thread(
                    self.clickhouse.insert,
                    "progress",
                    ["name", "version", "topic", "partition", "position"],
                    [[name, self.version, *place, mark] for place, mark in marks],
                )
            await self.conn.execute(
                "INSERT INTO checkpoints SELECT %s, %s, %s, w.*"
                " FROM unnest(%s::text[], %s::int[], %s::bigint[]) w",
                (side.engine, name, self.version, *columns),
            )
            await self.conn.execute(
                "UPDATE projections SET version = %s WHERE (engine, name) = (%s, %s)",
                (self.version, side.engine, name),
            )
            await self._park(side)

    async def _park(self, side: Side) -> None:
        """What the new version could not take is parked, and nothing else."""
        await self.conn.execute(
            "DELETE FROM parked WHERE (engine, name) = (%s, %s)", (side.engine, self.projection.name)
        )
        desk = PostgresUnit(self.conn, side.engine)
        for _, (fact, place, reason) in sorted(side.parked.items()):
            await desk.park(side.follower, place, [(fact, reason)])


class Rebuild:
    """The steps. `step` is told of each one that is done; what it raises stops the rebuild there."""

    def __init__(self, runtime: Runtime, projection: Projection, progress: Progress, step: Step) -> None:
        self.runtime, self.projection, self.progress, self.step = runtime, projection, progress, step
        self.clickhouse = runtime.clickhouse()
        owner = runtime.settings.role_dsn("owner")
        self.versions = Versions(owner, runtime.schema, self.clickhouse, projection)

    async def run(self, accept_differences: bool) -> tuple[Rebuilt, set[tuple[str, int]]]:
        """Up to the switch; returns what it came to, and what is there no longer needed."""
        conn = await connect(self.runtime.settings.role_dsn("worker"), self.runtime.schema)
        log = self.runtime.ledger()
        began = time.monotonic()
        try:
            await conn.execute("SET synchronous_commit = off")  # of a version that nobody is shown yet
            await conn.execute("SET statement_timeout = 0")
            shown = await self.versions.shown(conn)
            present = await self.versions.present(conn)
            version = max([*shown.values(), *(number for _, number in present)]) + 1
            self.progress("dropping what earlier rebuilds left", 0, 1)
            await self.versions.drop(present - set(shown.items()))
            self.step("cleaned")
            await self.versions.make(version)
            self.step("made")
            building = Building(self.runtime.settings.ledger, log, self.projection, self.progress)
            for engine in self.versions.engines:
                desk = PostgresUnit(conn, engine, careful=True)
                unit = desk if engine == "postgres" else ClickHouseUnit(self.clickhouse, desk)
                building.add(engine, unit, version)
            switch = Switch(conn, self.clickhouse, self.projection, self.versions, building, shown, version)
            for _ in range(ROUNDS_MAX):
                live = await switch.marks(hold=False)
                if building.lag(live) <= NEAR:
                    break
                await building.advance(live)
            self.step("built")
            built_s = time.monotonic() - began
            outcome = await self._switch(switch, accept_differences)
            old = set(shown.items()) if outcome.switched else {(engine, version) for engine in shown}
            if outcome.switched:
                outcome = replace(outcome, past_differences=await self._past(switch))
            return replace(outcome, build_s=built_s), old
        finally:
            await conn.close()
            await log.close()

    async def _switch(self, switch: Switch, accept_differences: bool) -> Rebuilt:
        conn, building = switch.conn, switch.building
        await conn.execute("SET synchronous_commit = on")
        await conn.execute(f"SET lock_timeout = {LOCK_MS_MAX}".encode())
        for _ in range(SWITCHES_MAX):
            try:
                async with conn.transaction() as transaction:
                    stopped = time.monotonic()
                    self.progress("stopping the projection's workers", 0, 1)
                    live = await switch.marks(hold=True)
                    self.step("locked")
                    await building.advance(live)
                    self.step("caught up")
                    differences = await switch.differences()
                    self.step("compared")
                    switched = accept_differences or not any(each.count for each in differences)
                    if switched:
                        await switch.show(live)
                        self.step("switching")
                    else:
                        raise psycopg.Rollback(transaction)
            except (DeadlockDetected, LockNotAvailable):
                continue  # nothing was taken yet: only the locks come late
            self.step("switched" if switched else "refused")
            return Rebuilt(
                projection=self.projection.name,
                version=switch.version,
                switched=switched,
                facts=max(side.facts for side in building.sides),
                rows=sum(each.rows for each in differences),
                rows_differing=sum(each.count for each in differences),
                differences=differences,
                past_differences=(),
                parked=sum(len(side.parked) for side in building.sides),
                old_kept=True,
                build_s=0.0,
                stopped_s=time.monotonic() - stopped,
                seconds=0.0,
            )
        raise SwitchContended(
            f"{SWITCHES_MAX} times {LOCK_MS_MAX / 1000:.0f} s; version {switch.version} waits"
        )

    async def _past(self, switch: Switch) -> tuple[Difference, ...]:
        through = switch.building.complete_through()
        old, new = switch.shown.get("postgres", 0), switch.version
        return tuple(
            [
                await past_in_postgres(switch.conn, table, old, new, through)
                for table in self.versions.in_postgres
            ]
        )

    async def drop(self, unwanted: set[tuple[str, int]]) -> bool:
        """False where somebody still reads: the next rebuild will."""
        try:
            await self.versions.drop(unwanted)
        except LockNotAvailable:
            return False
        return True


async def rebuild(
    runtime: Runtime,
    name: str,
    *,
    reason: str,
    accept_differences: bool = False,
    keep: bool = False,
    progress: Progress = no_progress,
    step: Step = lambda _: None,
    grace_s: float = GRACE_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Rebuilt:
    """Make a projection anew in both engines and put it on record, for all tenants at once.

    Rows that differ from what is shown stop it, unless `accept_differences`; `keep` leaves the old version
    until the next rebuild. Raises LookupError for a name that is no projection, ValueError for a reason that
    cannot be recorded, AuditBusy, SwitchContended, and the stores' own faults: after any of them the version
    that was shown still is, or the new one already and then it is not on record, which `verify` says.
    """
    began = time.monotonic()
    projection = projection_named(name)
    record = partial(RecordRebuild, projection=name, reason=reason)
    record(version=1, rows=0, rows_differing=0)
    work = Rebuild(runtime, projection, progress, step)
    async with audit_lock(runtime.settings.role_dsn("worker"), runtime.schema, alone=True):
        outcome, unwanted = await work.run(accept_differences)
        if outcome.switched:
            fact = record(version=outcome.version, rows=outcome.rows, rows_differing=outcome.rows_differing)
            await asyncio.to_thread(
                runtime.handler().handle,
                fact,
                by=operator(TENANT),
                key=f"rebuild-{name}-v{outcome.version}",
            )
            step("recorded")
            if not keep:
                progress("letting readers move on", 0, 1)
                await sleep(grace_s)
        dropped = not (keep and outcome.switched) and await work.drop(unwanted)
        step("dropped")
    return replace(outcome, old_kept=not dropped, seconds=time.monotonic() - began)
