"""Questions to the read models, in either engine: for one tenant, complete up to a position or not answered.

What is shown is described by two watches, one for each engine, that all requests share: how far the relay
is, how far each projection is in each partition, which version is shown, what is parked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg_pool import AsyncConnectionPool

from domain.values import Value
from infra.analytics import AnalyticsUnavailable, ClickHouse
from infra.connection import LedgerMoved
from infra.ledger import CONNECT_S_MAX, DATABASE_FAULTS, Place
from infra.readmodel import past, physical
from projections.registry import projection_named, projections_in
from projections.rows import Engine, Projection, Query, Table

AT_LEAST_S = 5.0
"""How long a question waits for the position it asks for, unless it says otherwise."""
AT_LEAST_S_MAX = 30.0
AGE_S_MAX = 0.025
"""Of what is known about the projections when a question is answered; many questions share one look."""
PROGRESS_AGE_S_MAX = 0.1
"""The same in ClickHouse, where rows come in blocks, about once a second."""
IDLE_S = 1.0
LOOK_S_MAX = 3.0
RETRY_S = 0.25
QUERY_S_MAX = 15
POSTGRES_CONNECTIONS_MAX = 8
CLICKHOUSE_CLIENTS = 3
"""And one that looks at progress: the embedded server runs four queries at once."""
MOVED = "moved"
SAMPLES_MAX = 900
"""One a second: for a quarter of an hour back it is known when the log reached a position."""

T = TypeVar("T")
log = logging.getLogger("counterfoil.queries")

TENANT = "SELECT set_config('counterfoil.tenant', %s, true)"
"""For this transaction only: row-level security shows no other tenant's rows."""
DESK = """
SELECT h.position, h.epoch, h.closed, r.through, r.lease_until > clock_timestamp(),
  (SELECT coalesce(json_agg(json_build_array(topic, partition, last_position)), '[]') FROM relay_head
    WHERE starts_with(topic, %s)),
  (SELECT coalesce(json_agg(json_build_array(engine, name, version)), '[]') FROM projections),
  (SELECT coalesce(json_agg(json_build_array(engine, name, version, topic, partition, position)), '[]')
     FROM checkpoints),
  (SELECT coalesce(json_agg(json_build_array(engine, name, tenant, facts)), '[]') FROM
      parked_counts)
  FROM head h, relay r
"""
PROGRESS = (
    "SELECT name, version, topic, partition, max(position) FROM progress"
    " GROUP BY name, version, topic, partition"
)
PARKED = """
SELECT engine, name AS projection, substr(stream, strpos(stream, '/') + 1) AS stream, position, reason,
       parked_at
  FROM parked WHERE split_part(stream, '/', 1) = %(tenant)s
   AND (position, engine, name) > (%(position)s, %(engine)s, %(name)s)
 ORDER BY position, engine, name LIMIT %(limit)s
"""
PARKED_STREAM = "SELECT count(*) FROM parked WHERE (engine, name, stream) = ('postgres', %s, %s)"


class StoreUnavailable(Exception):
    """An engine that is needed for the answer does not answer itself. Try again."""

    def __init__(self, engine: str) -> None:
        super().__init__(engine)
        self.engine = engine


class ProjectionBehind(Exception):
    """The read models have not come as far as was asked within the time allowed. Try again."""

    def __init__(self, asked: int, lags: Sequence[Lag]) -> None:
        super().__init__(asked)
        self.asked, self.lags = asked, lags


class PositionUnknown(Exception):
    """The log has no such position yet; take one from an answer to a command."""


class StreamParked(Exception):
    """A fact of this very thing could not be shown and waits for a repair, so no answer would be true."""


