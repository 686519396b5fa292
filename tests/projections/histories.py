"""Histories nobody thought of: random commands through the handler, and every order they may arrive in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import NAMESPACE_URL, UUID, uuid5

from hypothesis import strategies as st

from commands.audit import RecordRebuild
from commands.capacity import AdjustStock, ConfirmHold, ExpireHold, HoldPlaces, OpenPool, ReleaseHold
from commands.catalog import ListOffer
from commands.handling import Actor, Command, Handler
from commands.ordering import PlaceOrder, ReturnGoods
from commands.payments import AdjustBadDebt, RecordPayment
from domain.capacity import PlacesHeld
from domain.catalog import Document, Line
from domain.facts import Recorded
from domain.refusals import Refusal
from domain.values import AdjustmentId, HoldId, OrderId, PaymentId, Permission, ReturnId
from infra.memory import MemoryLog
from projections.fold import Fold
from projections.registry import PROJECTIONS
from projections.rows import Projection
from tests.spec import T0, document

CODES = ("85123A", "71053", "POST")
TENANTS = ("acme", "zeta")
COUNTRIES = ("United Kingdom", "EIRE")
CURRENCIES = ("GBP", "EUR")

quantities = st.integers(1, 9)
numbers = st.integers(0, 5)
papers = st.builds(
    lambda number, country, currency, customer: document(f"{number}", currency=currency).model_copy(
        update={"country": country, "customer": customer}
    ),
    numbers,
    st.sampled_from(COUNTRIES),
    st.sampled_from(CURRENCIES),
    st.sampled_from(("17850", None)),
)


def identified(paper: Document) -> UUID:
    """A paper's number names it: the same one comes again, as it does in life."""
    return uuid5(NAMESPACE_URL, paper.number)


def lines(quantity: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Line, ...]]:
    line = st.builds(
        lambda code, quantity, price, day: Line(
            code=code,
            title="a title",
            quantity=quantity,
            unit_price_micro=price,
            charge=code == "POST",
            placed_at=None if day is None else document().placed_at + timedelta(days=day),
        ),
        st.sampled_from(CODES),
        quantity,
        st.integers(-2_000_000, 9_000_000),
        st.sampled_from((None, 1, 40)),
    )
    return st.lists(line, min_size=1, max_size=3).map(tuple)


moved = quantities | quantities.map(lambda quantity: -quantity)
codes = st.sampled_from(CODES)
requests: st.SearchStrategy[Command | str] = st.one_of(
    st.builds(
        lambda offer, slug: ListOffer(offer=offer, title=f"{offer} title", slug=slug, capacity=40),
        codes,
        st.sampled_from((None, "white-heart")),
    ),
    st.builds(
        lambda paper, lines: PlaceOrder(
            order_id=OrderId(identified(paper)), document=paper, lines=lines, settled=True
        ),
        papers,
        lines(quantities),
    ),
    st.builds(
        lambda paper, lines: ReturnGoods(return_id=ReturnId(identified(paper)), document=paper, lines=lines),
        papers,
        lines(moved),
    ),
    st.builds(
        lambda paper, lines: AdjustStock(
            adjustment_id=AdjustmentId(identified(paper)), document=paper, lines=lines
        ),
        papers,
        lines(moved),
    ),
    st.builds(
        lambda paper, lines: AdjustBadDebt(
            payment_id=PaymentId(uuid5(identified(paper), "debt")), document=paper, lines=lines
        ),
        papers,
        lines(moved),
    ),
    st.builds(
        lambda paper, micro: RecordPayment(
            payment_id=PaymentId(uuid5(identified(paper), "payment")),
            paper=identified(paper),
            currency=paper.currency,
            exact_micro=micro,
        ),
        papers,
        st.integers(-9_999_999, 9_999_999),
    ),
    st.builds(
        lambda pool, quantity, ttl_s: HoldPlaces(pool=pool, quantity=quantity, ttl_s=ttl_s),
        codes,
        quantities,
        st.sampled_from((1, 60)),
    ),
    st.sampled_from(("confirm", "release", "expire")),
    st.sampled_from(("expire", "release", "confirm")),  # twice as likely: it takes two for an end
    st.builds(
        lambda projection, rows: RecordRebuild(
            projection=projection, version=2, rows=rows, rows_differing=0, reason="a wrong sum"
        ),
        st.sampled_from(("ordering", "analytics")),
        numbers,
    ),
)
steps = st.lists(st.tuples(st.sampled_from(TENANTS), requests), min_size=1, max_size=30)
"""A word stands for what is done to the hold that was made last, or for making one."""


def history(taken: Iterable[tuple[str, Command | str]]) -> MemoryLog:
    """The log these steps leave, every shop with its pools open; refusals leave nothing."""
    log, now = MemoryLog(), T0
    handler = Handler(log, lambda: now)
    held: dict[str, PlacesHeld] = {}
    opened = [(tenant, OpenPool(pool=code)) for tenant in TENANTS for code in CODES]
    for number, (tenant, request) in enumerate([*opened, *taken]):
        now += timedelta(seconds=17)
        command = _about(held.get(tenant), request) if isinstance(request, str) else request
        by = Actor(tenant, "ana", frozenset(Permission))
        try:
            answer = handler.handle(command, by=by, key=f"step-{number}")
        except Refusal:
            continue
        if isinstance(request, str):
            held.pop(tenant, None)
        for fact in answer.facts:
            if isinstance(fact.event, PlacesHeld):
                held[tenant] = fact.event
    return log


def _about(held: PlacesHeld | None, word: str) -> Command:
    if held is None:
        return HoldPlaces(pool=CODES[0], quantity=1, ttl_s=1 if word == "expire" else 60)
    pool, hold_id = held.pool, HoldId(held.hold_id)
    match word:
        case "confirm":
            return ConfirmHold(pool=pool, hold_id=hold_id)
        case "release":
            return ReleaseHold(pool=pool, hold_id=hold_id)
        case _:
            return ExpireHold(pool=pool, hold_id=hold_id)


def facts_of(log: MemoryLog) -> list[Recorded]:
    """Of all tenants, in log order."""
    every = [
        log.recorded(tenant, position, 1) for position in range(1, len(log.rows) + 1) for tenant in TENANTS
    ]
    return [fact for found in every for fact in found]


def interleaved(facts: Sequence[Recorded], chance: random.Random) -> list[Recorded]:
    """In another order, each stream's own kept; sometimes by turns, sometimes one stream far ahead."""
    waiting: dict[tuple[str, str], list[Recorded]] = {}
    for fact in reversed(facts):
        waiting.setdefault((fact.tenant, fact.stream), []).append(fact)
    shuffled: list[Recorded] = []
    eager = chance.random()
    stream = None
    while waiting:
        if stream not in waiting or chance.random() > eager:
            stream = chance.choice(sorted(waiting))
        shuffled.append(waiting[stream].pop())
        if not waiting[stream]:
            del waiting[stream]
    return shuffled


def folded(facts: Iterable[Recorded], projections: Iterable[Projection] = PROJECTIONS) -> Fold:
    fold, wanted = Fold(), tuple(projections)
    for fact in facts:
        for projection in wanted:
            if fact.event.name in projection.names:
                fold.add(fact, projection.project(fact))
    return fold
