"""What may be asked of payments: to put on record what happened elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from pydantic import Field

from commands.handling import Boundary, Command, Moment, Read
from domain.catalog import Document, Line, total_micro
from domain.facts import Event
from domain.payments import (
    BadDebtAdjusted,
    Payment,
    PaymentExists,
    PaymentRecorded,
    Posting,
    payment_stream,
    sale_postings,
)
from domain.values import Currency, Micro, PaymentId, Permission, rounded


class RecordPayment(Command, permission=Permission.PAYMENT_RECORD):
    """Record that an order was paid, or a return paid back; the amount is rounded once, here."""

    payment_id: PaymentId
    paper: UUID
    currency: Currency
    exact_micro: Micro

    def read(self, log: Read) -> Boundary:
        return Boundary(payment=log.fresh(payment_stream(self.payment_id), Payment))

    def decide(self, at: Moment, *, payment: Payment) -> Sequence[Event]:
        if payment.exact_micro is not None:
            if payment.exact_micro != self.exact_micro:
                raise PaymentExists(f"payment {self.payment_id}")
            return []
        amount = rounded(self.exact_micro, self.currency)
        return [
            PaymentRecorded(
                payment_id=self.payment_id,
                paper=self.paper,
                amount=amount,
                currency=self.currency,
                postings=sale_postings(amount, self.exact_micro),
            )
        ]


class AdjustBadDebt(Command, permission=Permission.DEBT_ADJUST):
    """Record a paper that writes a debt off, or back on: a posting, and no goods move."""

    payment_id: PaymentId
    document: Document
    lines: Annotated[tuple[Line, ...], Field(min_length=1)]

    def read(self, log: Read) -> Boundary:
        return Boundary(payment=log.fresh(payment_stream(self.payment_id), Payment))

    def decide(self, at: Moment, *, payment: Payment) -> Sequence[Event]:
        if payment.exact_micro is not None:
            if payment.digest != self.document.digest:
                raise PaymentExists(f"adjustment {self.document.number}")
            return []
        exact_micro = total_micro(self.lines)
        return [
            BadDebtAdjusted(
                payment_id=self.payment_id,
                document=self.document,
                lines=self.lines,
                exact_micro=exact_micro,
                currency=self.document.currency,
                postings=(
                    Posting(account="receivables", amount_micro=exact_micro),
                    Posting(account="bad-debt", amount_micro=-exact_micro),
                ),
            )
        ]
