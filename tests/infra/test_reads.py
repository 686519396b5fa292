"""Reading together: each is given what it asked for, whoever else asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import pytest

from infra.connection import Connection, LogUnavailable
from infra.reads import Reads
from tests.infra.test_log_contract import ask, taken
from tests.infra.test_recall import form, keep
from tests.ledgers import InPostgres
from tests.spec import TENANT

T = TypeVar("T")
PATIENCE_S = 20


class Held(Connection):
    """A connection whose first call waits to be let go on."""

    def __init__(self, dsn: str, schema: str) -> None:
        super().__init__(dsn, schema)
        self.calls, self.reading, self.go_on = 0, threading.Event(), threading.Event()

    def retrying(self, call: Callable[[psycopg.Connection[Any]], T], *, once: bool = False) -> T:
        self.calls += 1
        if self.calls == 1:
            self.reading.set()
            assert self.go_on.wait(PATIENCE_S)
        return super().retrying(call, once=once)


@pytest.fixture
def held(stored: InPostgres) -> Iterator[Held]:
    log = stored.open()
    for number in range(4):
        log.append(ask(f"a{number}", {"pool-a": number, "pool-b": number}, taken("a"), taken("b")))
    log.append(ask("other", {"pool-a": 0}, taken("a", 9), tenant="other"))
    connection = Held(log.connection.dsn, log.connection.schema)
    yield connection
    connection.close()


def versions(rows: list[Any]) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in rows]


def test_who_comes_while_another_reads_shares_the_next_round_trip(held: Held) -> None:
    reads = Reads(held)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(reads.read, TENANT, {"pool-a": 3})
        assert held.reading.wait(PATIENCE_S)
        others = [threads.submit(reads.read, TENANT, {"pool-b": n, "pool-a": 2}) for n in range(4)]
        theirs = threads.submit(reads.read, "other", {"pool-a": 0})
        nothing = threads.submit(reads.read, TENANT, {"pool-none": 0})
        while len(reads.queue) < 6:
            threading.Event().wait(0.001)
        held.go_on.set()
        assert versions(first.result(PATIENCE_S)) == [("pool-a", 4)]
        for number, other in enumerate(others):
            expected = [("pool-a", 3), ("pool-a", 4), *(("pool-b", v) for v in range(number + 1, 5))]
            assert versions(other.result(PATIENCE_S)) == expected
        assert [row[1] for row in theirs.result(PATIENCE_S)] == [1]
        assert nothing.result(PATIENCE_S) == []
    assert held.calls == 3  # the first; then all of one tenant, and all of the other
    assert not reads.busy


def test_a_fault_is_told_to_all_who_shared_it_and_the_next_read_is_fine(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.connection.RECONNECT_S_MAX", 0.1)
    reads, dsn = Reads(held), held.dsn
    held.dsn = "postgresql://u:p@127.0.0.1:1/none"
    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(reads.read, TENANT, {"pool-a": 0}) for _ in range(3)]
        while len(reads.queue) < 3 - held.calls:
            threading.Event().wait(0.001)
        held.go_on.set()
        for each in reading:
            with pytest.raises(LogUnavailable):
                each.result(PATIENCE_S)
    held.dsn = dsn
    assert len(reads.read(TENANT, {"pool-a": 0})) == 4


def test_more_streams_than_fit_are_read_in_several_goes(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.reads.STREAMS_MAX", 3)
    reads = Reads(held)
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(reads.read, TENANT, {"pool-a": 0})
        assert held.reading.wait(PATIENCE_S)
        others = [threads.submit(reads.read, TENANT, {f"pool-{n}": 0, "pool-a": 3}) for n in range(5)]
        while len(reads.queue) < 5:
            threading.Event().wait(0.001)
        held.go_on.set()
        assert len(first.result(PATIENCE_S)) == 4
        assert [versions(other.result(PATIENCE_S)) for other in others] == [[("pool-a", 4)]] * 5
    assert held.calls == 6


@pytest.mark.parametrize("all_want_it", [True, False])
def test_a_snapshot_is_for_those_who_share_a_round_trip_only_if_all_of_them_want_it(
    stored: InPostgres, held: Held, all_want_it: bool
) -> None:
    keep(stored.open(), through=3)
    reads = Reads(held)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(reads.read, TENANT, {"pool-b": 3})
        assert held.reading.wait(PATIENCE_S)
        recalling = [threads.submit(reads.recall, TENANT, {"pool-a": form()}) for _ in range(2)]
        after = 3 if all_want_it else 1
        plain = threads.submit(reads.read, TENANT, {"pool-b" if all_want_it else "pool-a": after})
        while len(reads.queue) < 3:
            threading.Event().wait(0.001)
        held.go_on.set()
        assert versions(first.result(PATIENCE_S)) == [("pool-b", 4)]
        for each in recalling:
            epoch, rows = each.result(PATIENCE_S)
            assert epoch == 1
            assert [(row[1], bool(row[3])) for row in rows] == (
                [(3, False), (4, True)] if all_want_it else [(1, True), (2, True), (3, True), (4, True)]
            )
        assert [row[1] for row in plain.result(PATIENCE_S)] == list(range(after + 1, 5))
    assert held.calls == 2
