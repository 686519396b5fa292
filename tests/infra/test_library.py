"""Anybody's application of the eventsourcing library on our log: its own test cases, and what it leans on."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest import TestCase
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing import persistence as library
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError, Notification, StoredEvent
from eventsourcing.postgres import (
    PostgresAggregateRecorder,
    PostgresApplicationRecorder,
    PostgresDatastore,
    PostgresProcessRecorder,
    PostgresRecorder,
    PostgresTrackingRecorder,
)
from eventsourcing.projection import ApplicationSubscription
from psycopg.conninfo import conninfo_to_dict

from commands.log import Appended, Overloaded
from infra import connection
from infra.eventstore import FAULTS, GroupCommitRecorder, LedgerRecorder, faults_of_the_library
from infra.settings import Settings
from tests.infra.test_eventstore import LosesAReply, gone
from tests.infra.test_log_contract import ask, taken
from tests.ledgers import InPostgres

PATIENCE_S = 20
WHERE = ("dbname", "host", "port", "user")


def cases_of_the_library() -> Any:
    """They import its cipher, which wants a package that we do not; what is run here encrypts nothing."""
    if find_spec("Crypto") is None:
        sys.modules["eventsourcing.cipher"] = ModuleType("eventsourcing.cipher")
        sys.modules["eventsourcing.cipher"].__dict__["AESCipher"] = None
    try:
        return importlib.import_module("eventsourcing.tests.persistence")
    finally:
        if find_spec("Crypto") is None:
            del sys.modules["eventsourcing.cipher"]


theirs = cases_of_the_library()


class Library:
    """Recorders of the library's in one ledger, with its owner's rights: he may create tables beside ours."""

    def __init__(self, stored: InPostgres) -> None:
        self.stored = stored
        self.parts = conninfo_to_dict(stored.settings.role_dsn("owner"))
        self.datastores: list[PostgresDatastore] = []

    def datastore(self, ids: str = "uuid", **more: Any) -> PostgresDatastore:
        where = {name: str(self.parts[name]) for name in WHERE}
        named: Any = {**where, "password": self.parts["password"], "originator_id_type": ids, **more}
        datastore = PostgresDatastore(schema=self.stored.schema, pool_size=2, max_overflow=20, **named)
        self.datastores.append(datastore)
        return datastore

    def ours(self, ids: str = "uuid") -> GroupCommitRecorder:
        return GroupCommitRecorder(self.datastore(ids))

    def stock(self, kind: Callable[..., Any], **names: str) -> Any:
        recorder: PostgresRecorder = kind(self.datastore(), **names)
        recorder.create_table()
        return recorder

    def environment(self, **more: str) -> dict[str, str]:
        """As docs/log.md says."""
        return {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "APPLICATION_RECORDER_TOPIC": "infra.eventstore:GroupCommitRecorder",
            "POSTGRES_SCHEMA": self.stored.schema,
            **{f"POSTGRES_{name.upper()}": str(self.parts[name]) for name in WHERE},
            "POSTGRES_PASSWORD": str(self.parts["password"]),
            **more,
        }

    def close(self) -> None:
        for datastore in self.datastores:
            datastore.close()


@pytest.fixture
def mine(stored: InPostgres) -> Iterator[Library]:
    yield from opened(stored)


@pytest.fixture
def apart(settings: Settings) -> Iterator[Library]:
    """In a database of the test's own: tables are made in it."""
    yield from opened(InPostgres(settings))


def opened(stored: InPostgres) -> Iterator[Library]:
    opened = Library(stored)
    yield opened
    opened.close()
    stored.close()


def told(number: int = 1, version: int = 1, state: bytes = b"state") -> StoredEvent:
    return StoredEvent(UUID(int=number), version, "topic", state)


def everything(recorder: Any) -> list[Notification]:
    return list(recorder.select_notifications(None, 100_000))


# ── the library's own cases ───────────────────────────────────────────────────────────────────────


def methods(case: type[TestCase]) -> list[str]:
    return [name for name in dir(case) if name.startswith(("test", "optional_test"))]


def cases(*kinds: type[TestCase]) -> list[Any]:
    return [
        pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind in kinds for name in methods(kind)
    ]


def passes(kind: type[TestCase], name: str, recorder: Any, **more: Any) -> None:
    """Run one method of a case of the library's on this recorder; raises what it raises."""
    variant = type(kind.__name__, (kind,), {"create_recorder": lambda _: recorder, **more})
    variant(name).debug()


