"""Money that moved, and the balance of every account."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from domain.facts import Recorded
from domain.payments import BadDebtAdjusted, PaymentRecorded
from domain.values import Value
from projections.rows import Add, Big, Projection, Put, Query, RowOp, Table


class PaymentRow(Value):
    payment_id: UUID
    paper: UUID
    currency: str
    amount_minor: int
    recorded_at: datetime


class BalanceRow(Value):
    currency: str
    account: str
    amount_micro: Big = 0


PAYMENTS = Table("payments", PaymentRow, key=("payment_id",))
BALANCES = Table("balances", BalanceRow, key=("currency", "account"), sums=("amount_micro",))

BALANCE_LIST = Query(
    BalanceRow, (("payments", BALANCES),), "SELECT * FROM {balances} ORDER BY currency, account"
)


def project(recorded: Recorded) -> list[RowOp]:
    match recorded.event:
        case PaymentRecorded() as paid:
            row = PaymentRow(
                payment_id=paid.payment_id,
                paper=paid.paper,
                currency=paid.currency,
                amount_minor=paid.amount.minor,
                recorded_at=recorded.at,
            )
            return [Put(PAYMENTS, row), *_entries(paid)]
        case BadDebtAdjusted() as adjusted:
            return _entries(adjusted)
        case _:
            return []


def _entries(fact: PaymentRecorded | BadDebtAdjusted) -> list[RowOp]:
    return [
        Add(BALANCES, (fact.currency, posting.account), {"amount_micro": posting.amount_micro})
        for posting in fact.postings
    ]


PROJECTION = Projection("payments", (PaymentRecorded, BadDebtAdjusted), (PAYMENTS, BALANCES), project)
