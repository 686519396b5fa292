"""Decisions from snapshots are those from the beginning, whatever was restored or changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from commands.capacity import OpenPool
from commands.handling import Answer, Ask, Handler
from commands.log import Appended
from commands.memory import Memory
from commands.snapshots import Form, Recalled, Snapshot, State, form_of
from domain.capacity import (
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    Pool,
    PoolOpened,
    SoldOut,
    StockAdjusted,
)
from domain.facts import Event
from domain.values import AdjustmentId, HoldId, OrderId, ReturnId
from infra.memory import MemoryLog
from tests.commands.test_handling import giveback, hold, order
from tests.commands.test_oversell import CONTROL, PROOF, Selling
from tests.infra.test_log_contract import ask
from tests.ledgers import Around, InMemory, Ledger, Log, settle
from tests.spec import ANA, T0, after

FOLD_FACTS_MIN = 5


@pytest.fixture(autouse=True)
def _short_streams_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.snapshots.FOLD_FACTS_MIN", FOLD_FACTS_MIN)


class Counted(Around):
    """Counts the facts that had to be folded, and the snapshots that were kept."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.folded: list[int] = []
        self.kept = 0

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        recalled = super().recall(tenant, wanted)
        self.folded.append(sum(fact.stream == "pool-p" for fact in recalled.facts))
        return recalled

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        self.kept += 1
        super().keep(tenant, take)


def handler(log: Log) -> Handler:
    """Of a process that has just begun."""
    return Handler(log, lambda: T0)


def sold(log: Log, quantities: Iterable[int], *, first: int = 1) -> None:
    """One after another, by one process that remembers; below zero they are brought back."""
    mine = handler(log)
    for number, quantity in enumerate(quantities, first):
        command = order(number, quantity) if quantity > 0 else giveback(number, -quantity)
        mine.handle(command, by=ANA, key=f"k{number}")


@pytest.fixture
def log(ledger: Ledger) -> Iterator[Counted]:
    """A ledger with one pool `p` of ten places."""
    log = ledger.open()
    handler(log).handle(OpenPool(pool="p", capacity=10), by=ANA, key="open")
    yield Counted(log)
    settle(log)


def test_whoever_folded_a_long_stream_keeps_what_came_of_it_and_the_next_folds_only_the_rest(
    log: Counted,
) -> None:
    sold(log.log, [1] * 6)
    for number, (folded, kept) in enumerate([(7, 1), (1, 1), (2, 1)], 11):
        handler(log).handle(hold(), by=ANA, key=f"cold-{number}")
        settle(log.log)
        assert (log.folded[-1], log.kept) == (folded, kept)


def test_a_short_stream_is_folded_each_time(log: Counted) -> None:
    sold(log.log, [1] * (FOLD_FACTS_MIN - 2))
    for key in ("one", "other"):
        handler(log).handle(OpenPool(pool=key), by=ANA, key=key)
        handler(log).handle(hold(), by=ANA, key=f"hold-{key}")
    assert log.kept == 1, "the fifth fact is the first hold"


def test_a_decision_from_a_snapshot_is_that_from_the_beginning(log: Counted) -> None:
    sold(log.log, [1] * 9)
    handler(log).handle(order(20), by=ANA, key="the last one")
    settle(log.log)
    with pytest.raises(SoldOut):
        handler(log).handle(order(21), by=ANA, key="one too many")
    assert log.folded == [10, 1]
    handler(log).handle(giveback(22, 2), by=ANA, key="two back")
    assert handler(log).handle(order(23, 2), by=ANA, key="and sold").facts


def test_many_asked_at_once_are_recalled_from_snapshots_too(log: Counted) -> None:
    sold(log.log, [1] * 6)
    handler(log).handle(hold(), by=ANA, key="cold")
    settle(log.log)
    answers = handler(log).handle_all([Ask(hold(), ANA, f"many-{n}") for n in range(4)])
    assert [type(answer) for answer in answers] == [Answer] * 3 + [SoldOut]
    assert log.folded == [7, 1]


# ── any history, any point ────────────────────────────────────────────────────────────────────────

SECONDS = st.integers(0, 30).map(after)
HOLDS = st.integers(1, 6).map(lambda n: HoldId(UUID(int=n)))
QUANTITIES = st.integers(1, 5)
FACTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(PoolOpened, pool=st.just("p"), capacity=st.none() | st.integers(0, 20)),
    st.builds(PlacesTaken, pool=st.just("p"), quantity=QUANTITIES, order_id=st.just(OrderId(UUID(int=1)))),
    st.builds(
        PlacesReturned, pool=st.just("p"), quantity=QUANTITIES, return_id=st.just(ReturnId(UUID(int=1)))
    ),
    st.builds(
        StockAdjusted,
        pool=st.just("p"),
        quantity=st.integers(-5, 5),
        reason=st.just("found"),
        adjustment_id=st.just(AdjustmentId(UUID(int=1))),
    ),
    st.builds(
        PlacesHeld,
        pool=st.just("p"),
        hold_id=HOLDS,
        quantity=QUANTITIES,
        at=SECONDS,
        expires_at=SECONDS.map(lambda at: at + timedelta(microseconds=1)),
    ),
    st.builds(HoldConfirmed, pool=st.just("p"), hold_id=HOLDS, quantity=QUANTITIES, at=SECONDS),
    st.builds(HoldReleased, pool=st.just("p"), hold_id=HOLDS, at=SECONDS),
    st.builds(HoldExpired, pool=st.just("p"), hold_id=HOLDS, at=SECONDS),
)
"""Anything at all, in any order: history cannot be refused."""


