"""What has to hold when all has settled: the log, what clients were told, the rules, what follows from it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID, uuid5

from domain.capacity import (
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    PoolOpened,
    StockAdjusted,
)
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import PaymentRecorded
from domain.values import minor_digits
from infra.mapper import StoredFact
from tests.simulation.database import Database, Key, Row
from tests.simulation.notes import Broken, Note
from tests.simulation.skew import PAIR, PAIR_MOST

MICRO_PER_UNIT = 1_000_000


def require(holds: object, invariant: str, found: object) -> None:
    if not holds:
        raise Broken(invariant, str(found))


def facts_in(database: Database) -> list[Recorded]:
    """By position; what a gap hides is not there."""
    stored = database.tables["stored_events"]
    return [StoredFact(at, *row).recorded() for (at,), row in sorted(stored.items())]


def judge_log(database: Database, facts: list[Recorded]) -> None:
    """I3: positions and versions without gaps, time never goes back; I1: a command's facts, together."""
    (position, _, _), versions = database.tables["head"][()], Counter[tuple[str, str]]()
    require(
        [fact.position for fact in facts] == list(range(1, position + 1)),
        "I3 positions have no gap",
        position,
    )
    before: datetime | None = None
    by_key: defaultdict[Key, list[Recorded]] = defaultdict(list)
    for fact in facts:
        stream = fact.tenant, fact.stream
        versions[stream] += 1
        require(fact.version == versions[stream], "I3 versions have no gap", fact)
        require(before is None or before <= fact.at, "I3 recorded time never goes back", fact)
        before = fact.at
        by_key[fact.tenant, fact.envelope.actor, fact.envelope.key].append(fact)
    commands = database.tables["commands"]
    for key, (_, _, first, count) in commands.items():
        told = [(fact.position, fact.number) for fact in by_key.pop(key, ())]
        require(
            told == [(first + n, n) for n in range(count)], "I1 a command's facts are there once", (key, told)
        )
    require(not by_key, "I1 facts have a command", list(by_key)[:3])


def judge_clients(commands: dict[Key, Row], facts: list[Recorded], notes: Iterable[Note]) -> None:
    """I1: what was acknowledged is recorded, as it was told; what was refused left nothing."""
    by_key: defaultdict[Key, list[Note]] = defaultdict(list)
    for note in notes:
        request = note.request
        by_key[request.tenant, request.actor, request.key].append(note)
    for key, mine in by_key.items():
        recorded = commands.get(key)
        for note in mine:
            for answer in note.answers:
                require(recorded is not None, "I1 what was acknowledged is recorded", note.request)
                digest, _, first, count = recorded  # type: ignore[misc]
                require(digest == note.request.command.digest(), "I1 a key is for one request", note.request)
                told, held = answer.facts, tuple(facts[first - 1 : first - 1 + count])
                require(told == held, "I1 facts are there as they were told", (str(note.request), told, held))
        meant = [note.request.command for note in mine if note.answers]
        require(all(each == meant[0] for each in meant), "I1 a key is for one request", (key, meant))
        sure = not any(note.answers or note.unknown or note.excused for note in mine)
        require(not sure or recorded is None, "I1 what was refused left nothing", mine[0].request)
    asked = {each for each in commands if each[1] in ("ana", "ben")}
    require(asked <= by_key.keys(), "I1 nothing is recorded that nobody asked for", asked - by_key.keys())