@pytest.mark.parametrize("ids", ["uuid", "text"])
@pytest.mark.parametrize(
    ("kind", "name"),
    cases(theirs.ApplicationRecorderTestCase, theirs.NonInterleavingNotificationIDsBaseCase),
)
def test_the_librarys_own_cases_pass(mine: Library, kind: type[TestCase], name: str, ids: str) -> None:
    of_ids = {"text": lambda _: f"room-{uuid4()}", "uuid": lambda _: uuid4()}
    passes(kind, name, mine.ours(ids), new_originator_id=of_ids[ids])


class TellsNoIds(GroupCommitRecorder):
    """An aggregate recorder has no positions to tell, and its case wants to hear none."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        super().insert_events(stored_events, **kwargs)


@pytest.mark.parametrize(("kind", "name"), cases(theirs.AggregateRecorderTestCase))
def test_its_cases_for_aggregates_pass_but_for_the_ids_that_they_do_not_want(
    mine: Library, kind: type[TestCase], name: str
) -> None:
    passes(kind, name, TellsNoIds(mine.datastore()))


@pytest.mark.parametrize(
    ("kind", "name", "stock", "tables"),
    [
        pytest.param(*case.values, stock, tables, id=case.id)
        for kind, stock, tables in (
            (theirs.AggregateRecorderTestCase, PostgresAggregateRecorder, {"events_table_name": "snapshots"}),
            (theirs.TrackingRecorderTestCase, PostgresTrackingRecorder, {}),
            (
                theirs.ProcessRecorderTestCase,
                PostgresProcessRecorder,
                {"events_table_name": "process_events"},
            ),
        )
        for case in cases(kind)
    ],
)
def test_the_stock_recorders_work_beside_ours(
    apart: Library, kind: type[TestCase], name: str, stock: type[PostgresRecorder], tables: dict[str, str]
) -> None:
    """Of snapshots, tracking and processes: in tables of their own in the same schema."""
    passes(kind, name, apart.stock(stock, **tables))
    assert apart.ours().insert_events([told()]) == [1]


class WithoutTheHead(GroupCommitRecorder):
    """A deliberately broken recorder: positions from a sequence, in transactions that are open together."""

    def __init__(self, datastore: PostgresDatastore, admin: Callable[[], Any]) -> None:
        super().__init__(datastore)
        self.admin, self.both = admin, threading.Barrier(2)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> list[int]:
        half = len(stored_events) // 2
        with self.admin() as conn, conn.transaction(), conn.cursor() as cursor:
            for part in (stored_events[:half], stored_events[half:]):
                cursor.executemany(
                    "INSERT INTO stored_events VALUES (%s, %s, %s, %s, nextval('loose'))",
                    [(str(e.originator_id), e.originator_version, e.topic, e.state) for e in part],
                )
                self.both.wait(PATIENCE_S)
        return []


def test_their_case_notices_a_log_without_a_head(apart: Library) -> None:
    """Negative control, and certain: each of the two writers waits in its middle for the other."""
    with apart.stored.admin() as conn:
        conn.execute("CREATE SEQUENCE loose")
    broken = WithoutTheHead(apart.datastore(), apart.stored.admin)
    with pytest.raises(AssertionError, match="not greater than"):
        passes(theirs.NonInterleavingNotificationIDsBaseCase, "test", broken, insert_num=10)


# ── what an append accepts ────────────────────────────────────────────────────────────────────────


def test_states_of_any_bytes_are_kept_as_they_are(mine: Library) -> None:
    states = [b"", b"\x00", bytes(range(256)), "ż".encode(), b"x" * 100_000]
    ours = mine.ours()
    ours.insert_events([told(1, number, state) for number, state in enumerate(states)])
    assert [each.state for each in ours.select_events(UUID(int=1))] == states
    assert [each.state for each in everything(ours)] == states


def test_streams_begin_at_0_or_1_and_have_no_gaps(mine: Library) -> None:
    ours = mine.ours()
    assert ours.insert_events([told(1, 0), told(2, 1), told(1, 1), told(2, 2)]) == [1, 2, 3, 4]
    refused = [
        [told(3, 2)],  # begins too late
        [told(3, -1)],
        [told(1, 0)],  # taken
        [told(2, 0)],  # before the first
        [told(1, 3)],  # leaves a gap
        [told(1, 2), told(1, 2)],
        [told(1, 3), told(1, 2)],
        [told(4, 1), told(1, 1)],  # the first is fine by itself
    ]
    for events in refused:
        with pytest.raises(IntegrityError):
            ours.insert_events(events)
    assert ours.max_notification_id() == 4
    assert ours.insert_events([told(1, 2), told(3, 0), told(4, 1)]) == [5, 6, 7]
    assert ours.insert_events([]) == []


def test_the_house_is_stricter(mine: Library) -> None:
    house = LedgerRecorder(mine.datastore("text"))
    state = bytes(8) + b"{}"
    with pytest.raises(IntegrityError, match="begin at 1"):
        house.insert_events([StoredEvent("acme/s", 0, "n", state)])
    with pytest.raises(IntegrityError):
        house.insert_events([StoredEvent("acme/s", 2, "n", state)])
    assert house.insert_events([StoredEvent("acme/s", 1, "n", state)]) == [1]


def test_of_two_who_begin_a_stream_at_0_and_at_1_one_is_refused(mine: Library) -> None:
    """Both are right about a stream without facts, until the other is recorded. In one process and in two."""
    for one, other in ((ours := mine.ours(), ours), (mine.ours(), mine.ours())):
        for number in range(20):
            start = threading.Barrier(2)
            stream = uuid4().int

            def write(recorder: GroupCommitRecorder, version: int) -> bool:
                start.wait(PATIENCE_S)  # noqa: B023  it is run in this turn
                try:
                    recorder.insert_events([told(stream, version), told(stream, version + 1)])  # noqa: B023
                except IntegrityError:
                    return False
                return True

            with ThreadPoolExecutor(2) as threads:
                first = threads.submit(write, one, number % 2)
                second = threads.submit(write, other, 1 - number % 2)
            assert first.result() != second.result()


# ── faults ────────────────────────────────────────────────────────────────────────────────────────


def loses_a_reply(recorder: GroupCommitRecorder, stored: InPostgres) -> LosesAReply:
    recorder.group.close()
    losing = LosesAReply(stored.settings.role_dsn("owner"), stored.schema)
    recorder.group.connection = losing
    losing.lost = False
    return losing


def test_an_answer_lost_after_the_commit_is_told_all_the_same(mine: Library) -> None:
    ours = mine.ours()
    assert ours.insert_events([told(1), told(1, 2)]) == [1, 2]
    losing = loses_a_reply(ours, mine.stored)
    with ThreadPoolExecutor(1) as threads, mine.ours().subscribe(gt=2) as subscription:
        hearing = threads.submit(next_of, subscription, 3)
        time.sleep(0.2)  # by now it has looked, found nothing, and waits
        assert ours.insert_events([told(1, 3), told(2), told(2, 2)]) == [3, 4, 5]
        assert hearing.result(PATIENCE_S) == [3, 4, 5]
    assert losing.lost
    assert [each.id for each in everything(ours)] == [1, 2, 3, 4, 5]
    assert ours.insert_events([told(2, 3)]) == [6]


def test_the_proof_notices_a_recorder_whose_second_try_has_no_key(
    apart: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: stock tries again too, and then says that its own events are in the way."""
    stock = apart.stock(PostgresApplicationRecorder, events_table_name="theirs_events")
    whole, lost = stock.datastore.get_connection, threading.Event()

    @contextmanager
    def losing() -> Iterator[Any]:
        with whole() as conn:
            yield conn
        if not lost.is_set():
            lost.set()
            raise library.OperationalError("the connection broke after the commit")

    monkeypatch.setattr(stock.datastore, "get_connection", losing)
    with pytest.raises(IntegrityError):
        stock.insert_events([told(1), told(1, 2)])
    assert len(everything(stock)) == 2


