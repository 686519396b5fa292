"""Two commands read A and B and write one of them, in every interleaving: one takes effect, and the other
decides again whenever the first wrote what it had read already."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, cast

import pytest

from commands.capacity import OpenPool
from commands.handling import Answer, Ask, Handler, Moment
from commands.log import Append, Pending, Settled
from commands.memory import Memory
from commands.snapshots import Form, Recalled
from domain.capacity import Pool, SoldOut, pool_stream
from domain.facts import Event
from domain.values import Code
from infra.eventstore import LogTicket, PostgresLog
from tests.commands.test_handling import ExpireBoth, ForgetsWhatWasOnlyRead, TakeIfBothAreEmpty
from tests.infra.test_groupcommit import head_locked
from tests.infra.test_log_contract import ask
from tests.ledgers import CLAIM_KEY, Around, InPostgres, Log
from tests.spec import ANA, T0, TENANT

PATIENCE_S = 20
COLD = ("read mine", "read other", "decide", "append")
"""Of a handler that remembers nothing: a boundary read in two steps."""
WARM = ("decide", "append")
"""Of one that remembers both pools."""

Step = tuple[int, str]
"""Which of the two, and what it does."""


def interleavings(steps: Sequence[str]) -> Iterator[tuple[Step, ...]]:
    """Every way to merge the two's steps: 70 of four each."""
    for mine in combinations(range(2 * len(steps)), len(steps)):
        left = iter(steps), iter(steps)
        yield tuple((who := int(place not in mine), next(left[who])) for place in range(2 * len(steps)))


def decides_again(order: tuple[Step, ...], *, same: bool) -> bool:
    """Whether whoever appends last had read what the first one wrote before it was written."""
    first = next(who for who, step in order if step == "append")
    read = (1 - first, "read mine" if same else "read other")
    return read not in order or order.index(read) < order.index((first, "append"))


class InOrder:
    """Lets steps be taken in one order; those that are not in it come after it."""

    def __init__(self, order: Sequence[Step]) -> None:
        self.order, self.moved = deque(order), threading.Condition()

    @contextmanager
    def at(self, step: Step) -> Iterator[None]:
        with self.moved:
            assert self.moved.wait_for(lambda: not self.order or self.order[0] == step, PATIENCE_S), step
        try:
            yield
        finally:
            with self.moved:
                if self.order:
                    self.order.popleft()
                self.moved.notify_all()


class Stepping(Around):
    """One of the two's log: reads and appends when it is their turn."""

    def __init__(self, log: Log, who: int, order: InOrder, *, together: bool) -> None:
        super().__init__(log)
        self.who, self.order, self.together, self.reads = who, order, together, 0

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        self.reads += 1
        with self.order.at((self.who, COLD[self.reads - 1])):
            return super().recall(tenant, wanted)

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> Any:
        with self.order.at((self.who, "append")):
            pending = self.log.submit(append, follows)
            return pending if self.together else Settled(pending.result())


class Take(TakeIfBothAreEmpty, permission=TakeIfBothAreEmpty.permission):
    """The same, when it is its turn to decide."""

    who: int
    order: ClassVar[InOrder]
    decisions: ClassVar[list[int]]

    def decide(self, at: Moment, *, mine: Pool, other: Pool) -> Sequence[Event]:
        with self.order.at((self.who, "decide")):
            self.decisions.append(self.who)
            return super().decide(at, mine=mine, other=other)


