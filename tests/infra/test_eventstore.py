"""The log in Postgres: read by the library's own readers, and steady when the database is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, JSONTranscoder, Notification, StoredEvent
from psycopg import sql

from commands.capacity import OpenPool
from commands.handling import Handler
from commands.log import Append, Appended, Spent
from domain.capacity import PlacesTaken, PoolAlreadyOpen, PoolOpened
from domain.facts import Envelope, Recorded
from domain.values import OrderId
from infra import connection
from infra.connection import Connection, LogUnavailable
from infra.eventstore import LedgerRecorder, PostgresLog, recorder
from infra.mapper import FactMapper, Unreadable
from infra.migrate import admin_dsn
from tests.ledgers import InPostgres, connected, database
from tests.spec import ANA, T0, TENANT, after, envelope

T = TypeVar("T")
PATIENCE_S = 20
MAPPER = FactMapper(JSONTranscoder())


def opened(stored: InPostgres, *pools: str) -> PostgresLog:
    log = stored.open()
    for pool in pools:
        Handler(log, lambda: T0).handle(OpenPool(pool=pool), by=ANA, key=f"open-{pool}")
    return log


def taking(key: str, version: int) -> Append:
    fact = PlacesTaken(pool="p", quantity=1, order_id=OrderId(UUID(int=1)))
    return Append(envelope(key), b"d", "Take", {"pool-p": version}, [fact], after(version))


# ── the library ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def library(stored: InPostgres) -> Iterator[LedgerRecorder]:
    """Its own recorder, in the worker's role: it knows no tenants."""
    library = recorder(stored.settings.role_dsn("worker"), stored.schema)
    yield library
    library.datastore.close()


def recorded_by(library: LedgerRecorder, *events: Any) -> list[Any]:
    return [MAPPER.to_domain_event(event) for event in events]


def of_library(pool: str, version: int, at_s: float = 0) -> Recorded:
    """A fact of a program that knows only the library."""
    fact = PoolOpened(pool=pool, capacity=version)
    asked = Envelope(TENANT, "shop", f"{pool}-{version}")
    return Recorded(fact, f"pool-{pool}", version, 0, after(at_s), 0, asked)


def test_the_librarys_readers_see_our_facts_as_they_are(stored: InPostgres, library: LedgerRecorder) -> None:
    log = opened(stored, "p", "q")
    assert isinstance(log.append(taking("k1", 1)), Appended)
    assert isinstance(log.append(taking("k2", 2)), Appended)
    facts = log.recorded(TENANT, 1, 4)
    mine = [fact for fact in facts if fact.stream == "pool-p"]
    assert library.max_notification_id() == 4
    events = library.select_events(f"{TENANT}/pool-p")
    assert [fact._replace(position=0) for fact in mine] == recorded_by(library, *events)
    notifications = library.select_notifications(start=1, limit=10)
    assert list(facts) == recorded_by(library, *notifications)
    assert all(isinstance(each, Notification) for each in notifications)


def test_the_librarys_readers_page_filter_and_turn_round(stored: InPostgres, library: LedgerRecorder) -> None:
    log = opened(stored, "p")
    for version in range(1, 6):
        assert isinstance(log.append(taking(f"k{version}", version)), Appended)

    def versions(**asked: Any) -> list[int]:
        return [e.originator_version for e in library.select_events(f"{TENANT}/pool-p", **asked)]

    assert versions(gt=2) == [3, 4, 5, 6]
    assert versions(gt=1, lte=4, desc=True, limit=2) == [4, 3]
    assert [n.id for n in library.select_notifications(2, 3)] == [2, 3, 4]
    assert [n.id for n in library.select_notifications(2, 3, stop=3)] == [2, 3]
    assert [n.id for n in library.select_notifications(1, 9, topics=["capacity.pool-opened"])] == [1]
    assert library.max_notification_id() == 6


def test_what_the_library_appends_is_a_fact_like_any_other(
    stored: InPostgres, library: LedgerRecorder
) -> None:
    log = opened(stored, "p")
    facts = [of_library("a", 1, 5), of_library("b", 1, 5), of_library("a", 2, 5)]
    assert library.insert_events([MAPPER.to_stored_event(fact) for fact in facts]) == [2, 3, 4]
    assert [fact._replace(position=0) for fact in log.recorded(TENANT, 2, 3)] == facts
    with pytest.raises(PoolAlreadyOpen):
        Handler(log, lambda: T0).handle(OpenPool(pool="a"), by=ANA, key="k")