def folded(state: Pool, facts: Iterable[Event]) -> Pool:
    for fact in facts:
        state.apply(fact)
    return state


@given(st.lists(FACTS, max_size=30), st.integers(0, 30))
def test_from_a_snapshot_at_any_point_of_any_history_the_rest_folds_to_the_same(
    facts: list[Event], at: int
) -> None:
    form = form_of(Pool)
    assert form is not None
    kept = form.written(folded(Pool(), facts[:at]))
    state = form.read(kept)
    assert isinstance(state, Pool)
    assert folded(state, facts[at:]) == folded(Pool(), facts)
    assert form.written(state) == form.written(folded(Pool(), facts))


class SellingFromSnapshots(Selling):
    """Every decision is of a process that has just begun, on a snapshot after each fact."""

    @initialize(capacity=st.integers(0, 20))
    def open(self, capacity: int) -> None:
        super().open(capacity=capacity)
        for each in self.handlers:
            each.memory = Memory(size_max=0)


def test_a_pool_sold_from_snapshots_alone_agrees_with_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.snapshots.FOLD_FACTS_MIN", 1)
    run_state_machine_as_test(SellingFromSnapshots, settings=PROOF)


def test_control_a_snapshot_that_lost_its_holds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the model notices, so what it looked at came from snapshots."""
    honest = Form.read

    def forgetful(self: Form, written: bytes) -> State | None:
        state = honest(self, written)
        assert isinstance(state, Pool)
        state.deadlines, state.held = [], 0
        return state

    monkeypatch.setattr("commands.snapshots.FOLD_FACTS_MIN", 1)
    monkeypatch.setattr(Form, "read", forgetful)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(SellingFromSnapshots, settings=CONTROL)


# ── a snapshot that is believed in spite of everything ────────────────────────────────────────────


class Gullible(MemoryLog):
    """A deliberately broken log: whatever was kept is as good as the facts."""

    def believes(self, tenant: str, kept: Snapshot, form: Form) -> bool:
        return True


def assert_a_restore_sells_nothing_twice(ledger: Ledger) -> None:
    """Of ten places all are free again when a snapshot is taken. Then the ledger is restored to its opening,
    and this time they stay sold, by as many facts."""
    log = ledger.open()
    handler(log).handle(OpenPool(pool="p", capacity=10), by=ANA, key="open")
    sold(log, [2, 2, 2, -2, -2, -2])
    cold(log)
    ledger.cut(1)
    ledger.raise_epoch()
    log = ledger.open()
    for version, quantity in enumerate([2, 2, 2, 2, 1, 1], 1):
        taking = PlacesTaken(pool="p", quantity=quantity, order_id=OrderId(UUID(int=version)))
        assert isinstance(log.append(ask(f"again-{version}", {"pool-p": version}, taking)), Appended)
    with pytest.raises(SoldOut):
        handler(log).handle(order(20), by=ANA, key="one too many")


def cold(log: Log) -> None:
    """Somebody has to fold the pool, and refuses."""
    with pytest.raises(SoldOut):
        handler(log).handle(order(30, 11), by=ANA, key="cold")
    settle(log)


def test_a_snapshot_from_before_a_restore_sells_nothing_twice(ledger: Ledger) -> None:
    assert_a_restore_sells_nothing_twice(ledger)


def test_control_a_snapshot_believed_in_another_epoch_is_caught() -> None:
    """Negative control: it sells an eleventh place."""
    ledger = InMemory()
    ledger.log = Gullible()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_a_restore_sells_nothing_twice(ledger)


@dataclass(slots=True)
class Yesterday(Pool):
    """The pool of a program that forgot half of what was taken: a mistake, and mended by another version."""

    snapshot_version: ClassVar[int] = 0

    def apply(self, event: Event) -> None:
        Pool.apply(self, event)
        if isinstance(event, PlacesTaken):
            self.used -= event.quantity - event.quantity // 2


def assert_yesterdays_mistake_sells_nothing_today(log: MemoryLog) -> None:
    handler(log).handle(OpenPool(pool="p", capacity=10), by=ANA, key="open")
    sold(log, [2] * 5)
    form = form_of(Yesterday)
    assert form is not None
    facts = log.read(ANA.tenant, {"pool-p": 0})
    state = Yesterday()
    for fact in facts:
        state.apply(fact.event)
    last = facts[-1]
    written = Snapshot("pool-p", form, 1, last.version, last.position, last.at, form.written(state))
    log.keep(ANA.tenant, lambda: written)
    with pytest.raises(SoldOut):
        handler(log).handle(order(20), by=ANA, key="one too many")


def test_what_was_kept_by_a_program_that_folded_otherwise_decides_nothing() -> None:
    assert_yesterdays_mistake_sells_nothing_today(MemoryLog())


def test_control_a_snapshot_believed_in_another_form_is_caught() -> None:
    """Negative control."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_yesterdays_mistake_sells_nothing_today(Gullible())
