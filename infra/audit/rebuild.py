"""Rebuild a projection: a new version beside the shown one, from the log, compared row by row, then shown.

1. Leftovers of earlier rebuilds are dropped, the tables of the next version made.
2. They are filled from the log, a batch a transaction, while the workers go on with the shown version;
   what will not change any more is compared already.
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
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack

import psycopg
from psycopg.errors import DeadlockDetected, LockNotAvailable

from commands.audit import RecordRebuild
from commands.handling import Handler
from infra.analytics import ClickHouseUnit
from infra.audit.build import Building
from infra.audit.diff import Difference
from infra.audit.findings import Progress, no_progress
from infra.audit.reading import audit_lock
from infra.audit.switch import Switch
from infra.audit.versions import Versions
from infra.ledger import connect
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

TOGETHER = 2
"""Projections at work at once: while one waits for its store, the other reads and decodes."""

Step = Callable[[str], None]


class Options(TypedDict, total=False):
    """How to rebuild, where it is not as usual."""

    accept_differences: bool
    keep: bool
    progress: Progress
    step: Step
    grace_s: float


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
    parked: int
    stopped_s: float
    """How long the projection's workers stood still."""
    past_differences: tuple[Difference, ...] = ()
    """Of history and moves in Postgres; looked at after the switch."""
    leftovers: bool = True
    """Tables that nobody needs are still there; the next rebuild drops them."""
    build_s: float = 0.0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.switched

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


class Rebuild:
    """The steps. `step` is told of each one that is done; what it raises stops the rebuild there."""

    def __init__(self, runtime: Runtime, projection: Projection, progress: Progress, step: Step) -> None:
        self.runtime, self.projection, self.progress, self.step = runtime, projection, progress, step
        self.clickhouse = runtime.clickhouse()
        owner = runtime.settings.role_dsn("owner")
        self.versions = Versions(owner, runtime.schema, self.clickhouse, projection)

    async def run(
        self, accept_differences: bool, record: Callable[[Rebuilt], Awaitable[None]]
    ) -> tuple[Rebuilt, set[tuple[str, int]]]:
        """All but the last drop; returns what it came to, and the versions that nobody needs any more."""
        conn = await connect(self.runtime.settings.role_dsn("worker"), self.runtime.schema)
        log = self.runtime.ledger()
        began = time.monotonic()
        try:
            await conn.execute("SET synchronous_commit = off")  # of a version that nobody is shown yet
            await conn.execute("SET statement_timeout = 0")
            switch = await self._prepare(conn, Building(self._ledger, log, self.projection, self.progress))
            for _ in range(ROUNDS_MAX):
                live = await switch.marks(hold=False)
                if switch.building.lag(live) <= NEAR:
                    break
                await switch.building.advance(live)
            self.step("built")
            await switch.settle(self.progress)
            build_s = time.monotonic() - began
            outcome = replace(await self._switch(switch, accept_differences), build_s=build_s)
            if not outcome.switched:
                return outcome, {(engine, switch.version) for engine in switch.shown}
            await record(outcome)
            self.step("recorded")
            outcome = replace(outcome, past_differences=await switch.past_differences())
            return outcome, set(switch.shown.items())
        finally:
            await conn.close()
            await log.close()

    def close(self) -> None:
        self.clickhouse.close()

    @property
    def _ledger(self) -> str:
        return self.runtime.settings.ledger

    async def _prepare(self, conn: psycopg.AsyncConnection[Any], building: Building) -> Switch:
        """Empty tables of the next version. A number is never used again while anything bears it."""
        shown = await self.versions.shown(conn)
        present = await self.versions.present(conn)
        version = max([*shown.values(), *(number for _, number in present)]) + 1
        self.progress("dropping what earlier rebuilds left", 0, 1)
        await self.drop(present - set(shown.items()))
        self.step("cleaned")
        await self.versions.make(version)
        self.step("made")
        for engine in self.versions.engines:
            desk = PostgresUnit(conn, engine, careful=True)
            unit = desk if engine == "postgres" else ClickHouseUnit(self.clickhouse, desk)
            building.add(engine, unit, version)
        return Switch(conn, self.clickhouse, self.projection, self.versions, building, shown, version)

    async def _switch(self, switch: Switch, accept_differences: bool) -> Rebuilt:
        """Stop the workers, catch up, compare, and show the new version if it may be shown."""
        conn, building = switch.conn, switch.building
        await conn.execute("SET synchronous_commit = on")
        await conn.execute(f"SET lock_timeout = {LOCK_MS_MAX}".encode())
        for _ in range(SWITCHES_MAX):
            held = False
            try:
                async with conn.transaction():
                    self.progress("stopping the projection's workers", 0, 1)
                    stopped = time.monotonic()
                    live = await switch.marks(hold=True)
                    held = True
                    self.step("locked")
                    await building.advance(live)
                    self.step("caught up")
                    differences = await switch.differences()
                    self.step("compared")
                    switched = accept_differences or not any(each.count for each in differences)
                    if switched:
                        await switch.show(live)
                    self.step("about to commit")
            except (DeadlockDetected, LockNotAvailable):
                if held:
                    raise
                continue  # nothing was taken: only the locks come late
            self.step("switched" if switched else "refused")
            return Rebuilt(
                projection=self.projection.name,
                version=switch.version,
                switched=switched,
                facts=max(side.facts for side in building.sides),
                rows=sum(each.rows for each in differences),
                rows_differing=sum(each.count for each in differences),
                differences=differences,
                parked=sum(len(side.parked) for side in building.sides),
                stopped_s=time.monotonic() - stopped,
            )
        raise SwitchContended(f"waited {SWITCHES_MAX} times {LOCK_MS_MAX / 1000:.0f} s for the workers")

    async def drop(self, unwanted: set[tuple[str, int]]) -> bool:
        """False where somebody still reads: the next rebuild will."""
        try:
            await self.versions.drop(unwanted)
        except LockNotAvailable:
            return False
        return True