def test_faults_have_the_librarys_names(mine: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault, name in FAULTS:
        with pytest.raises(name), faults_of_the_library():
            raise fault("as it comes")
    ours = mine.ours("text")
    with pytest.raises(library.DataError):
        ours.insert_events([StoredEvent("nul\x00", 1, "n", b"")])
    with pytest.raises(library.DataError):
        ours.insert_events([StoredEvent("s", 2**63, "n", b"")])
    monkeypatch.setattr(connection, "RECONNECT_S_MAX", 0.3)
    loses_a_reply(ours, mine.stored)
    with gone(mine.stored), pytest.raises(library.OperationalError, match="does not answer"):
        ours.insert_events([StoredEvent("s", 1, "n", b"")])


def test_a_full_queue_is_an_operational_error(mine: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mine.ours()

    def full(_: Any) -> None:
        raise Overloaded("20,000 commands wait for the log already")

    monkeypatch.setattr(ours.group, "submit", full)
    with pytest.raises(library.OperationalError, match="wait for the log already"):
        ours.insert_events([told()])


def test_the_password_is_asked_for_when_it_is_needed(mine: Library) -> None:
    asked: list[str] = []

    def password() -> str:
        asked.append("now")
        return str(mine.parts["password"])

    ours = GroupCommitRecorder(mine.datastore(password="", get_password_func=password))
    before = len(asked)
    assert ours.insert_events([told()]) == [1]
    assert len(asked) > before


# ── subscriptions ─────────────────────────────────────────────────────────────────────────────────


def next_of(subscription: Any, count: int) -> list[int]:
    return [next(subscription).id for _ in range(count)]


@pytest.mark.parametrize("stock", [False, True])
def test_a_subscription_hears_of_whoever_appends(mine: Library, stock: bool) -> None:
    """Ours and the library's stock recorder, of this process's recorder, of another one, and of the house."""
    ours, other, log = mine.ours("text"), mine.ours("text"), mine.stored.open()
    listening = PostgresApplicationRecorder(mine.datastore("text")) if stock else ours
    appends: list[Callable[[], object]] = [
        lambda: ours.insert_events([StoredEvent("a", 1, "n", b"")]),
        lambda: other.insert_events([StoredEvent("a", 2, "n", b"")]),
        lambda: log.append(ask("one", {"pool-a": 0}, taken("a"))),
        lambda: other.insert_events([StoredEvent("b", 1, "n", b"")]),
    ]
    with ThreadPoolExecutor(1) as threads, listening.subscribe(gt=0) as subscription:
        for number, append in enumerate(appends, 1):
            hearing = threads.submit(next_of, subscription, 1)
            time.sleep(0.2)  # by now it has looked, found nothing, and waits
            append()
            assert hearing.result(PATIENCE_S) == [number]


def test_closing_tells_what_was_recorded_last(mine: Library) -> None:
    ours, other = mine.ours(), mine.ours()
    with ThreadPoolExecutor(1) as threads, ours.subscribe(gt=0) as subscription:
        hearing = threads.submit(next_of, subscription, 1)
        time.sleep(0.2)
        other.insert_events([told()])
        other.close()
        assert hearing.result(PATIENCE_S) == [1]


def test_listeners_are_told_while_commands_never_stop_waiting(mine: Library) -> None:
    ours = mine.ours("text")
    done = threading.Event()

    def write(writer: int) -> None:
        version = 0
        while not done.is_set():
            version += 1
            ours.insert_events([StoredEvent(f"{writer}", version, "n", b"")])

    with (
        ThreadPoolExecutor(8) as threads,
        psycopg.connect(mine.stored.settings.role_dsn("worker"), autocommit=True) as conn,
    ):
        conn.execute("LISTEN stored_events")
        writing = [threads.submit(write, writer) for writer in range(8)]
        heard = sum(1 for _ in conn.notifies(timeout=PATIENCE_S, stop_after=3))
        done.set()
        for each in writing:
            each.result(PATIENCE_S)
    assert heard >= 3


# ── an application ────────────────────────────────────────────────────────────────────────────────


class Room(Aggregate):
    @event("Opened")
    def __init__(self, name: str) -> None:
        self.name = name
        self.guests: list[str] = []

    @event("Entered")
    def enter(self, guest: str) -> None:
        self.guests.append(guest)


class Rooms(Application[UUID]):
    snapshotting_intervals = {Room: 3}  # noqa: RUF012  as the library wants it


def test_an_application_of_the_library_is_configured_by_its_environment_alone(apart: Library) -> None:
    with Rooms(env=apart.environment()) as rooms:
        assert isinstance(rooms.recorder, GroupCommitRecorder)
        room = Room("blue")
        with ApplicationSubscription(rooms) as subscription:
            for guest in ("ana", "ben", "eva", "ida"):
                room.enter(guest)
            recordings = rooms.save(room)
            assert [each.notification.id for each in recordings] == [1, 2, 3, 4, 5]
            assert [next(subscription)[0].originator_version for _ in range(5)] == [1, 2, 3, 4, 5]
        room.enter("joe")
        rooms.save(room)
        snapshots = list(rooms.snapshots.get(room.id)) if rooms.snapshots else []
        assert [each.originator_version for each in snapshots] == [3, 6]
        assert rooms.repository.get(room.id).guests == ["ana", "ben", "eva", "ida", "joe"]
        section = rooms.notification_log["1,10"]
        assert [each.id for each in section.items] == [1, 2, 3, 4, 5, 6]
        stale: Room = rooms.repository.get(room.id)
        room.enter("kim")
        rooms.save(room)
        stale.enter("leo")
        with pytest.raises(IntegrityError):
            rooms.save(stale)
        thread = rooms.recorder.group.thread
    assert thread is not None
    assert not thread.is_alive()  # the library closes its pool, and our thread and connection with it
    with Rooms(env=apart.environment(IS_SNAPSHOTTING_ENABLED="n")) as again:
        assert again.repository.get(room.id).guests == ["ana", "ben", "eva", "ida", "joe", "kim"]


def test_our_facts_and_its_events_share_one_order(mine: Library) -> None:
    log, ours = mine.stored.open(), mine.ours("text")
    assert ours.insert_events([StoredEvent("a", 0, "n", b"")]) == [1]
    assert isinstance(log.append(ask("one", {"pool-a": 0}, taken("a"))), Appended)
    assert ours.insert_events([StoredEvent("a", 1, "n", b"")]) == [3]
