"""Verify a ledger: the log by itself, and that every read model is what the log folds to.

The log is read once, in windows of positions. What each window comes to is compared at once with the
history and the moves that Postgres keeps and with ClickHouse's rows, and then forgotten; only the rows
that Postgres shows are held (as tuples), to be compared at the end. Facts are expected in a read model
up to its own checkpoint in their partition, so the system may be running.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from domain.facts import Recorded
from infra.audit.blocks import ClickHouseTable
from infra.audit.compare import PostgresTable, Report
from infra.audit.cut import Cut, take_cut
from infra.audit.findings import REBUILD, RESTORE, Findings, Progress, Verified, no_progress
from infra.audit.logcheck import LogCheck
from infra.audit.reading import audit_lock, pages
from infra.ledger import Ledger, Place, connect
from infra.mapper import StoredFact, split
from infra.places import place_of
from infra.runtime import Runtime
from infra.settings import Settings
from projections.fold import Fold
from projections.registry import PROJECTIONS
from projections.rows import Engine, Projection, Table

SAMPLES = 3
"""Positions at which the past is compared as a whole, besides entry by entry."""
SEED = 2
ASSIGN = "assign it here in COUNTERFOIL_LEDGERS, then run `counterfoil migrate`"


@dataclass(slots=True)
class Following:
    """One projection in one engine: which facts it has taken, by the cut."""

    projection: Projection
    engine: Engine
    marks: dict[Place, int]
    parked: set[int]
    tables: dict[Table, Any]
    ahead: set[int] = field(default_factory=set)
    """Positions of this window that it had not come to."""
    behind: int = 0

    def takes(self, fact: StoredFact, place: Place) -> bool:
        if fact.position > self.marks.get(place, 0):
            self.ahead.add(fact.position)
            self.behind += 1
            return False
        return fact.position not in self.parked


class Verification:
    """One pass over the log."""

    def __init__(self, runtime: Runtime, ledger: Ledger, cut: Cut, tenant: str | None) -> None:
        self.name, self.ledger, self.cut = runtime.settings.ledger, ledger, cut
        self.findings = Findings()
        self.check = LogCheck(self.findings, self.name, cut.through, cut.heads, tenant)
        self.fold = Fold()
        self.rows: Counter[str] = Counter()
        self.clickhouse = runtime.clickhouse()
        self.followings = list(self._followings(tenant))
        self.by_name: dict[str, list[tuple[Projection, list[Following]]]] = {}
        for projection in PROJECTIONS:
            mine = [following for following in self.followings if following.projection is projection]
            for name in projection.names:
                self.by_name.setdefault(name, []).append((projection, mine))

    def _followings(self, tenant: str | None) -> Iterator[Following]:
        for projection in PROJECTIONS:
            for engine in Engine:
                key = (engine.value, projection.name)
                tables: dict[Table, Any] = {}
                for table in projection.tables_in(engine):
                    report = Report(self.findings, projection.name, table, self.rows)
                    version = self.cut.version(*key)
                    if engine is Engine.POSTGRES:
                        tables[table] = PostgresTable(report, version, self.cut.tables[table], self.fold)
                    else:
                        tables[table] = ClickHouseTable(report, version, self.clickhouse, tenant)
                if tables:
                    marks = self.cut.marks.get(key, {})
                    yield Following(projection, engine, marks, self.cut.parked.get(key, set()), tables)

    async def clickhouse_marks(self) -> None:
        """Where ClickHouse says less than its copy in Postgres, it lost something and will get it again."""
        _, rows = await asyncio.to_thread(
            self.clickhouse.query,
            "SELECT name, version, topic, partition, max(position) FROM progress"
            " GROUP BY name, version, topic, partition",
        )
        progress = {(name, version, topic, part): position for name, version, topic, part, position in rows}
        for following in self.followings:
            if following.engine is Engine.CLICKHOUSE:
                name = following.projection.name
                version = self.cut.version("clickhouse", name)
                for place, mark in following.marks.items():
                    following.marks[place] = min(mark, progress.get((name, version, *place), 0))

    async def run(self, samples: Sequence[int], progress: Progress) -> None:
        head, after = self.cut.position, 0
        self._marks_beyond(head)
        async for page in pages(self.ledger, 0, head):
            after = await self._stretch(page, after, page[-1].position, samples)
            progress("log and read models", after, head)
        await self._stretch([], after, head, samples)
        self.check.finish(self.cut.at_us, self.cut.beyond)
        await self._finish(head, progress)

    async def _stretch(self, page: list[StoredFact], after: int, through: int, samples: Sequence[int]) -> int:
        """Up to `through`, with a stop at each sampled position; returns where it stands."""
        stops = [position for position in samples if after < position <= through]
        for stop in sorted({*stops, through} - {after}):
            await self._window([fact for fact in page if after < fact.position <= stop], after, stop)
            if stop in stops:
                await self._sample(stop)
            after = stop
        return after

    async def _window(self, page: list[StoredFact], after: int, through: int) -> None:
        read = self.check.take(page, await self.cut.keys.upto(3, through), through)
        for following in self.followings:
            following.ahead.clear()
        for fact, recorded in read:
            self._project(fact, recorded)
        for following in self.followings:
            for table in following.tables.values():
                if isinstance(table, PostgresTable):
                    await table.window(through)
                else:
                    await table.window(after, through, following.ahead | following.parked)

    def _project(self, fact: StoredFact, recorded: Recorded) -> None:
        place = place_of(self.name, fact)
        for projection, followings in self.by_name.get(fact.name, ()):
            takers = [following for following in followings if following.takes(fact, place)]
            if not takers:
                continue
            try:
                ops = projection.project(recorded)
            except Exception as broken:  # noqa: BLE001  it should be parked, and is not
                what = f"{projection.name} cannot take it: {type(broken).__name__}: {broken}"
                self.findings.add("not-projected", what, f"position {fact.position}", "mend the projection")
                continue
            for following in takers:
                for op in ops:
                    table = following.tables.get(op.table)
                    if table is not None:
                        if following.engine is Engine.POSTGRES:
                            self.fold.add(recorded, (op,))
                        table.add(recorded, op)

    async def _sample(self, position: int) -> None:
        for following in self.followings:
            for table in following.tables.values():
                if isinstance(table, PostgresTable):
                    await table.sampled(position)

    async def _finish(self, head: int, progress: Progress) -> None:
        tables = [table for following in self.followings for table in following.tables.values()]
        for done, table in enumerate(tables):
            progress("what is shown", done, len(tables))
            if isinstance(table, PostgresTable):
                await table.finish(head)
            else:
                await table.finish(head, self.ledger.head)
        progress("what is shown", len(tables), len(tables))
        for following in self.followings:
            name = following.projection.name
            version = self.cut.version(following.engine, name)
            if self.check.tenant is None and version > max(1, self.check.rebuilt.get(name, 0)):
                what = f"version {version} is shown, and no fact says who rebuilt it and why"
                where = f"{following.engine}.{name}"
                self.findings.add("rebuild-unrecorded", what, where, REBUILD.format(name))

    def _marks_beyond(self, head: int) -> None:
        for following in self.followings:
            for place, mark in following.marks.items():
                if mark > head:
                    what = f"its checkpoint is {mark}, after the log's end at {head}"
                    where = f"{following.engine}.{following.projection.name}, {place[0]}/{place[1]}"
                    do = f"{RESTORE}; then {REBUILD.format(following.projection.name)}"
                    self.findings.add("checkpoint-beyond-head", what, where, do)


async def verify(
    runtime: Runtime, *, tenant: str | None = None, progress: Progress = no_progress, samples: int = SAMPLES
) -> Verified:
    """Check everything there is, or one tenant's share; changes nothing.

    Raises AuditBusy while a rebuild is at work, AnalyticsUnavailable or psycopg's OperationalError when a
    store does not answer.
    """
    began = time.monotonic()
    dsn = runtime.settings.role_dsn("worker")
    ledger = runtime.ledger()
    async with audit_lock(dsn, runtime.schema, alone=False):
        conn = await connect(dsn, runtime.schema)
        try:
            progress("taking the cut", 0, 1)
            cut, sampled = await take_cut(conn, tenant, random.Random(SEED).sample, samples)
            progress("taking the cut", 1, 1)
            work = Verification(runtime, ledger, cut, tenant)
            with closing(work.clickhouse):
                await work.clickhouse_marks()
                await work.run(sampled, progress)
        finally:
            await conn.close()
            await ledger.close()
    check = work.check
    _strays(runtime.settings, check.versions, work.findings)
    return Verified(
        head=cut.position,
        findings=tuple(work.findings.told),
        findings_by_kind=dict(work.findings.counted),
        parked=tuple(cut.parked_facts),
        parked_count=cut.parked_count,
        counts={"facts": check.facts, "streams": len(check.versions), "commands": check.key_count},
        rows=dict(work.rows),
        behind={f"{each.engine}.{each.projection.name}": each.behind for each in work.followings},
        sampled=sampled,
        seconds=time.monotonic() - began,
    )


def _strays(settings: Settings, streams: Iterable[str], findings: Findings) -> None:
    """Tenants whose facts are here, and who are served from elsewhere."""
    for tenant in sorted({split(stream)[0] for stream in streams}):
        if not settings.holds(tenant):
            what = f"{tenant!r} has facts here, and is assigned to another ledger"
            findings.add("tenant-elsewhere", what, f"ledger {settings.ledger}", ASSIGN)
