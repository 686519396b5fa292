"""What is going to happen: requests and mishaps at their instants, all of it from the seed, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from uuid import NAMESPACE_URL, UUID, uuid5

from commands.capacity import AdjustStock, ConfirmHold, ExpireHold, HoldPlaces, OpenPool, ReleaseHold
from commands.catalog import ListOffer
from commands.handling import Command, Moment
from commands.ordering import PlaceOrder, ReturnGoods
from commands.payments import AdjustBadDebt, RecordPayment
from domain.catalog import Document, Line
from domain.facts import Envelope
from domain.values import AdjustmentId, HoldId, OrderId, PaymentId, ReturnId
from tests.simulation.database import EPOCH_BEGINS
from tests.simulation.faults import Weather, weather_of
from tests.simulation.skew import PAIR, GiveToPair, TakeOfPair

TENANTS = ("acme", "zeta")
ACTORS = ("ana", "ben")
CODES = ("mug", "pen", "hat", "tea", "jam")
CURRENCIES = ("GBP", "EUR", "JPY")
REQUESTS_A_SECOND = 25
ACTIVE_RELAY = "the active relay"
ROLES = ("api-1", "api-2", "relay-1", "relay-2", "worker-1", "worker-2", "deadlines")


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks, as often as it takes; `twins` at once, under one key."""

    at_s: float
    tenant: str
    actor: str
    key: str
    command: Command
    twins: int = 1

    def __str__(self) -> str:
        body = self.command.model_dump_json(exclude_none=True)
        times = "" if self.twins == 1 else f", {self.twins} at once"
        who = f"{self.tenant}/{self.actor}/{self.key}{times}"
        return f"{self.at_s:8.3f} s  {who}: {type(self.command).__name__} {body}"


@dataclass(frozen=True, slots=True)
class Mishap:
    """`kind` happens to `what`, in time undone after `for_s`."""

    at_s: float
    kind: str
    what: str = ""
    number: int = 0
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.2f} s" if self.for_s else ""
        number = f" {self.number}" if self.number else ""
        return f"{self.at_s:8.3f} s  {self.kind} {self.what}{number}{lasting}"


Step = Request | Mishap


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    weather: Weather
    skews_s: dict[str, float]
    """How wrong the clock of each role is."""
    steps: tuple[Step, ...]


def plan_of(seed: int, requests: int) -> Plan:
    random = Random(f"plan {seed}")
    weather = weather_of(random)
    skews_s = {role: random.choice((0.0, 0.0, random.uniform(-2, 2))) for role in ROLES}
    skews_s["deadlines"] = abs(skews_s["deadlines"])
    asking = Asking(random)
    steps: list[Step] = [*asking.opening()]
    while len(steps) < requests:
        steps += asking.burst()
    until_s = asking.now_s
    orders = tuple(
        f"{asked.tenant}/order-{asked.command.order_id}"
        for asked in asking.asked
        if isinstance(asked.command, PlaceOrder)
    )
    steps += mishaps(random, until_s, asking.codes, orders)
    return Plan(seed, weather, skews_s, tuple(sorted(steps, key=lambda step: step.at_s)))