class Pair:
    """Two handlers, on two connections or in one queue, and pools of their own for each interleaving."""

    def __init__(self, stored: InPostgres, logs: Sequence[Log], *, together: bool = False) -> None:
        self.stored, self.logs, self.together = stored, logs, together
        self.reader, self.played = stored.open(), 0

    def play(self, order: tuple[Step, ...], *, same: bool) -> tuple[int, int]:
        """How many took effect, and how often it was decided."""
        self.played += 1
        pools = f"a{self.played}", f"b{self.played}"
        for pool in pools:
            Handler(self.reader, lambda: T0).handle(OpenPool(pool=pool), by=ANA, key=pool)
        Take.order, Take.decisions = InOrder(order), []
        handlers = [self._handler(who, pools, warm=len(order) < 2 * len(COLD)) for who in range(2)]

        def take(who: int) -> bool:
            mine, other = pools if same or not who else pools[::-1]
            command = Take(mine=mine, other=other, who=who)
            try:
                handlers[who].handle(command, by=ANA, key=f"{who}-{self.played}")
            except SoldOut:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            with self._in_one_batch() if self.together else nullcontext():
                taking = [threads.submit(take, who) for who in range(2)]
                with Take.order.moved:
                    assert Take.order.moved.wait_for(lambda: not Take.order.order, PATIENCE_S)
            effects = sum(each.result(PATIENCE_S) for each in taking)
        facts = self.reader.read(TENANT, {f"pool-{pool}": 1 for pool in pools})
        assert len(facts) == effects, "somebody was told what is not so"
        return effects, len(Take.decisions)

    def _handler(self, who: int, pools: tuple[Code, Code], *, warm: bool) -> Handler:
        memory = Memory()
        if warm:
            before = Handler(self.reader, lambda: T0, memory)
            before.handle(ExpireBoth(pools=pools), by=ANA, key=f"warm-{who}-{self.played}")
            self.logs[who].recall(TENANT, {pool_stream(pools[0]): None})  # so it knows in which epoch it is
        log = Stepping(self.logs[who], who, Take.order, together=self.together)
        return Handler(log, lambda: T0, memory)

    @contextmanager
    def _in_one_batch(self) -> Iterator[None]:
        """Whoever submits meanwhile waits in one queue."""
        queue = self.logs[0]
        with head_locked(self.stored):
            before = queue.submit(ask(f"before-{self.played}", {f"before-{self.played}": 0}))
            while cast(PostgresLog, queue).group.queue:
                time.sleep(0.001)
            yield
        before.result()


def assert_one_takes_effect(pair: Pair, steps: Sequence[str], *, same: bool) -> None:
    """In every interleaving; and the other decides a second time in just those where it has to."""
    for order in interleavings(steps):
        effects, decisions = pair.play(order, same=same)
        assert effects == 1, "write skew"
        assert decisions == 2 + decides_again(order, same=same)


def skewed(pair: Pair, steps: Sequence[str]) -> list[tuple[Step, ...]]:
    return [order for order in interleavings(steps) if pair.play(order, same=False)[0] == 2]


def skewable(steps: Sequence[str]) -> list[tuple[Step, ...]]:
    return [order for order in interleavings(steps) if decides_again(order, same=False)]


@pytest.mark.parametrize("same", [False, True], ids=["each its own", "both the same"])
@pytest.mark.parametrize("steps", [COLD, WARM], ids=["cold", "warm"])
def test_in_every_interleaving_on_two_connections_one_takes_effect_and_the_other_decides_again(
    stored: InPostgres, steps: Sequence[str], same: bool
) -> None:
    assert_one_takes_effect(Pair(stored, [stored.open(), stored.open()]), steps, same=same)


@pytest.mark.parametrize("same", [False, True], ids=["each its own", "both the same"])
def test_in_every_interleaving_in_one_queue_too(stored: InPostgres, same: bool) -> None:
    """Both want to be in the same batch."""
    log = stored.open()
    assert_one_takes_effect(Pair(stored, [log, log], together=True), WARM, same=same)


def test_asked_together_of_one_handler_the_second_decides_on_what_the_first_will_have_made_true(
    stored: InPostgres,
) -> None:
    mine = Handler(stored.open(), lambda: T0)
    for pool in "ab":
        mine.handle(OpenPool(pool=pool), by=ANA, key=pool)
    asks = [Ask(TakeIfBothAreEmpty(mine=m, other=o), ANA, m + o) for m, o in ("ab", "ba")]
    assert [type(answer) for answer in mine.handle_all(asks)] == [Answer, SoldOut]


# ── a log that forgets what was only read ─────────────────────────────────────────────────────────


def test_control_on_two_connections_it_skews_in_just_those_interleavings(stored: InPostgres) -> None:
    """Negative control: in 60 of 70, wherever one has read what the other writes later."""
    forgetful = Pair(stored, [ForgetsWhatWasOnlyRead(stored.open()) for _ in range(2)])
    found = skewed(forgetful, COLD)
    assert found == skewable(COLD)
    assert len(found) == 60


class ForgetsInTheQueue(PostgresLog):
    """The same fault, in one process."""

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        written = {fact.stream for fact in append.facts}
        pinned = {stream: version for stream, version in append.versions.items() if stream in written}
        return super().submit(replace(append, versions=pinned), follows)


def test_control_in_one_queue_it_skews_in_every_interleaving(stored: InPostgres) -> None:
    """Negative control: all decide on what they remember, and nobody is told that it has moved on."""
    log = ForgetsInTheQueue(stored.settings.role_dsn("app"), stored.schema, CLAIM_KEY)
    assert skewed(Pair(stored, [log, log], together=True), WARM) == list(interleavings(WARM))
    log.close()
