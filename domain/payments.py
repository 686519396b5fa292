"""Payments: money that moved, and the balanced entries that say where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self
from uuid import UUID

from pydantic import model_validator

from domain.catalog import Document, Line
from domain.facts import Event
from domain.refusals import Conflict
from domain.values import Currency, Micro, Money, PaymentId, Value, micro_of_money

Account = Literal["cash", "sales", "rounding", "receivables", "bad-debt"]


class Posting(Value):
    """Above zero: debit; below: credit."""

    account: Account
    amount_micro: Micro


class MoneyFact(Event, name="payments.money-fact"):
    """Abstract: every money fact posts entries that sum to zero."""

    currency: Currency
    postings: tuple[Posting, ...]

    @model_validator(mode="after")
    def balanced(self) -> Self:
        if sum(posting.amount_micro for posting in self.postings):
            raise ValueError("postings must sum to zero")
        return self


class PaymentRecorded(MoneyFact, name="payments.payment-recorded"):
    """Paid (or paid back, below zero) outside of Counterfoil, and recorded here."""

    payment_id: PaymentId
    paper: UUID
    """The order or the return it settles."""
    amount: Money

    @property
    def stream(self) -> str:
        return payment_stream(self.payment_id)


class BadDebtAdjusted(MoneyFact, name="payments.bad-debt-adjusted"):
    payment_id: PaymentId
    document: Document
    lines: tuple[Line, ...]
    exact_micro: Micro

    @property
    def stream(self) -> str:
        return payment_stream(self.payment_id)


class PaymentExists(Conflict):
    """This was recorded with another amount."""


@dataclass(slots=True)
class Payment:
    exact_micro: int | None = None
    digest: str | None = None

    def apply(self, event: Event) -> None:
        match event:
            case PaymentRecorded():
                self.exact_micro = -sum(p.amount_micro for p in event.postings if p.account == "sales")
            case BadDebtAdjusted():
                self.exact_micro, self.digest = event.exact_micro, event.document.digest


def payment_stream(payment_id: PaymentId) -> str:
    return f"payment-{payment_id}"


def sale_postings(amount: Money, exact_micro: int) -> tuple[Posting, ...]:
    """Cash against sales; what rounding moved goes to an account of its own."""
    cash = micro_of_money(amount)
    entries = (("cash", cash), ("sales", -exact_micro), ("rounding", exact_micro - cash))
    return tuple(
        Posting.model_validate({"account": account, "amount_micro": micro})
        for account, micro in entries
        if micro or account != "rounding"
    )


EVENTS = (PaymentRecorded, BadDebtAdjusted)