async def rebuild(runtime: Runtime, name: str, *, reason: str, **options: Unpack[Options]) -> Rebuilt:
    """Make a projection anew in both engines and put it on record, for all tenants at once.

    Rows that differ from what is shown stop it, unless `accept_differences`; `keep` leaves the old version
    until the next rebuild. Raises LookupError for a name that is no projection, ValueError for a reason that
    cannot be recorded, AuditBusy, SwitchContended, and the stores' own faults: after any of them the version
    that was shown still is, or the new one already and then it is not on record, which `verify` says.
    """
    return (await rebuild_all(runtime, [name], reason=reason, **options))[0]


async def rebuild_all(
    runtime: Runtime, names: Sequence[str], *, reason: str, **options: Unpack[Options]
) -> list[Rebuilt]:
    """Several, two at a time, each as `rebuild` has it. What one raises is raised when all are done."""
    works = [_Anew(runtime, projection_named(name), reason, options) for name in dict.fromkeys(names)]
    lanes = asyncio.Semaphore(TOGETHER)

    async def in_turn(work: _Anew) -> Rebuilt:
        async with lanes:
            return await work.run()

    async with audit_lock(runtime.settings.role_dsn("worker"), runtime.schema, alone=True):
        outcomes = await asyncio.gather(*map(in_turn, works), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Rebuilt)]


class _Anew:
    """One projection's rebuild with what belongs around it: the record, the readers' grace, the last drop."""

    def __init__(self, runtime: Runtime, projection: Projection, reason: str, options: Options) -> None:
        self.runtime, self.projection, self.options = runtime, projection, options
        if not reason.strip():
            raise ValueError("say why: the reason is put on record")
        self.fact = partial(RecordRebuild, projection=projection.name, reason=reason)
        self.fact(version=1, rows=0, rows_differing=0)

    async def run(self) -> Rebuilt:
        began, options = time.monotonic(), self.options
        step = options.get("step", _no_step)
        with closing(Rebuild(self.runtime, self.projection, self._tell, step)) as work:
            outcome, unwanted = await work.run(options.get("accept_differences", False), self._record)
            leave = options.get("keep", False) and outcome.switched
            if outcome.switched and not leave:
                self._tell("letting readers move on", 0, 1)
                await asyncio.sleep(options.get("grace_s", GRACE_S))
            dropped = not leave and await work.drop(unwanted)
            step("dropped")
        return replace(outcome, leftovers=not dropped, seconds=time.monotonic() - began)

    def _tell(self, what: str, done: int, total: int) -> None:
        self.options.get("progress", no_progress)(f"{self.projection.name}: {what}", done, total)

    async def _record(self, outcome: Rebuilt) -> None:
        command = self.fact(version=outcome.version, rows=outcome.rows, rows_differing=outcome.rows_differing)
        key = f"rebuild-{self.projection.name}-v{outcome.version}"
        log = self.runtime.log()
        try:
            handle = partial(Handler(log, self.runtime.clock).handle, command, by=operator(TENANT), key=key)
            await asyncio.to_thread(handle)
        finally:
            log.close()


def _no_step(_: str) -> None:
    """For who does not care."""
