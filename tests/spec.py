"""Scenarios as sentences: given facts, when a command, then facts, a refusal, or nothing.

Everything goes through MemoryLog and Handler: given facts are stored as bytes and read back, and what
`then` compares was stored and read back too. Every scenario is a storage test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from commands.handling import Actor, Answer, Command, Handler, Moment
from commands.log import Append, Appended
from domain.catalog import Document, Line
from domain.facts import Envelope, Event, Recorded
from domain.refusals import Refusal
from domain.values import Permission, micro_of
from infra.memory import MemoryLog

TENANT = "acme"
T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANA = Actor(TENANT, "ana", frozenset(Permission))
"""May do everything; most scenarios are not about permission."""


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def envelope(key: str, by: Actor = ANA) -> Envelope:
    return Envelope(by.tenant, by.name, key)


def given_id(key: str, number: int = 0) -> UUID:
    """The id that ana's command of this key takes from its moment."""
    return Moment(T0, envelope(key).command_id).id(number)


def document(number: str = "536365", *, digest: str = "d1", currency: str = "GBP") -> Document:
    return Document(
        number=number,
        digest=digest,
        customer="17850",
        country="United Kingdom",
        currency=currency,
        placed_at=datetime(2010, 12, 1, 8, 26),  # noqa: DTZ001 - business time has no zone
    )


def line(code: str, quantity: int = 1, price: str = "1.00", *, charge: bool = False) -> Line:
    return Line(
        code=code, title=f"{code} title", quantity=quantity, unit_price_micro=micro_of(price), charge=charge
    )


@dataclass(frozen=True)
class Scenario:
    """A log with what was given; `when` may follow `then`, and goes on in the same log."""

    log: MemoryLog

    def when(self, command: Command, *, at: datetime = T0, by: Actor = ANA, key: str = "") -> Outcome:
        """A handler of its own each time: it knows nothing but the log."""
        handler = Handler(self.log, lambda: at)
        before = len(self.log.rows)
        try:
            answer = handler.handle(command, by=by, key=key or f"when-{len(self.log.keys)}")
        except Refusal as refusal:
            return Outcome(self, before, None, refusal)
        return Outcome(self, before, answer, None)

    def facts(self, tenant: str = TENANT) -> tuple[Recorded, ...]:
        return self.log.recorded(tenant, 1, len(self.log.rows))


@dataclass(frozen=True)
class Outcome:
    scenario: Scenario
    before: int
    answer: Answer | None
    refusal: Refusal | None

    def then(self, *expected: Event) -> Scenario:
        """Exactly these facts were recorded, in this order."""
        assert self.answer is not None, f"refused: {self.refusal!r}"
        assert [fact.event for fact in self.answer.facts] == list(expected)
        log = self.scenario.log
        assert log.recorded(TENANT, self.before + 1, len(log.rows) - self.before) == self.answer.facts
        return self.scenario

    def nothing(self) -> Scenario:
        """Accepted, and there was nothing to record."""
        return self.then()

    def refused(self, by: type[Refusal]) -> Scenario:
        """Refused by exactly this, and nothing was recorded."""
        assert type(self.refusal) is by, f"expected {by.__name__}, got {self.refusal or self.answer!r}"
        assert len(self.scenario.log.rows) == self.before
        return self.scenario


def given(*events: Event, at: datetime = T0, log: MemoryLog | None = None) -> Scenario:
    """These facts are in the log, each by a command of its own, in their streams' order."""
    log = MemoryLog() if log is None else log
    versions = Counter[str]()
    for number, event in enumerate(events):
        append = Append(
            envelope(f"given-{number}"),
            b"given",
            "Given",
            {event.stream: versions[event.stream]},
            [event],
            at,
        )
        assert isinstance(log.append(append), Appended)
        versions[event.stream] += 1
    return Scenario(log)
