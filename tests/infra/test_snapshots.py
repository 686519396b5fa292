"""Snapshots in Postgres: spoilt, cut off or locked, they cost time and nothing else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from commands.capacity import OpenPool
from commands.handling import Handler
from commands.snapshots import Form, Snapshot, form_of
from domain.capacity import Pool, SoldOut
from infra import snapshots
from infra.eventstore import PostgresLog
from infra.groupcommit import Newer
from tests.commands.test_handling import giveback, order, round_trips
from tests.infra.test_groupcommit import head_locked
from tests.infra.test_recall import form, keep, recalled, told
from tests.ledgers import InPostgres, connected, settle
from tests.spec import ANA, T0, TENANT

PLACES = 6
ALL = list(range(1, PLACES + 2))
PATIENCE_S = 20


@pytest.fixture
def log(stored: InPostgres) -> Iterator[PostgresLog]:
    """A ledger whose pool-a is sold out, by seven facts, with a snapshot of them all."""
    log = stored.open()
    mine = Handler(log, lambda: T0)
    mine.handle(OpenPool(pool="a", capacity=PLACES), by=ANA, key="open")
    for number in range(PLACES):
        mine.handle(order(number, pool="a"), by=ANA, key=f"k{number}")
    keep(log)
    assert told(log) == (7, [])
    yield log
    settle(log)


def refuses(log: PostgresLog) -> None:
    """Whoever asks for one more is told the truth."""
    with pytest.raises(SoldOut):
        Handler(log, lambda: T0).handle(order(99, pool="a"), by=ANA, key="one too many")


# ── spoilt ────────────────────────────────────────────────────────────────────────────────────────


def written(conn: psycopg.Connection[Any]) -> bytes:
    row = conn.execute("SELECT state FROM state_snapshots").fetchone()
    assert row is not None
    return bytes(row[0])


def test_a_flipped_bit_anywhere_in_the_state_is_noticed(stored: InPostgres, log: PostgresLog) -> None:
    with stored.admin() as conn:
        whole = written(conn)
        for nth in range(len(whole)):
            spoilt = bytearray(whole)
            spoilt[nth] ^= 1 << nth % 8
            conn.execute("UPDATE state_snapshots SET state = %s", (bytes(spoilt),))
            assert told(log) == (None, ALL)
        conn.execute("UPDATE state_snapshots SET state = %s", (whole,))
    assert told(log) == (7, [])


SPOILT = (
    "state = ''",
    "state = substr(state, 1, length(state) / 2)",
    "state = state || '}'",
    "state = '{}'",
    "at_us = at_us + 1",
    "at_us = 9223372036854775807",
    "digest = ''",
    "digest = sha256(state)",
    "version = 6, position = 11",
    "version = 6",
    "version = 8",
    "version = 0",
    "position = position + 1",
    "epoch = epoch + 1",
    "shape = ''",
    "name = 'capacity.tank'",
    "stream = 'acme/pool-b'",
)


@pytest.mark.parametrize("change", SPOILT)
def test_whatever_was_changed_it_is_passed_over_and_the_truth_is_told(
    stored: InPostgres, log: PostgresLog, change: str
) -> None:
    with stored.admin() as conn:
        conn.execute(f"UPDATE state_snapshots SET {change}".encode())
    assert told(log) == (None, ALL)
    refuses(log)
    assert log.recall(TENANT, {"pool-b": form()}).bases == {}


@pytest.mark.parametrize("change", SPOILT)
def test_a_spoilt_snapshot_is_replaced_by_whoever_folds_next(
    stored: InPostgres, log: PostgresLog, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("commands.snapshots.FOLD_FACTS_MIN", 5)
    with stored.admin() as conn:
        conn.execute(f"UPDATE state_snapshots SET {change}".encode())
    refuses(log)
    settle(log)
    assert told(log) == (7, [])


def assert_a_spoilt_snapshot_sells_nothing(stored: InPostgres, log: PostgresLog) -> None:
    with stored.admin() as conn:
        state = json.loads(written(conn)) | {"used": 0}
        conn.execute("UPDATE state_snapshots SET state = %s", (json.dumps(state).encode(),))
    refuses(log)


def test_a_snapshot_that_says_that_nothing_is_sold_sells_nothing(
    stored: InPostgres, log: PostgresLog
) -> None:
    assert_a_spoilt_snapshot_sells_nothing(stored, log)


def test_control_a_snapshot_believed_without_its_digest_is_caught(
    stored: InPostgres, log: PostgresLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the pool is sold twice."""
    honest = snapshots.base_of

    def gullible(tenant: str, form: Form, epoch: int, row: Newer) -> Any:
        monkeypatch.setattr(snapshots, "digest", lambda *_: row[4][: snapshots.DIGEST_BYTES])
        return honest(tenant, form, epoch, row)

    monkeypatch.setattr("infra.eventstore.base_of", gullible)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_a_spoilt_snapshot_sells_nothing(stored, log)


