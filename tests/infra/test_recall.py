"""What both logs promise of snapshots: a stream is recalled from one to believe, or from its beginning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from commands.log import Appended
from commands.snapshots import Form, Recalled, Snapshot, State, form_of, taken
from domain.capacity import Pool
from domain.facts import Event
from tests.infra.test_log_contract import ask
from tests.infra.test_log_contract import taken as places_taken
from tests.ledgers import Ledger, Log, settle
from tests.spec import TENANT


def form(state: type[State] = Pool) -> Form:
    found = form_of(state)
    assert found is not None
    return found


@dataclass(slots=True)
class PoolOfTomorrow(Pool):
    """The same fields, and another meaning."""

    snapshot_version: ClassVar[int] = Pool.snapshot_version + 1


@dataclass(slots=True)
class PoolWithMore(Pool):
    """Another field, and a developer who forgot to say so."""

    more: int = 0


def fill(log: Log, first: int, last: int, *, stream: str = "pool-a", tenant: str = TENANT) -> None:
    for version in range(first, last + 1):
        append = ask(f"{stream}-{version}", {stream: version - 1}, places_taken(stream[5:]), tenant=tenant)
        assert isinstance(log.append(append), Appended)


def keep(log: Log, *, through: int | None = None, state: type[Pool] = Pool) -> Snapshot:
    """A snapshot of pool-a as it is, or as it was at a version."""
    recalled = log.recall(TENANT, {"pool-a": None})
    facts = [fact for fact in recalled.facts if through is None or fact.version <= through]
    snapshot = taken("pool-a", state, form(state), None, facts, recalled.epoch)
    assert snapshot is not None
    log.keep(TENANT, lambda: snapshot)
    settle(log)
    return snapshot


def recalled(log: Log, state: type[Pool] = Pool, tenant: str = TENANT) -> Recalled:
    return log.recall(tenant, {"pool-a": form(state)})


def told(log: Log, state: type[Pool] = Pool, tenant: str = TENANT) -> tuple[int | None, list[int]]:
    """The version it is recalled from, and those of the facts that are left to fold."""
    found = recalled(log, state, tenant)
    base = found.bases.get("pool-a")
    return None if base is None else base.snapshot.version, [fact.version for fact in found.facts]


@pytest.fixture
def log(ledger: Ledger) -> Log:
    """A ledger with six facts in pool-a, the fourth of which is the fifth of the ledger."""
    log = ledger.open()
    fill(log, 1, 3)
    fill(log, 1, 1, stream="pool-b")
    fill(log, 4, 6)
    return log


def test_without_a_snapshot_a_stream_is_recalled_whole(log: Log) -> None:
    assert told(log) == (None, [1, 2, 3, 4, 5, 6])
    assert recalled(log).epoch == 1


def test_from_a_snapshot_on_only_what_came_later_is_left_to_fold(ledger: Ledger, log: Log) -> None:
    kept = keep(log, through=4)
    assert (kept.version, kept.position) == (4, 5)
    found = recalled(ledger.open())
    base = found.bases["pool-a"]
    assert (base.snapshot, base.state) == (kept, Pool(used=4))
    assert [fact.version for fact in found.facts] == [5, 6]


def test_a_snapshot_of_all_there_is_leaves_nothing_to_fold(log: Log) -> None:
    keep(log)
    assert told(log) == (6, [])


def test_several_streams_are_recalled_each_in_its_way(log: Log) -> None:
    keep(log, through=4)
    found = log.recall(TENANT, {"pool-b": form(), "pool-a": form(), "pool-none": form()})
    assert list(found.bases) == ["pool-a"]
    assert [(fact.stream, fact.version) for fact in found.facts] == [
        ("pool-a", 5),
        ("pool-a", 6),
        ("pool-b", 1),
    ]


def test_whoever_wants_no_form_gets_every_fact(log: Log) -> None:
    keep(log)
    assert [fact.version for fact in log.recall(TENANT, {"pool-a": None}).facts] == [1, 2, 3, 4, 5, 6]
    assert len(log.read(TENANT, {"pool-a": 0})) == 6


def test_what_was_recalled_is_ones_own(log: Log) -> None:
    keep(log)
    mine, other = (recalled(log).bases["pool-a"].state for _ in range(2))
    assert mine == other
    assert mine is not other


@pytest.mark.parametrize("state", [PoolOfTomorrow, PoolWithMore])
def test_a_snapshot_in_another_form_is_passed_over_and_replaced(log: Log, state: type[Pool]) -> None:
    assert form(state).name == form(Pool).name
    keep(log)
    assert told(log, state) == (None, [1, 2, 3, 4, 5, 6])
    keep(log, through=2, state=state)
    assert told(log, state) == (2, [3, 4, 5, 6])
    assert told(log) == (None, [1, 2, 3, 4, 5, 6])


def test_a_snapshot_of_another_epoch_is_passed_over_and_none_is_kept_for_it(ledger: Ledger, log: Log) -> None:
    before = keep(log)
    ledger.raise_epoch()
    assert told(log) == (None, [1, 2, 3, 4, 5, 6])
    keep(log, through=4)
    log.keep(TENANT, lambda: before)  # of somebody who has not heard of it yet
    settle(log)
    assert told(log) == (4, [5, 6])


def test_a_snapshot_ahead_of_the_log_is_passed_over(ledger: Ledger, log: Log) -> None:
    keep(log)
    ledger.cut(6)
    assert told(log) == (None, [1, 2, 3, 4, 5])
    keep(log)
    assert told(log) == (5, [])


def test_a_snapshot_of_a_fact_that_is_elsewhere_is_passed_over(ledger: Ledger, log: Log) -> None:
    """The version is there again, with another fact in it."""
    keep(log)
    ledger.cut(6)
    fill(log, 2, 2, stream="pool-b")
    fill(log, 6, 6)
    assert told(log) == (None, [1, 2, 3, 4, 5, 6])


def test_another_tenants_snapshot_is_nobody_elses(log: Log) -> None:
    fill(log, 1, 6, tenant="other")
    keep(log)
    assert told(log, tenant="other") == (None, [1, 2, 3, 4, 5, 6])


def test_a_later_snapshot_takes_the_place_of_an_earlier_one_and_not_the_other_way(log: Log) -> None:
    for through, kept in ((3, 3), (5, 5), (4, 5), (6, 6)):
        keep(log, through=through)
        assert told(log)[0] == kept


def test_a_snapshot_that_is_no_such_state_is_passed_over(log: Log) -> None:
    kept = keep(log, through=2)
    log.keep(TENANT, lambda: replace(kept, version=6, position=7, written=b'{"used":"many"}'))
    settle(log)
    assert told(log) == (None, [1, 2, 3, 4, 5, 6])


def test_a_state_that_got_too_large_is_not_kept(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.snapshots.STATE_BYTES_MAX", 10)
    facts = log.recall(TENANT, {"pool-a": None}).facts
    assert taken("pool-a", Pool, form(), None, facts, 1) is None
    log.keep(TENANT, lambda: None)
    settle(log)
    assert told(log)[0] is None


def test_most_states_are_not_kept_at_all() -> None:
    class Tally:
        def apply(self, event: Event) -> None: ...

    assert form_of(Tally) is None