def test_the_library_too_cannot_turn_recorded_time_back(stored: InPostgres, library: LedgerRecorder) -> None:
    library.insert_events([MAPPER.to_stored_event(of_library("a", 1, 50))])
    library.insert_events([MAPPER.to_stored_event(of_library("b", 1, 10))])
    assert [fact.at for fact in stored.open().recorded(TENANT, 1, 2)] == [after(50), after(50)]


def test_a_version_that_is_taken_or_leaves_a_gap_is_an_integrity_error(library: LedgerRecorder) -> None:
    first, second, third = [MAPPER.to_stored_event(of_library("a", version)) for version in (1, 2, 3)]
    library.insert_events([first])
    for refused in ([first], [third], [second, second], [third, second]):
        with pytest.raises(IntegrityError):
            library.insert_events(refused)
    assert library.max_notification_id() == 1
    assert library.insert_events([second, third]) == [2, 3]
    with pytest.raises(IntegrityError, match="several tenants"):
        library.insert_events(
            [StoredEvent("x/s", 1, "n", first.state), StoredEvent("y/s", 1, "n", first.state)]
        )
    assert library.insert_events([]) == []


def test_racing_library_writers_of_one_version_leave_one_of_them(
    stored: InPostgres, library: LedgerRecorder
) -> None:
    other = recorder(stored.settings.role_dsn("worker"), stored.schema)
    start = threading.Barrier(2)

    def write(mine: LedgerRecorder) -> bool:
        start.wait()
        try:
            mine.insert_events([MAPPER.to_stored_event(of_library("a", 1))])
        except IntegrityError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(write, (library, other))) == [False, True]
    other.datastore.close()


def test_the_library_creates_no_table_of_its_own(stored: InPostgres, library: LedgerRecorder) -> None:
    count = "SELECT count(*) FROM pg_class WHERE relnamespace = %s::regnamespace"
    with stored.admin() as conn:
        before = conn.execute(count, (stored.schema,)).fetchone()
        library.create_table()
        assert conn.execute(count, (stored.schema,)).fetchone() == before


# ── hostile rows ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["os:system", "domain.capacity:PoolOpened", "tests.infra.booby_trap:spring"])
def test_a_row_with_a_hostile_name_is_unreadable_and_imports_nothing(
    stored: InPostgres, library: LedgerRecorder, name: str
) -> None:
    log = opened(stored, "p")
    with stored.admin() as conn:
        conn.execute("INSERT INTO stored_events VALUES ('acme/pool-p', 2, %s, '\\x00', 2)", (name,))
        conn.execute("UPDATE head SET position = 2")
    with pytest.raises(Unreadable, match="position 2"):
        log.read(TENANT, {"pool-p": 0})
    with pytest.raises(Unreadable, match="position 2"):
        log.recorded(TENANT, 1, 2)
    with pytest.raises(Unreadable, match="position 2"):
        log.append(taking("k", 1))
    with pytest.raises(Unreadable, match="position 2"):
        recorded_by(library, *library.select_notifications(2, 1))
    assert log.read(TENANT, {"pool-q": 0}) == []  # other streams go on


# ── a database that is not steady ─────────────────────────────────────────────────────────────────

BACKENDS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE usename = 'counterfoil_app' AND datname = current_database()"
)