# ── cut off, or locked ────────────────────────────────────────────────────────────────────────────

KILL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE query LIKE '%keep_snapshot%' AND pid <> pg_backend_pid() AND datname = current_database()"
)


def another(log: PostgresLog) -> Snapshot:
    """Of the same stream and version, and so in the place of the first."""
    return recalled(log).bases["pool-a"].snapshot


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cut_off_while_it_writes_it_leaves_what_was_there_before(
    stored: InPostgres, log: PostgresLog
) -> None:
    snapshot = another(log)
    with stored.admin() as conn, stored.admin() as killer:
        with conn.transaction():
            conn.execute("LOCK TABLE state_snapshots IN EXCLUSIVE MODE")
            log.keep(TENANT, lambda: snapshot)
            until(lambda: killer.execute(KILL).fetchone() == (1,))
            settle(log)
        assert told(log) == (7, [])
        refuses(log)


def test_nobody_waits_for_a_snapshot_to_be_written(
    stored: InPostgres, log: PostgresLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody locks the table against writers: answers come as ever, from a pool that had to be folded."""
    monkeypatch.setattr("commands.snapshots.FOLD_FACTS_MIN", 5)
    with stored.admin() as conn:
        conn.execute("UPDATE state_snapshots SET digest = ''")
        with conn.transaction():
            conn.execute("LOCK TABLE state_snapshots IN EXCLUSIVE MODE")
            refuses(log)
            assert told(log) == (None, ALL)
        settle(log)
    assert told(log) == (7, [])


def test_a_snapshot_is_written_while_somebody_holds_the_head(stored: InPostgres, log: PostgresLog) -> None:
    snapshot = another(log)
    with stored.admin() as conn:
        conn.execute("DELETE FROM state_snapshots")
        with head_locked(stored):
            log.keep(TENANT, lambda: snapshot)
            settle(log)
    assert told(log) == (7, [])


def test_when_too_many_wait_the_next_is_not_taken(log: PostgresLog) -> None:
    go_on, taken = threading.Event(), []

    def take(number: int) -> None:
        assert go_on.wait(PATIENCE_S)
        taken.append(number)

    for number in range(snapshots.WAITING_MAX + 5):
        log.keep(TENANT, lambda number=number: take(number))  # type: ignore[misc]
    go_on.set()
    settle(log)
    assert taken == list(range(snapshots.WAITING_MAX))


def test_without_a_database_nothing_is_kept_and_nobody_is_told(log: PostgresLog) -> None:
    snapshot = another(log)
    log.snapshots.dsn = "postgresql://u:p@127.0.0.1:1/none"
    log.keep(TENANT, lambda: snapshot)
    settle(log)
    refuses(log)


# ── what it costs, and whose it is ────────────────────────────────────────────────────────────────


def test_snapshot_and_later_facts_come_in_one_round_trip(stored: InPostgres, log: PostgresLog) -> None:
    mine = Handler(log, lambda: T0)
    mine.handle(giveback(7, 1, pool="a"), by=ANA, key="one back")
    mine.handle(OpenPool(pool="b"), by=ANA, key="b")
    other = stored.open()
    other.group.connection = other.connection  # whose traffic is counted; it appends nothing
    wanted = {"pool-a": form(), "pool-b": form(), "pool-c": None}
    assert other.recall(TENANT, wanted).bases.keys() == {"pool-a"}
    assert round_trips(other, lambda: other.recall(TENANT, wanted)) == 1


def test_a_tenant_sees_its_own_snapshots_and_no_others(stored: InPostgres, log: PostgresLog) -> None:
    counted = "SELECT count(*) FROM state_snapshots"
    with connected(stored.settings.role_dsn("app"), stored.schema) as app:
        for tenant, rows in (("", 0), ("other", 0), ("acm", 0), (TENANT, 1)):
            app.execute("SELECT set_config('counterfoil.tenant', %s, false)", (tenant,))
            assert app.execute(counted).fetchone() == (rows,)
    with connected(stored.settings.role_dsn("worker"), stored.schema) as worker:
        assert worker.execute(counted).fetchone() == (1,)


def test_what_is_kept_can_be_read_by_whoever_has_to_mend_it(stored: InPostgres, log: PostgresLog) -> None:
    assert form_of(Pool) is form()
    with stored.admin() as conn:
        state = json.loads(written(conn))
        row = conn.execute("SELECT stream, name, epoch, version, position FROM state_snapshots").fetchone()
    assert row == ("acme/pool-a", "capacity.pool", 1, 7, 13)
    assert (state["capacity"], state["used"]) == (PLACES, PLACES)