class Pool:
    """A pool as a child would count it."""

    def __init__(self) -> None:
        self.capacity: int | None = None
        self.used = 0
        self.holds: dict[UUID, PlacesHeld] = {}
        self.ends: Counter[UUID] = Counter()

    def take(self, fact: Recorded) -> None:
        match fact.event:
            case PoolOpened() as opened:
                self.capacity = opened.capacity
            case PlacesTaken() as taken:
                self.used += taken.quantity
                self.require_room(fact)
            case PlacesReturned() as returned:
                self.used -= returned.quantity
            case StockAdjusted() as adjusted:
                self.used -= adjusted.quantity
            case PlacesHeld() as held:
                self.holds[held.hold_id] = held
                self.require_room(fact)
            case HoldConfirmed() as confirmed:
                held = self.end(confirmed.hold_id, fact)
                self.used += confirmed.quantity
                require(confirmed.at < held.expires_at, "I9 a dead hold is not confirmed", fact)
            case HoldReleased() as released:
                self.end(released.hold_id, fact)
            case HoldExpired() as expired:
                held = self.end(expired.hold_id, fact)
                require(expired.at >= held.expires_at, "I9 a live hold does not expire", fact)

    def end(self, hold_id: UUID, fact: Recorded) -> PlacesHeld:
        self.ends[hold_id] += 1
        require(hold_id in self.holds and self.ends[hold_id] == 1, "I9 a hold ends once", fact)
        return self.holds[hold_id]

    def require_room(self, fact: Recorded) -> None:
        """Holds that were alive when it was decided may be dead when it is recorded, never the other way."""
        live = sum(
            held.quantity
            for hold_id, held in self.holds.items()
            if not self.ends[hold_id] and held.expires_at > fact.at
        )
        require(
            self.capacity is None or self.used + live <= self.capacity,
            "I9 never more than there is",
            f"{self.used} taken and {live} held of {self.capacity} by {fact}",
        )


def judge_rules(facts: list[Recorded]) -> None:
    """I9: no pool is oversold at any position. I8: money is exact. I6: each settled paper is paid once."""
    pools: defaultdict[tuple[str, str], Pool] = defaultdict(Pool)
    owed: dict[tuple[str, UUID], tuple[int, str, UUID]] = {}
    for fact in facts:
        pools[fact.tenant, fact.stream].take(fact)
        pair = sum(pools[fact.tenant, f"pool-{code}"].used for code in PAIR)
        require(pair <= PAIR_MOST, "I9 no write skew", f"{pair} taken of a pair by {fact}")
        match fact.event:
            case OrderPlaced() | GoodsReturned() as paper:
                exact = sum(line.quantity * line.unit_price_micro for line in paper.lines)
                minor = _rounded(exact, paper.document.currency)
                require((paper.exact_micro, paper.total.minor) == (exact, minor), "I8 money is exact", fact)
                kind, number = _named(paper)
                if kind == "refund" or getattr(paper, "settled", False):
                    owed[fact.tenant, uuid5(number, kind)] = exact, paper.document.currency, fact.fact_id
    for fact in facts:
        if isinstance(fact.event, PaymentRecorded):
            _judge_payment(fact, fact.event, owed)
    require(not owed, "I6 each settled paper is paid for", list(owed)[:3])
    for pool in pools.values():
        lasting = [hold_id for hold_id in pool.holds if not pool.ends[hold_id]]
        require(not lasting, "I12 each hold comes to its end", lasting[:3])


def _named(paper: OrderPlaced | GoodsReturned) -> tuple[str, UUID]:
    return ("payment", paper.order_id) if isinstance(paper, OrderPlaced) else ("refund", paper.return_id)


def _judge_payment(fact: Recorded, paid: PaymentRecorded, owed: dict[Any, tuple[int, str, UUID]]) -> None:
    entries: Counter[str] = Counter()
    for posting in paid.postings:
        entries[posting.account] += posting.amount_micro
    step = 10 ** (6 - minor_digits(paid.currency))
    require(entries.total() == 0, "I8 postings sum to zero", fact)
    require(entries["cash"] == paid.amount.minor * step, "I8 cash is what was paid", fact)
    exact = -entries["sales"]
    require(paid.amount.minor == _rounded(exact, paid.currency), "I8 money is exact", fact)
    if fact.envelope.actor == "reaction:payments":
        due = owed.pop((fact.tenant, paid.payment_id), None)
        told = (exact, paid.currency, fact.envelope.causation)
        require(due == told, "I6 a reaction acts once, on its fact", (fact, due))


def _rounded(exact_micro: int, currency: str) -> int:
    """By another way than the house's own."""
    digits = minor_digits(currency)
    amount = Decimal(exact_micro) / MICRO_PER_UNIT
    return int(amount.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP).scaleb(digits))