class Asking:
    """Invents requests, now and then one that was asked before."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.codes = (*CODES, *[random.choice(CODES)] * random.choice((0, 5)))
        """As often as they are asked for: some days everybody wants the same."""
        self.now_s = 0.0
        self.number = 0
        self.papers = 0
        self.asked: list[Request] = []
        self.held: list[tuple[str, str, HoldId]] = []
        """Tenant, pool, hold."""

    def opening(self) -> list[Request]:
        """Every shop has pools, some of them small."""
        return [
            self._ask(tenant, OpenPool(pool=code, capacity=self.random.choice((None, 4, 12, 60))))
            for tenant in TENANTS
            for code in CODES
        ] + [self._ask(tenant, OpenPool(pool=code)) for tenant in TENANTS for code in PAIR]

    def burst(self) -> list[Request]:
        random = self.random
        count = random.choice((1, 1, 1, 2, 6, 10))
        self.now_s += random.expovariate(REQUESTS_A_SECOND / 3.5)
        return [self._next() for _ in range(count)]

    def _next(self) -> Request:
        random = self.random
        what = random.random()
        if what < 0.08 and self.asked:
            before = random.choice(self.asked)
            return Request(self.now_s, before.tenant, before.actor, before.key, before.command)
        if what < 0.11 and self.asked:
            before = random.choice(self.asked)
            return Request(self.now_s, before.tenant, before.actor, before.key, self._command(before.tenant))
        if what < 0.14 and self.asked:
            before = random.choice(self.asked)
            other = TENANTS[before.tenant == TENANTS[0]]
            return Request(self.now_s, other, before.actor, before.key, before.command)
        tenant = random.choice(TENANTS)
        twins = random.choice((2, 3)) if random.random() < 0.06 else 1
        return self._ask(tenant, self._command(tenant), twins)

    def _ask(self, tenant: str, command: Command, twins: int = 1) -> Request:
        self.number += 1
        actor, key = self.random.choice(ACTORS), f"k{self.number}"
        request = Request(self.now_s, tenant, actor, key, command, twins)
        self.asked.append(request)
        if isinstance(command, HoldPlaces):
            moment = Moment(EPOCH_BEGINS, Envelope(tenant, actor, key).command_id)
            self.held.append((tenant, command.pool, HoldId(moment.id(0))))
        return request

    def _command(self, tenant: str) -> Command:
        random = self.random
        what = random.random()
        if what < 0.38:
            return self._order()
        if what < 0.57:
            return self._about_a_hold(tenant)
        if what < 0.68:
            return HoldPlaces(
                pool=random.choice(self.codes), quantity=random.randint(1, 3), ttl_s=random.randint(1, 5)
            )
        if what < 0.76:
            paper = self._paper()
            return ReturnGoods(
                return_id=ReturnId(_id(paper)), document=paper, lines=self._lines(sign=-1, most=2)
            )
        if what < 0.84:
            paper = self._paper()
            lines = self._lines(sign=random.choice((1, 1, -1)), most=3)
            return AdjustStock(adjustment_id=AdjustmentId(_id(paper)), document=paper, lines=lines)
        if what < 0.88:
            return self._offer()
        if what < 0.97:
            pool, other = random.sample(PAIR, 2)
            return random.choice((TakeOfPair, TakeOfPair, GiveToPair))(pool=pool, other=other)
        if what < 0.98:
            paper = self._paper()
            return AdjustBadDebt(
                payment_id=PaymentId(uuid5(_id(paper), "debt")),
                document=paper,
                lines=self._lines(sign=-1, most=1),
            )
        paper = self._paper()
        return RecordPayment(
            payment_id=PaymentId(uuid5(_id(paper), "by hand")),
            paper=_id(paper),
            currency=paper.currency,
            exact_micro=random.randint(-9_999_999, 9_999_999),
        )

    def _order(self) -> PlaceOrder:
        paper = self._paper()
        return PlaceOrder(
            order_id=OrderId(_id(paper)),
            document=paper,
            lines=self._lines(sign=1, most=3),
            settled=self.random.random() < 0.7,
        )

    def _offer(self) -> ListOffer:
        """A slug is wanted by several."""
        number = self.random.randint(0, 9)
        slug = self.random.choice((None, "white-heart", "red-heart", "blue-heart"))
        return ListOffer(offer=f"offer-{number}", title=f"Offer {number}", capacity=9, slug=slug)

    def _about_a_hold(self, tenant: str) -> Command:
        mine = [each for each in self.held if each[0] == tenant]
        if not mine:
            return HoldPlaces(pool=self.random.choice(self.codes), quantity=1, ttl_s=2)
        _, pool, hold_id = self.random.choice(mine[-6:])
        kind = self.random.choice((ConfirmHold, ConfirmHold, ReleaseHold, ExpireHold))
        return kind(pool=pool, hold_id=hold_id)

    def _paper(self) -> Document:
        """Its number comes again at times, with other content."""
        self.papers += 1
        again = self.random.random() < 0.05
        number = self.random.randint(1, self.papers) if again else self.papers
        return Document(
            number=str(number),
            digest=str(self.papers),
            customer=self.random.choice(("17850", "13047", None)),
            country=self.random.choice(("United Kingdom", "EIRE")),
            currency=self.random.choice(CURRENCIES),
            placed_at=datetime(2010, 12, 1, 8) + timedelta(days=self.random.randint(0, 60)),  # noqa: DTZ001  business time
        )

    def _lines(self, *, sign: int, most: int) -> tuple[Line, ...]:
        return tuple(
            Line(
                code=self.random.choice(self.codes),
                title="a title",
                quantity=sign * self.random.randint(1, 4),
                unit_price_micro=self.random.choice((2_550_000, 1_234_567, 5_000, 333_333, 9_995_000)),
                charge=self.random.random() < 0.1,
            )
            for _ in range(self.random.randint(1, most))
        )


def _id(paper: Document) -> UUID:
    return uuid5(NAMESPACE_URL, paper.number)


def mishaps(random: Random, until_s: float, codes: Sequence[str], orders: tuple[str, ...]) -> list[Mishap]:
    """Of each kind none, one or several; a run in which everything fails at once shows little."""
    made: list[Mishap] = []

    def some(
        kind: str, most: int, whats: tuple[str, ...] = ("",), number: int = 0, for_s: float = 0.0
    ) -> None:
        for _ in range(random.randint(0, most)):
            at_s = random.uniform(0.2, until_s)
            lasting = random.uniform(0.1, for_s) if for_s else 0.0
            made.append(Mishap(at_s, kind, random.choice(whats), random.randint(0, number), lasting))

    some("crash", 6, ROLES, number=400)
    some("freeze", 2, (ACTIVE_RELAY,), for_s=15.0)
    some("freeze", 2, ("worker-1", "worker-2", "api-1"), for_s=8.0)
    some("database stops", 1, for_s=2.0)
    some("broker stops", 1, for_s=3.0)
    some("broker forgets", 1)
    some("workers change", 3)
    for for_s in (0.5, 2.0, 6.0):
        some("poison", 2, tuple(f"{tenant}/pool-{code}" for tenant in TENANTS for code in codes), for_s=for_s)
        some("poison", 3, orders, for_s=for_s)
    if random.random() < 0.35:
        kept_s = random.uniform(0.3, 0.9) * until_s
        made.append(Mishap(kept_s, "backup"))
        again_s = min(until_s, kept_s + random.uniform(0.05, 2.0))
        made.append(Mishap(again_s, "restore"))
        if random.random() < 0.5:  # one that hears of it late, and has much on its mind
            made.append(Mishap(again_s - 0.02, "freeze", "api-1", for_s=random.uniform(0.1, 2.0)))
    return made
