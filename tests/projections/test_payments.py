"""Money that moved, and what every account stands at."""

from __future__ import annotations

from domain.payments import BadDebtAdjusted, PaymentRecorded, Posting, sale_postings
from domain.values import Money, PaymentId
from projections.payments import BALANCES, PAYMENTS
from tests.domain.samples import ORDER, PAYMENT
from tests.projections.tables import after
from tests.spec import T0, document, line

PAID = PaymentRecorded(
    payment_id=PaymentId(PAYMENT),
    paper=ORDER,
    amount=Money(minor=1530, currency="GBP"),
    currency="GBP",
    postings=sale_postings(Money(minor=1530, currency="GBP"), 15_299_999),
)
WRITTEN_OFF = BadDebtAdjusted(
    payment_id=PaymentId(ORDER),
    document=document("A563187"),
    lines=(line("B", 1, "-11062.06", charge=True),),
    exact_micro=-11_062_060_000,
    currency="GBP",
    postings=(
        Posting(account="receivables", amount_micro=-11_062_060_000),
        Posting(account="bad-debt", amount_micro=11_062_060_000),
    ),
)


def test_a_payment_is_a_row_and_moves_its_accounts() -> None:
    shown = after(PAID)
    assert shown.row(PAYMENTS) == {
        "payment_id": PAYMENT,
        "paper": ORDER,
        "currency": "GBP",
        "amount_minor": 1530,
        "recorded_at": T0,
    }
    assert {row["account"]: row["amount_micro"] for row in shown.rows(BALANCES)} == {
        "cash": 15_300_000,
        "sales": -15_299_999,
        "rounding": -1,
    }


def test_a_bad_debt_moves_accounts_and_is_no_payment() -> None:
    shown = after(WRITTEN_OFF)
    assert shown.rows(PAYMENTS) == []
    assert sum(row["amount_micro"] for row in shown.rows(BALANCES)) == 0


def test_whatever_is_posted_the_accounts_sum_to_zero() -> None:
    assert sum(row["amount_micro"] for row in after(PAID, WRITTEN_OFF).rows(BALANCES)) == 0