def kill(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(BACKENDS).fetchone()
    assert row is not None
    return int(row[0])


def waiting_for_head(conn: psycopg.Connection[Any]) -> None:
    """Until somebody stands in the queue for the head row."""
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE usename = 'counterfoil_app' AND wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    deadline = time.monotonic() + PATIENCE_S
    while conn.execute(waiting).fetchone() is None:
        assert time.monotonic() < deadline, "nobody came"
        time.sleep(0.01)


def test_a_connection_killed_in_the_middle_of_an_append_is_made_again_and_the_effect_is_one(
    stored: InPostgres,
) -> None:
    log = opened(stored, "p")
    with ThreadPoolExecutor(1) as threads, stored.admin() as conn:
        with conn.transaction():
            conn.execute("SELECT position FROM head FOR UPDATE")
            appending = threads.submit(log.append, taking("k", 1))
            waiting_for_head(conn)
            assert kill(conn) >= 1
            time.sleep(0.2)
        outcome = appending.result(PATIENCE_S)
    assert isinstance(outcome, Appended)
    assert len(log.read(TENANT, {"pool-p": 0})) == 2


def test_connections_killed_at_any_moment_leave_exactly_one_effect_each(stored: InPostgres) -> None:
    opened(stored, "p")
    killed = threading.Event()

    def harass() -> int:
        kills = 0
        with stored.admin() as conn:
            for number in range(20):
                time.sleep(0.06 + 0.007 * number)
                kills += kill(conn)
        killed.set()
        return kills

    def work(writer: int) -> list[int]:
        mine, positions = Handler(stored.open(), lambda: T0), list[int]()
        while not killed.is_set() or len(positions) < 10:
            name = f"{writer}-{len(positions)}"
            answer = mine.handle(OpenPool(pool=name), by=ANA, key=name)
            positions += [fact.position for fact in answer.facts]
        return positions

    with ThreadPoolExecutor(3) as threads:
        harassing = threads.submit(harass)
        answered = [position for positions in threads.map(work, range(2)) for position in positions]
        assert harassing.result(PATIENCE_S) > 10
    facts = stored.open().recorded(TENANT, 1, 100_000)
    assert [fact.position for fact in facts] == list(range(1, len(facts) + 1))
    assert sorted(answered) == list(range(2, len(facts) + 1))


class LosesAReply(Connection):
    """The database has committed, and the answer is lost on the way."""

    lost = True

    def retrying(self, call: Callable[[psycopg.Connection[Any]], T], *, once: bool = False) -> T:
        def losing(conn: psycopg.Connection[Any]) -> T:
            answer = call(conn)
            if not self.lost:
                self.lost = True
                raise psycopg.OperationalError("the connection broke after the commit")
            return answer

        return super().retrying(losing, once=once)


def loses_a_reply(log: PostgresLog) -> None:
    log.group.close()
    log.group.connection = LosesAReply(log.connection.dsn, log.connection.schema)
    log.group.connection.lost = False


def test_an_answer_lost_after_the_commit_is_found_again_by_its_key(stored: InPostgres) -> None:
    log = opened(stored, "p")
    loses_a_reply(log)
    assert log.append(taking("k", 1)) == Spent(b"d", 2, 1)
    assert len(log.read(TENANT, {"pool-p": 0})) == 2


def test_a_command_whose_answer_was_lost_is_answered_in_full(stored: InPostgres) -> None:
    log = opened(stored, "p")
    loses_a_reply(log)
    answer = Handler(log, lambda: T0).handle(OpenPool(pool="q"), by=ANA, key="k")
    assert [fact.event for fact in answer.facts] == [PoolOpened(pool="q", capacity=None)]


@contextmanager
def gone(stored: InPostgres) -> Iterator[None]:
    """The database turns everybody away."""
    name = sql.Identifier(database(admin_dsn(stored.settings)))
    base = admin_dsn(stored.settings).rpartition("/")[0]
    with connected(f"{base}/postgres", "public") as conn, stored.admin() as inside:
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            kill(inside)
            yield
        finally:
            conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


def test_a_database_that_is_gone_is_a_fault_within_the_limit_and_no_effect_after_it(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RECONNECT_S_MAX", 0.7)
    log = opened(stored, "p")
    with gone(stored):
        for call in (
            lambda: log.append(taking("k", 1)),
            lambda: log.read(TENANT, {"pool-p": 0}),
            lambda: log.spent(envelope("k")),
        ):
            began = time.monotonic()
            with pytest.raises(LogUnavailable, match="does not answer"):
                call()
            assert time.monotonic() - began < 2.5
    assert isinstance(log.append(taking("k", 1)), Appended)


def test_a_database_that_comes_back_in_time_is_waited_for(stored: InPostgres) -> None:
    log = opened(stored, "p")
    with ThreadPoolExecutor(1) as threads:
        with gone(stored):
            appending = threads.submit(log.append, taking("k", 1))
            with pytest.raises(TimeoutError):
                appending.result(0.5)
        assert isinstance(appending.result(PATIENCE_S), Appended)


def test_a_server_that_is_not_there_is_the_same_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECONNECT_S_MAX", 0.3)
    log = PostgresLog("postgresql://u:p@127.0.0.1:1/none", "ledger_0", b"key")
    with pytest.raises(LogUnavailable):
        log.append(taking("k", 0))


# ── facts as people read them ─────────────────────────────────────────────────────────────────────


def test_the_facts_view_shows_what_is_stored(stored: InPostgres) -> None:
    log = opened(stored, "p")
    assert isinstance(log.append(taking("k", 1)), Appended)
    with stored.admin() as conn:
        rows = conn.execute("SELECT * FROM facts ORDER BY position").fetchall()
    for row, fact in zip(rows, log.recorded(TENANT, 1, 2), strict=True):
        position, tenant, stream, version, name, at, written, shown = row
        assert (position, tenant, stream, version) == (fact.position, TENANT, fact.stream, fact.version)
        assert (name, at) == (fact.event.name, fact.at)
        assert written == {"actor": "ana", "key": fact.envelope.key}
        assert shown == fact.event.model_dump(mode="json")
