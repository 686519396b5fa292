"""One fact of every kind, with every field filled: what the golden files hold."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from domain.audit import ProjectionRebuilt
from domain.capacity import (
    AdjustmentRecorded,
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    PoolOpened,
    StockAdjusted,
)
from domain.catalog import Document, Line, OfferListed, SlugClaimed
from domain.facts import Event
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted, PaymentRecorded, Posting
from domain.values import AdjustmentId, HoldId, Money, OrderId, PaymentId, ReturnId, Sealed

PAPER = Document(
    number="536365",
    digest="5f2b6c",
    customer="17850",
    country="Côte d’Ivoire",
    currency="GBP",
    placed_at=datetime(2010, 12, 1, 8, 26),  # noqa: DTZ001 - business time has no zone
)
LINES = (
    Line(
        code="85123A",
        title='WHITE "HANGING" HEART\tT-LIGHT ☕',
        quantity=6,
        unit_price_micro=2_550_000,
        charge=False,
        placed_at=datetime(2010, 12, 1, 8, 27, 30, 250),  # noqa: DTZ001 - business time has no zone
    ),
    Line(code="POST", title="", quantity=-1, unit_price_micro=1, charge=True, placed_at=None),
)
HOLD = HoldId(UUID("0190a1b2-0000-7000-8000-000000000001"))
ORDER = OrderId(UUID("0190a1b2-0000-7000-8000-000000000002"))
RETURN = ReturnId(UUID("0190a1b2-0000-7000-8000-000000000003"))
ADJUSTMENT = AdjustmentId(UUID("0190a1b2-0000-7000-8000-000000000004"))
PAYMENT = PaymentId(UUID("0190a1b2-0000-7000-8000-000000000005"))
AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
UNTIL = datetime(2026, 1, 1, 12, 15, tzinfo=UTC)

SAMPLES: tuple[Event, ...] = (
    OfferListed(offer="85123A", title="White heart", delivery="goods", pool="85123A"),
    SlugClaimed(claim="claim-slug-0123456789abcdef", offer="85123A"),
    PoolOpened(pool="85123A", capacity=40),
    PlacesTaken(pool="85123A", quantity=6, order_id=ORDER),
    PlacesReturned(pool="85123A", quantity=2, return_id=RETURN),
    StockAdjusted(pool="85123A", quantity=-3, reason="damaged", adjustment_id=ADJUSTMENT),
    PlacesHeld(pool="85123A", hold_id=HOLD, quantity=2, at=AT, expires_at=UNTIL),
    HoldConfirmed(pool="85123A", hold_id=HOLD, quantity=2, at=AT),
    HoldReleased(pool="85123A", hold_id=HOLD, at=AT),
    HoldExpired(pool="85123A", hold_id=HOLD, at=UNTIL),
    AdjustmentRecorded(adjustment_id=ADJUSTMENT, document=PAPER, lines=LINES),
    OrderPlaced(
        order_id=ORDER,
        document=PAPER,
        lines=LINES,
        exact_micro=15_299_999,
        total=Money(minor=1530, currency="GBP"),
        settled=True,
        contact=Sealed(subject="17850", box="bm90IHJlYWxseSBzZWFsZWQ="),
    ),
    GoodsReturned(
        return_id=RETURN,
        document=PAPER,
        lines=LINES,
        exact_micro=-15_299_999,
        total=Money(minor=-1530, currency="GBP"),
    ),
    PaymentRecorded(
        payment_id=PAYMENT,
        paper=ORDER,
        amount=Money(minor=1530, currency="GBP"),
        currency="GBP",
        postings=(
            Posting(account="cash", amount_micro=15_300_000),
            Posting(account="sales", amount_micro=-15_299_999),
            Posting(account="rounding", amount_micro=-1),
        ),
    ),
    BadDebtAdjusted(
        payment_id=PAYMENT,
        document=PAPER,
        lines=LINES,
        exact_micro=-11_062_060_000,
        currency="GBP",
        postings=(
            Posting(account="receivables", amount_micro=-11_062_060_000),
            Posting(account="bad-debt", amount_micro=11_062_060_000),
        ),
    ),
    ProjectionRebuilt(projection="orders", version=2, rows=12, rows_differing=1, reason="a wrong sum"),
)
