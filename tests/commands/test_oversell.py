"""No interleaving of anything sells a place twice: a pool beside a model of it that cannot be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from commands.capacity import ConfirmHold, ExpireHold, HoldPlaces, OpenPool, ReleaseHold
from commands.handling import Answer, Command, Handler
from commands.ordering import PlaceOrder, ReturnGoods
from domain.capacity import HoldAlive, HoldUnknown, Pool, SoldOut
from domain.refusals import Refusal
from domain.values import Code, HoldId, OrderId, ReturnId
from infra.memory import MemoryLog
from tests.spec import ANA, T0, document, given_id, line

QUANTITIES = st.integers(1, 7)


@dataclass
class Held:
    """The model's hold: it knows when it ends and whether it has."""

    quantity: int
    expires_at: datetime
    over: bool = False

    def live(self, now: datetime) -> bool:
        return not self.over and now < self.expires_at


class Selling(RuleBasedStateMachine):
    """Two handlers on one log, each with its own memory, and a clock that only goes forward."""

    holds = Bundle("holds")

    @initialize(capacity=st.integers(0, 20))
    def open(self, capacity: int) -> None:
        self.now, self.sold, self.capacity, self.sent = T0, 0, capacity, 0
        self.held: dict[HoldId, Held] = {}
        log = MemoryLog()
        self.handlers = [Handler(log, lambda: self.now) for _ in range(2)]
        self.ask(OpenPool(pool="p", capacity=capacity), 0)

    def ask(self, command: Command, seller: int) -> Answer | type[Refusal]:
        self.sent += 1
        try:
            return self.handlers[seller].handle(command, by=ANA, key=f"k{self.sent}")
        except Refusal as refusal:
            return type(refusal)

    def free(self) -> int:
        return self.capacity - self.sold - sum(h.quantity for h in self.held.values() if h.live(self.now))

    def expect(
        self, command: Command, seller: int, refusal: type[Refusal] | None, effect: Callable[[], None]
    ) -> None:
        """The pool answers what the model says; only then does the model move."""
        answer = self.ask(command, seller)
        if refusal is not None:
            assert answer is refusal
            return
        assert isinstance(answer, Answer), answer
        effect()

    @rule(seconds=st.sampled_from([0.000001, 1, 10, 59, 60]))
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(hold_id=holds)
    def wait_for_the_deadline(self, hold_id: HoldId) -> None:
        """To the very instant: where off-by-one lives."""
        self.now = max(self.now, self.held[hold_id].expires_at)

    @rule(target=holds, quantity=QUANTITIES, ttl_s=st.sampled_from([1, 10, 60]), seller=st.integers(0, 1))
    def hold(self, quantity: int, ttl_s: int, seller: int) -> object:
        refusal = SoldOut if quantity > self.free() else None
        hold_id = HoldId(given_id(f"k{self.sent + 1}"))
        held = Held(quantity, self.now + timedelta(seconds=ttl_s))
        command = HoldPlaces(pool="p", quantity=quantity, ttl_s=ttl_s)
        self.expect(command, seller, refusal, lambda: self.held.update({hold_id: held}))
        return multiple() if refusal else hold_id

    @rule(quantity=QUANTITIES, seller=st.integers(0, 1))
    def take(self, quantity: int, seller: int) -> None:
        def effect() -> None:
            self.sold += quantity

        order = PlaceOrder(
            order_id=OrderId(UUID(int=self.sent)),
            document=document(),
            lines=(line("p", quantity),),
            settled=True,
        )
        self.expect(order, seller, SoldOut if quantity > self.free() else None, effect)

    @rule(quantity=QUANTITIES, seller=st.integers(0, 1))
    def bring_back(self, quantity: int, seller: int) -> None:
        def effect() -> None:
            self.sold -= quantity

        lines = (line("p", -quantity),)
        giveback = ReturnGoods(return_id=ReturnId(UUID(int=self.sent)), document=document(), lines=lines)
        self.expect(giveback, seller, None, effect)

    @rule(hold_id=holds, seller=st.integers(0, 1))
    def confirm(self, hold_id: HoldId, seller: int) -> None:
        held = self.held[hold_id]

        def effect() -> None:
            held.over, self.sold = True, self.sold + held.quantity

        refusal = None if held.live(self.now) else HoldUnknown
        self.expect(ConfirmHold(pool="p", hold_id=hold_id), seller, refusal, effect)

    @rule(hold_id=holds, seller=st.integers(0, 1))
    def release(self, hold_id: HoldId, seller: int) -> None:
        held = self.held[hold_id]

        def effect() -> None:
            held.over = True

        refusal = None if held.live(self.now) else HoldUnknown
        self.expect(ReleaseHold(pool="p", hold_id=hold_id), seller, refusal, effect)

    @rule(hold_id=holds, seller=st.integers(0, 1))
    def expire(self, hold_id: HoldId, seller: int) -> None:
        held = self.held[hold_id]
        refusal = HoldAlive if held.live(self.now) else None
        self.expect(ExpireHold(pool="p", hold_id=hold_id), seller, refusal, lambda: None)

    @invariant()
    def never_over_capacity(self) -> None:
        assert self.free() >= 0


PROOF = settings(max_examples=60, stateful_step_count=30, deadline=None)
CONTROL = settings(PROOF, max_examples=1_000, phases=[Phase.generate], database=None, derandomize=True)
"""A control only has to fail, at the first example that does and not by luck."""


def test_a_capped_pool_never_goes_over_its_capacity_and_agrees_with_its_model() -> None:
    run_state_machine_as_test(Selling, settings=PROOF)


def test_the_model_notices_a_pool_that_forgets_its_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""

    def forgetful(self: Pool, pool: Code, quantity: int, now: datetime) -> None:
        if self.capacity is not None and quantity > self.capacity - self.used:
            raise SoldOut

    monkeypatch.setattr(Pool, "require_places", forgetful)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Selling, settings=CONTROL)


def test_the_model_notices_a_hold_that_outlives_its_deadline_by_an_instant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control."""
    honest = Pool.require_live
    monkeypatch.setattr(
        Pool,
        "require_live",
        lambda self, hold_id, now: honest(self, hold_id, now - timedelta(microseconds=1)),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Selling, settings=CONTROL)
