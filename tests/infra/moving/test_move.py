"""A ledger moves to another cluster: whole, once, and nothing that was acknowledged stays behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from commands.capacity import OpenPool
from commands.handling import Actor, Answer, Handler
from domain.values import Permission
from infra.connection import LedgerMoved
from infra.migrate import migrate, schema_of
from infra.moving import copying
from infra.moving import move as moving
from infra.moving.copying import CONTENT, TABLES
from infra.moving.move import at, cancel, move
from infra.moving.standing import MoveRefused, Standing, opened, standing
from infra.readmodel import past, physical
from infra.settings import Settings
from projections.registry import projection_named
from projections.rows import Engine
from tests.api.conftest import carry
from tests.ledgers import InPostgres, connected
from tests.spec import T0

BY = Actor("acme", "ana", frozenset(Permission))
STEPS = ("migrated", "closed", "copied", "opened", "retired")
MOVER = """
import os, signal, sys
from infra.moving.move import move
from infra.settings import Settings
import infra.moving.move as moving
moving.QUIET_S = 0
def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
def progress(what, done, total):
    if what.startswith(sys.argv[3]) and done:
        os.kill(os.getpid(), signal.SIGKILL)
move(Settings(home=sys.argv[1], postgres_dsn=os.environ["FROM"]), sys.argv[2], progress=progress, step=step)
"""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "QUIET_S", 0.05)


class Writer:
    """A process of the installation, as the log knows it: a connection, an epoch and a memory of its own.

    Every acknowledged command is noted; the judge asks for each of them.
    """

    def __init__(self, settings: Settings) -> None:
        self.ledger = InPostgres(settings)
        self.handler = Handler(self.ledger.open(), lambda: T0)
        self.acknowledged: dict[str, Answer] = {}

    def record(self, name: str) -> Answer:
        answer = self.handler.handle(OpenPool(pool=name), by=BY, key=name)
        self.acknowledged[name] = answer
        return answer

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture
def writer(settings: Settings) -> Iterator[Writer]:
    """Of a ledger with twenty facts, shown in its read models."""
    made = Writer(settings)
    for nth in range(20):
        made.record(f"before-{nth}")
    carry(settings)
    yield made
    made.close()


def contents(settings: Settings) -> dict[str, Any]:
    """What every table comes to; without what a move changes, or a relay at any time."""
    with connected(settings.role_dsn("owner"), schema_of(settings)) as conn:
        names = {name for (name,) in conn.execute(TABLES)} - {"migrations", "head", "relay"}
        found: dict[str, Any] = {
            name: conn.execute(CONTENT.format(name).encode()).fetchone() for name in names
        }
        found["head"] = conn.execute("SELECT position, at_us, identity FROM head").fetchall()
        return found


def stands(settings: Settings) -> Standing:
    with closing(opened(settings)) as conn:
        return standing(conn)


def judge(there: Settings, acknowledged: dict[str, Answer]) -> list[str]:
    """What is wrong with the ledger there, given what was acknowledged to anybody, anywhere."""
    wrong = []
    with connected(there.role_dsn("owner"), schema_of(there)) as conn:
        keys = dict(conn.execute("SELECT key, first_position FROM commands").fetchall())
        streams = dict(
            conn.execute("SELECT originator_id, count(*) FROM stored_events GROUP BY 1").fetchall()
        )
    for name, answer in acknowledged.items():
        if name not in keys or answer.position < keys[name]:
            wrong.append(f"{name} was acknowledged at {answer.position}, and is not there")
        if streams.get(f"acme/pool-{name}") != 1:
            wrong.append(f"{name} has {streams.get(f'acme/pool-{name}', 0)} facts")
    return wrong


# ── what arrives ──────────────────────────────────────────────────────────────────────────────────


def test_everything_arrives_and_the_next_epoch_begins(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    before = contents(settings)
    told: list[tuple[str, int, int]] = []
    moved = move(settings, elsewhere, progress=lambda *each: told.append(each))
    there = at(settings, elsewhere)
    assert contents(there) == before == contents(settings)
    assert before["stored_events"][0] == before["pools_v1"][0] == 20
    assert (moved.position, moved.epoch, moved.left_behind) == (20, 2, ())
    assert moved.rows["stored_events"] == moved.rows["commands"] == 20
    assert stands(there).closed is None
    assert stands(settings).closed == "moved"
    assert {what for what, done, total in told if done == total} == {
        f"{table}, bytes" for table in moved.rows
    }
    assert "@" not in moved.to


def test_life_goes_on_there_and_read_models_follow_from_where_they_were(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    move(settings, elsewhere)
    there = at(settings, elsewhere)
    with closing(Writer(there)) as after:
        assert after.handler.handle(OpenPool(pool="before-3"), by=BY, key="before-3").replayed, (
            "keys came along"
        )
        assert after.record("after").position == 21
        carry(there)
        with connected(there.role_dsn("owner"), schema_of(there)) as conn:
            assert conn.execute("SELECT count(*) FROM pools_v1").fetchone() == (21,)
        assert judge(there, writer.acknowledged | after.acknowledged) == []


def test_walls_stand_there_as_they_did_here(settings: Settings, writer: Writer, elsewhere: str) -> None:
    """COPY passed row-level security by for a moment; guards were off for it."""
    catalogue = """
    SELECT relname, relrowsecurity, relforcerowsecurity,
           (SELECT array_agg(tgenabled ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid), relacl::text
      FROM pg_class c
     WHERE relnamespace = current_schema()::text::regnamespace AND relkind = 'r' ORDER BY 1"""

    def walls(of: Settings) -> list[Any]:
        with connected(of.role_dsn("owner"), schema_of(of)) as conn:
            return conn.execute(catalogue).fetchall()

    before = walls(settings)
    move(settings, elsewhere)
    assert walls(at(settings, elsewhere)) == before
    with connected(at(settings, elsewhere).role_dsn("app"), schema_of(settings)) as app:
        assert app.execute("SELECT count(*) FROM stored_events").fetchone() == (0,)


def test_a_rebuilt_read_model_arrives_in_its_version(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    with connected(settings.role_dsn("owner"), schema_of(settings)) as conn:
        for table in projection_named("capacity").tables_in(Engine.POSTGRES):
            for old, new in ((physical(table, 1), physical(table, 3)), (past(table, 1), past(table, 3))):
                conn.execute(f"ALTER TABLE {old} RENAME TO {new}".encode())
        conn.execute("UPDATE projections SET version = 3 WHERE (engine, name) = ('postgres', 'capacity')")
        conn.execute("CREATE TABLE somebody_elses (n int)")
    before = contents(settings)
    moved = move(settings, elsewhere)
    assert moved.left_behind == ("somebody_elses",)
    del before["somebody_elses"]
    assert contents(at(settings, elsewhere)) == before


# ── nobody writes where it was ────────────────────────────────────────────────────────────────────


def forgotten_writer_during(settings: Settings, elsewhere: str, writer: Writer, when: str) -> list[Exception]:
    """Somebody who was not told writes at that step of the move."""
    refused: list[Exception] = []

    def step(name: str) -> None:
        if name == when:
            try:
                writer.record(f"during-{when}")
            except LedgerMoved as fault:
                refused.append(fault)

    move(settings, elsewhere, step=step)
    return refused


@pytest.mark.parametrize("when", STEPS[1:])
def test_a_forgotten_writer_is_refused_and_its_command_counts_once_when_it_is_sent_again(
    settings: Settings, writer: Writer, elsewhere: str, when: str
) -> None:
    assert len(forgotten_writer_during(settings, elsewhere, writer, when)) == 1
    there = at(settings, elsewhere)
    with closing(Writer(there)) as again:
        for _ in range(2):
            again.record(f"during-{when}")
        assert judge(there, writer.acknowledged | again.acknowledged) == []


@pytest.mark.parametrize("when", ["closed", "copied", "opened"])
def test_control_without_the_guards_a_forgotten_writers_command_is_acknowledged_and_lost(
    settings: Settings, writer: Writer, elsewhere: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag in the head row alone, which `append` never reads."""
    monkeypatch.setattr("infra.moving.standing._guard", lambda conn, switch: None)
    assert forgotten_writer_during(settings, elsewhere, writer, when) == []
    wrong = judge(at(settings, elsewhere), writer.acknowledged)
    expected = [] if when == "closed" else [f"during-{when} was acknowledged at 21, and is not there"]
    assert wrong[:1] == expected, "before the copy begins it is copied; after that it is lost"


def test_many_who_write_while_it_closes_are_copied_or_refused(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    """Appends are under way at every moment of the closing; each is in the copy, or was refused."""
    writers = [Writer(settings) for _ in range(4)]
    refused: list[str] = []
    started = threading.Barrier(5)

    def write(nth: int) -> None:
        for count in range(100_000):
            if count == 20:
                started.wait(30)
            try:
                writers[nth].record(f"w{nth}-{count}")
            except LedgerMoved:
                refused.append(f"w{nth}-{count}")
                return

    threads = [threading.Thread(target=write, args=(nth,)) for nth in range(4)]
    for thread in threads:
        thread.start()
    started.wait(30)
    moved = move(settings, elsewhere, under_load=True)
    for thread in threads:
        thread.join(30)
    there = at(settings, elsewhere)
    acknowledged = dict(writer.acknowledged)
    for each in writers:
        acknowledged |= each.acknowledged
        each.close()
    assert len(refused) == 4
    assert judge(there, acknowledged) == []
    assert moved.position == len(acknowledged)
    with closing(Writer(there)) as again:
        for name in refused:
            assert not again.record(name).replayed, "refused means not recorded"


def test_who_still_writes_is_not_shut_out_unasked(settings: Settings, writer: Writer, elsewhere: str) -> None:
    done = threading.Event()

    def write() -> None:
        for nth in range(100_000):
            if done.is_set():
                return
            writer.record(f"more-{nth}")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(MoveRefused, match=r"facts came within .*--under-load"):
            move(settings, elsewhere)
    finally:
        done.set()
        thread.join()
    assert stands(settings).closed is None
    writer.record("and-on")


def test_whoever_comes_to_the_new_place_too_early_is_refused(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    def step(name: str) -> None:
        if name == "closed":
            with closing(Writer(at(settings, elsewhere))) as early, pytest.raises(LedgerMoved):
                early.record("early")

    assert move(settings, elsewhere, step=step).position == 20


# ── interrupted ───────────────────────────────────────────────────────────────────────────────────


def killed(settings: Settings, elsewhere: str, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOVER, str(settings.home), elsewhere, when],
        env={"FROM": str(settings.postgres_dsn), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr


@pytest.mark.parametrize("when", [*STEPS[:2], "commands", "stored_events", "pools_v1", *STEPS[2:]])
def test_killed_anywhere_it_is_run_again_and_everything_is_there_once(
    settings: Settings, writer: Writer, elsewhere: str, when: str
) -> None:
    before = contents(settings)
    killed(settings, elsewhere, when)
    assert contents(settings) == before
    if when == "migrated":
        writer.record("between")
        before = contents(settings)
    else:
        with pytest.raises(LedgerMoved):
            writer.record("between")
    there = at(settings, elsewhere)
    moved = move(settings, elsewhere)
    assert (moved.epoch, moved.position) == (2, len(writer.acknowledged))
    assert contents(there) == before
    with closing(Writer(there)) as again:
        again.record("between")
        assert judge(there, writer.acknowledged | again.acknowledged) == []
        assert move(settings, elsewhere).position == len(writer.acknowledged | again.acknowledged), (
            "and again"
        )
        assert contents(there)["commands"][0] == len(writer.acknowledged | again.acknowledged)


@pytest.mark.parametrize("when", ["closed", "stored_events", "copied"])
def test_called_off_before_it_arrived_the_old_one_opens_again(
    settings: Settings, writer: Writer, elsewhere: str, when: str
) -> None:
    killed(settings, elsewhere, when)
    cancel(settings, elsewhere)
    writer.record("after-all")
    assert stands(settings).epoch == 1
    assert move(settings, elsewhere).position == 21, "and it may be moved another day"
    assert judge(at(settings, elsewhere), writer.acknowledged) == []


@pytest.mark.parametrize("when", ["opened", "retired"])
def test_what_has_arrived_is_not_called_off(
    settings: Settings, writer: Writer, elsewhere: str, when: str
) -> None:
    """Else two would live."""
    killed(settings, elsewhere, when)
    with pytest.raises(MoveRefused, match=r"it has arrived there: run the move again|the ledger is moved"):
        cancel(settings, elsewhere)
    with pytest.raises(LedgerMoved):
        writer.record("old")


# ── refused ───────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_that_differs_does_not_open_and_the_old_one_goes_on(
    settings: Settings, writer: Writer, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control of the comparison: a copy that leaves one row's state out."""
    whole = copying._copy

    def lossy(source: Any, target: Any, table: str, progress: Any) -> None:
        whole(source, target, table, progress)
        if table == "stored_events":
            target.execute("UPDATE stored_events SET state = '' WHERE notification_id = 7")

    monkeypatch.setattr(copying, "_copy", lossy)
    with pytest.raises(MoveRefused, match="stored_events is not the same in both databases"):
        move(settings, elsewhere)
    writer.record("goes-on")
    monkeypatch.undo()
    assert move(settings, elsewhere).position == 21


def test_another_ledger_of_that_name_is_not_overwritten(
    settings: Settings, writer: Writer, elsewhere: str
) -> None:
    there = at(settings, elsewhere)
    migrate(there)
    with closing(Writer(there)) as foreign:
        foreign.record("theirs")
    with pytest.raises(MoveRefused, match="with facts: it is not overwritten"):
        move(settings, elsewhere)
    writer.record("goes-on")


def test_while_it_is_on_its_way_it_goes_nowhere_else(
    settings: Settings, writer: Writer, elsewhere: str, other_cluster: Any
) -> None:
    killed(settings, elsewhere, "opened")
    with psycopg.connect(other_cluster.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE third")
    third = f"{other_cluster.dsn.rpartition('/')[0]}/third"
    for attempt in (lambda: move(settings, third), lambda: cancel(settings, third)):
        with pytest.raises(MoveRefused, match=r"on its way elsewhere|not where it moves to"):
            attempt()
    assert move(settings, elsewhere).epoch == 2


def test_to_where_it_is_already_it_does_not_move(
    settings: Settings, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.moving.standing.LOCK_S_MAX", 1)
    assert settings.postgres_dsn is not None
    with pytest.raises(MoveRefused, match="both addresses are the same database"):
        move(settings, settings.postgres_dsn)
    writer.record("goes-on")


def test_an_address_that_is_none_is_refused_by_its_option(settings: Settings) -> None:
    with pytest.raises(MoveRefused, match="--to: write it as postgresql://"):
        move(settings, "db.internal")