@dataclass(frozen=True, slots=True)
class Desk:
    """One look at the ledger: a single statement, so all of it is of the same instant."""

    position: int
    epoch: int
    through: int
    relay_active: bool
    heads: dict[Place, int]
    versions: dict[tuple[str, str], int]
    marks: dict[tuple[str, str, int, str, int], int]
    parked: dict[tuple[str, str, str], int]
    """Facts by (engine, projection, tenant)."""
    closed: str | None = None
    """'moving' while the ledger is copied to another database; 'moved' when it is there."""

    def version(self, engine: Engine, name: str) -> int:
        return self.versions.get((engine, name), 1)


Marks = dict[tuple[str, int, str, int], int]
"""Positions by (projection, version, topic, partition)."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far one projection is in one engine."""

    projection: str
    engine: str
    version: int
    complete_through: int
    lag: int
    """Positions between there and the log's head."""
    lag_s: float
    """Since when the log has had more, as far as this process has seen."""
    parked: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What one engine shows, by two looks that may be an instant apart: positions only ever grow."""

    desk: Desk
    engine: Engine
    marks: Marks

    def places(self, projection: Projection) -> list[tuple[Place, int]]:
        """Every partition of every topic the projection reads, with the last position published there."""
        return [
            (place, last)
            for place, last in self.desk.heads.items()
            if place[0].split(".")[2] in projection.contexts
        ]

    def mark(self, projection: Projection, place: Place) -> int:
        version = self.desk.version(self.engine, projection.name)
        written = self.marks.get((projection.name, version, *place), 0)
        if self.engine is Engine.POSTGRES:
            return written
        # ClickHouse has its progress before the desk has what was parked on the way: until then it is not in.
        return min(written, self.desk.marks.get((self.engine.value, projection.name, version, *place), 0))

    def reached(self, projection: Projection, position: int) -> bool:
        """Whether every fact up to `position` that concerns the projection is in, or parked."""
        return self.desk.through >= position and all(
            self.mark(projection, place) >= min(position, last) for place, last in self.places(projection)
        )

    def complete_through(self, projection: Projection) -> int:
        """The position up to which nothing is missing; a partition that is quiet holds nothing back."""
        marks = ((self.mark(projection, place), last) for place, last in self.places(projection))
        return min(
            (mark if mark < last else self.desk.through for mark, last in marks), default=self.desk.through
        )


@dataclass(frozen=True, slots=True)
class Told:
    """The rows of each query, and what they are complete up to."""

    rows: list[list[Any]]
    complete_through: int
    epoch: int
    parked: int
    """The tenant's facts that a projection behind this answer could not take."""


class ParkedRow(Value):
    engine: str
    projection: str
    stream: str
    position: int
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/ready` says."""

    engines: dict[str, bool]
    relay_active: bool = False
    epoch: int = 0
    position: int = 0
    through: int = 0
    closed: str | None = None
    lags: list[Lag] = field(default_factory=list)
    reactions_parked: int = 0


class Watch(Generic[T]):
    """Looks at something for everybody: once a second, and at once, at a pace, while somebody asks."""

    def __init__(self, engine: str, look: Callable[[], Awaitable[T]], pace_s: float) -> None:
        self.engine, self.look, self.pace_s = engine, look, pace_s
        self.value: T | None = None
        self.begun = self.ended = 0
        self.looked_at = 0.0
        self.wake = asyncio.Event()
        self.news = asyncio.Condition()

    async def run(self) -> None:
        """Until cancelled, even if a look swallows that: in Python 3.11 whatever waits by `wait_for` may."""
        clock, me = asyncio.get_running_loop().time, asyncio.current_task()
        assert me is not None
        while not me.cancelling():
            self.wake.clear()
            self.begun += 1
            began = clock()
            try:
                async with asyncio.timeout(LOOK_S_MAX):  # not wait_for: in Python 3.11 it can lose a cancel
                    self.value = await self.look()
                self.looked_at = began
            except (*DATABASE_FAULTS, AnalyticsUnavailable, TimeoutError, OSError) as lost:
                if self.value is not None or self.begun == 1:
                    log.warning("%s does not answer: %s", self.engine, lost)
                self.value = None
            except Exception:  # a bug; those who wait must hear of it too
                log.exception("%s cannot be looked at", self.engine)
                self.value = None
            async with self.news:
                self.ended = self.begun
                self.news.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self.value is None else IDLE_S):
                    await self.wake.wait()
            await asyncio.sleep(began + self.pace_s - clock())

    async def next(self) -> T:
        """A look that begins after now. Raises StoreUnavailable."""
        wanted = self.begun + 1
        async with self.news:
            self.wake.set()
            await self.news.wait_for(lambda: self.ended >= wanted)
        if self.value is None:
            raise StoreUnavailable(self.engine)
        return self.value

    async def recent(self) -> T:
        """A look that is younger than the pace. Raises StoreUnavailable, at once when the last one failed."""
        if self.value is None and self.ended:
            raise StoreUnavailable(self.engine)
        if self.value is not None and asyncio.get_running_loop().time() - self.looked_at < self.pace_s:
            return self.value
        return await self.next()


class WholeNumber(Loader):
    """`numeric` columns hold sums of integers; a fraction there would be a bug, and is an error."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class Queries:
    """Runs queries in the app's role, behind row-level security in Postgres and a condition in ClickHouse."""

    def __init__(
        self, dsn: str, schema: str, ledger: str, clickhouse: Callable[[], ClickHouse], kafka: str | None
    ) -> None:
        self.ledger, self.kafka = ledger, kafka
        self.pool = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=POSTGRES_CONNECTIONS_MAX,
            open=False,
            configure=_configure,
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=CONNECT_S_MAX,
            timeout=CONNECT_S_MAX,
            kwargs={
                "autocommit": True,
                "connect_timeout": CONNECT_S_MAX,
                "options": f"-c search_path={schema} -c timezone=UTC -c statement_timeout={QUERY_S_MAX}s",
            },
        )
        self.progress_client = clickhouse()
        self.clients = [clickhouse() for _ in range(CLICKHOUSE_CLIENTS)]
        self.free: asyncio.Queue[ClickHouse] = asyncio.Queue()
        self.threads = ThreadPoolExecutor(CLICKHOUSE_CLIENTS + 1, thread_name_prefix="clickhouse")
        self.looking: asyncio.Future[Marks] | None = None
        self.desk = Watch("postgres", self._look_at_desk, AGE_S_MAX)
        self.progress = Watch("clickhouse", self._look_at_progress, PROGRESS_AGE_S_MAX)
        self.samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Queries:
        for client in self.clients:
            self.free.put_nowait(client)
        await self.pool.open(wait=False)
        self.tasks = [asyncio.create_task(watch.run()) for watch in (self.desk, self.progress)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pool.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        for client in (self.progress_client, *self.clients):
            client.close()

    # ── questions ─────────────────────────────────────────────────────────────────────────────────

    async def run(
        self,
        query: Query,
        tenant: str,
        parameters: Mapping[str, Any] | None = None,
        at_least: int | None = None,
        *,
        wait_s: float = AT_LEAST_S,
        as_of: int | None = None,
        stream: str | None = None,
    ) -> Told:
        """One query; see `run_all`. Raises StreamParked when `stream`, of which it tells, is parked."""
        return await self.run_all(
            [query], tenant, parameters, at_least, wait_s=wait_s, as_of=as_of, stream=stream
        )

    async def run_all(
        self,
        queries: Sequence[Query],
        tenant: str,
        parameters: Mapping[str, Any] | None = None,
        at_least: int | None = None,
        *,
        wait_s: float = AT_LEAST_S,
        as_of: int | None = None,
        stream: str | None = None,
    ) -> Told:
        """Several queries of one engine, answered from one state of it, that has come to `at_least`.

        `as_of` asks what was shown when the log ended at that position. In the SQL `%(through)s` is the
        position the answer is complete through. Raises ProjectionBehind, PositionUnknown, StoreUnavailable.
        """
        engine = queries[0].reads[0][1].engine
        names = dict.fromkeys(name for query in queries for name, _ in query.reads)
        projections = [projection_named(name) for name in names]
        asked = max((position for position in (at_least, as_of) if position is not None), default=None)
        for again in (True, False):
            standing = await self._standing(engine, projections, asked, wait_s)
            through = min(standing.complete_through(projection) for projection in projections)
            bound = {**(parameters or {}), "through": through if as_of is None else as_of}
            ask = self._ask_postgres if engine is Engine.POSTGRES else self._ask_clickhouse
            try:
                rows = await ask(standing.desk, queries, tenant, bound, as_of, stream)
                break
            except (psycopg.errors.UndefinedTable, StoreUnavailable):
                # The version that was shown has been replaced and dropped since the last look.
                fresh = await self.desk.next()
                if not again or fresh.versions == standing.desk.versions:
                    raise
        parked = sum(standing.desk.parked.get((engine, name, tenant), 0) for name in names)
        return Told(rows, through, standing.desk.epoch, parked)

    async def parked(self, tenant: str, after: tuple[int, str, str], limit: int) -> list[ParkedRow]:
        """The tenant's facts that could not be shown or reacted to, oldest first."""
        position, engine, name = after
        values = {"tenant": tenant, "position": position, "engine": engine, "name": name, "limit": limit}
        try:
            async with self.pool.connection() as conn, conn.transaction():
                await conn.execute(TENANT, (tenant,))
                return await _fetch(conn, PARKED, values, ParkedRow)
        except DATABASE_FAULTS as lost:
            raise StoreUnavailable("postgres") from lost

    async def epoch(self) -> int:
        """Of the ledger; a restore or a move raises it. Raises StoreUnavailable, LedgerMoved."""
        desk = await self.desk.recent()
        if desk.closed == MOVED:
            raise LedgerMoved("the settings still point at where it was")
        return desk.epoch

    async def lags(self) -> list[Lag]:
        """Of every projection in every engine that answers."""
        desk = await self.desk.recent()
        found = [self._lag(self._in_postgres(desk), each) for each in projections_in(Engine.POSTGRES)]
        with suppress(StoreUnavailable):
            standing = Standing(desk, Engine.CLICKHOUSE, await self.progress.recent())
            found += [self._lag(standing, each) for each in projections_in(Engine.CLICKHOUSE)]
        return found

    async def readiness(self) -> Readiness:
        """Which engines answer, and how far everything is."""
        clickhouse, kafka, postgres = await asyncio.gather(
            _answers(self.progress.recent()), self._broker_answers(), _answers(self.desk.recent())
        )
        engines = {"postgres": postgres, "clickhouse": clickhouse, "kafka": kafka}
        desk = self.desk.value
        if not postgres or desk is None:
            return Readiness(engines)
        parked = sum(facts for (engine, _, _), facts in desk.parked.items() if engine == "reaction")
        lags = await self.lags()
        return Readiness(
            engines,
            desk.relay_active,
            desk.epoch,
            desk.position,
            desk.through,
            desk.closed,
            lags,
            reactions_parked=parked,
        )

    # ── how far ───────────────────────────────────────────────────────────────────────────────────

    async def _standing(
        self, engine: Engine, projections: Sequence[Projection], asked: int | None, wait_s: float
    ) -> Standing:
        """What is shown, when it has come to `asked`; an engine that comes back in time is waited for too."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_s
        while True:
            try:
                standing = await self._look(engine)
            except StoreUnavailable:
                if asked is None or clock() >= deadline:
                    raise
                await asyncio.sleep(AGE_S_MAX)
                continue
            if asked is None or all(standing.reached(projection, asked) for projection in projections):
                return standing
            if asked > standing.desk.position and asked > (await self.desk.next()).position:
                raise PositionUnknown(f"the log ends at {standing.desk.position}")
            if clock() >= deadline:
                raise ProjectionBehind(asked, [self._lag(standing, each) for each in projections])
            await asyncio.sleep(AGE_S_MAX)

    async def _look(self, engine: Engine) -> Standing:
        desk = await self.desk.recent()
        if engine is Engine.POSTGRES:
            return self._in_postgres(desk)
        return Standing(desk, engine, await self.progress.recent())

    def _in_postgres(self, desk: Desk) -> Standing:
        marks = {
            (name, version, topic, partition): position
            for (engine, name, version, topic, partition), position in desk.marks.items()
            if engine == Engine.POSTGRES
        }
        return Standing(desk, Engine.POSTGRES, marks)

    def _lag(self, standing: Standing, projection: Projection) -> Lag:
        desk, engine, name = standing.desk, standing.engine, projection.name
        through = standing.complete_through(projection)
        now = asyncio.get_running_loop().time()
        more_since = next((at for at, position in self.samples if position > through), now)
        return Lag(
            projection=name,
            engine=engine,
            version=desk.version(engine, name),
            complete_through=through,
            lag=desk.position - through,
            lag_s=round(now - more_since, 1) if desk.position > through else 0.0,
            parked=sum(facts for key, facts in desk.parked.items() if key[:2] == (engine, name)),
        )

    async def _look_at_desk(self) -> Desk:
        async with self.pool.connection(timeout=LOOK_S_MAX) as conn:
            row = await (await conn.execute(DESK, (f"counterfoil.{self.ledger}.",))).fetchone()
        assert row is not None
        position, epoch, closed, through, relay_active, heads, versions, marks, parked = row
        now = asyncio.get_running_loop().time()
        if not self.samples or now - self.samples[-1][0] >= IDLE_S:
            self.samples.append((now, position))
        return Desk(
            position=position,
            epoch=epoch,
            through=through,
            relay_active=relay_active,
            heads={(topic, partition): last for topic, partition, last in heads},
            versions={(engine, name): version for engine, name, version in versions},
            marks={tuple(key): position for *key, position in marks},
            parked={tuple(key): facts for *key, facts in parked},
            closed=closed,
        )

    async def _look_at_progress(self) -> Marks:
        if self.looking is None or self.looking.done():  # one at a time, however long it hangs
            self.looking = asyncio.get_running_loop().run_in_executor(self.threads, self._progress)
            self.looking.add_done_callback(_seen)
        return await asyncio.shield(self.looking)

    def _progress(self) -> Marks:
        _, rows = self.progress_client.query(PROGRESS)
        return {
            (name, int(version), topic, int(partition)): int(position)
            for name, version, topic, partition, position in rows
        }

    async def _broker_answers(self) -> bool:
        if self.kafka is None:
            return False
        host, _, port = self.kafka.split(",")[0].rpartition(":")
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    # ── Postgres ──────────────────────────────────────────────────────────────────────────────────

    async def _ask_postgres(
        self,
        desk: Desk,
        queries: Sequence[Query],
        tenant: str,
        parameters: Mapping[str, Any],
        as_of: int | None,
        stream: str | None,
    ) -> list[list[Any]]:
        """One repeatable-read transaction, in which the tenant is set and no other's rows exist."""
        try:
            async with self.pool.connection() as conn, conn.transaction():
                await conn.execute(TENANT, (tenant,))
                if stream is not None:
                    for name, _ in queries[0].reads:
                        found = await conn.execute(PARKED_STREAM, (name, f"{tenant}/{stream}"))
                        row = await found.fetchone()
                        if row is not None and row[0]:
                            raise StreamParked(stream)
                return [
                    await _fetch(conn, _for_postgres(desk, query, as_of), parameters, query.row)
                    for query in queries
                ]
        except DATABASE_FAULTS as lost:
            raise StoreUnavailable("postgres") from lost

    # ── ClickHouse ────────────────────────────────────────────────────────────────────────────────

    async def _ask_clickhouse(
        self,
        desk: Desk,
        queries: Sequence[Query],
        tenant: str,
        parameters: Mapping[str, Any],
        as_of: int | None,
        stream: str | None,
    ) -> list[list[Any]]:
        """Rows past `through` are left out where a table can tell: so several queries see one state."""
        values = {
            **{
                name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()
            },
            "counterfoil_tenant": tenant,
        }
        texts = [_for_clickhouse(desk, query) for query in queries]
        try:
            async with asyncio.timeout(QUERY_S_MAX):
                client = await self.free.get()
        except TimeoutError:
            raise StoreUnavailable("clickhouse") from None
        work = asyncio.get_running_loop().run_in_executor(
            self.threads, lambda: [client.query(text, values) for text in texts]
        )
        work.add_done_callback(partial(_give_back, self.free, client))
        try:
            async with asyncio.timeout(QUERY_S_MAX):
                answers = await asyncio.shield(work)
        except (AnalyticsUnavailable, TimeoutError) as lost:
            raise StoreUnavailable("clickhouse") from lost
        return [
            [query.row.model_validate(dict(zip(names, map(_whole, row), strict=True))) for row in rows]
            for query, (names, rows) in zip(queries, answers, strict=True)
        ]


def _for_postgres(desk: Desk, query: Query, as_of: int | None) -> str:
    text, states = query.sql, []
    for name, table in query.reads:
        version = desk.version(Engine.POSTGRES, name)
        if as_of is None:
            text = text.replace(f"{{{table.name}}}", physical(table, version))
        else:
            text = text.replace(f"{{{table.name}}}", f"{table.name}_then")
            states.append(f"{table.name}_then AS ({_state_at(table, version)})")
    return f"WITH {', '.join(states)} {text}" if states else text


def _state_at(table: Table, version: int) -> str:
    """The table as it was when the log ended at `through`, from the past that its sink keeps."""
    kept = past(table, version)
    if table.sums:
        key = ", ".join(f'"{column}"' for column in table.whole_key)
        sums = ", ".join(f'sum("{column}") AS "{column}"' for column in table.sums)
        return f"SELECT {key}, {sums} FROM {kept} WHERE from_position <= %(through)s GROUP BY {key}"
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    return (
        f"SELECT {columns} FROM {kept} WHERE from_position <= %(through)s"
        " AND (to_position IS NULL OR to_position > %(through)s)"
    )


def _for_clickhouse(desk: Desk, query: Query) -> str:
    text = query.sql
    for name, table in query.reads:
        version = desk.version(Engine.CLICKHOUSE, name)
        bound = " AND position <= %(through)s" if "position" in table.key else ""
        text = text.replace(
            f"{{{table.name}}}",
            f"(SELECT * FROM {physical(table, version)} FINAL WHERE tenant = %(counterfoil_tenant)s{bound})",
        )
    return text


def _whole(value: Any) -> Any:
    """A sum of integers comes as a Decimal; a fraction there would be a bug, and is an error."""
    if not isinstance(value, Decimal):
        return value
    if value != (whole := int(value)):
        raise ValueError(f"{value} is not a whole number")
    return whole


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.adapters.register_loader("numeric", WholeNumber)
    await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await conn.set_read_only(True)


async def _fetch(
    conn: psycopg.AsyncConnection[Any], text: str, parameters: Mapping[str, Any], row: type[Value]
) -> list[Any]:
    cursor = await conn.execute(text.encode(), parameters)
    names = [column.name for column in cursor.description or ()]
    shown = [nth for nth, name in enumerate(names) if name != "tenant"]
    return [row.model_validate({names[nth]: values[nth] for nth in shown}) async for values in cursor]


async def _answers(look: Awaitable[Any]) -> bool:
    try:
        await look
    except StoreUnavailable:
        return False
    return True


def _give_back(free: asyncio.Queue[ClickHouse], client: ClickHouse, done: asyncio.Future[Any]) -> None:
    _seen(done)
    free.put_nowait(client)


def _seen(done: asyncio.Future[Any]) -> None:
    """Whoever asked may have left, and asyncio complains of a failure that nobody looked at."""
    if not done.cancelled():
        done.exception()
