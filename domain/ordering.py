"""Ordering: one cart across all kinds of offers becomes one order; returns stand on their own."""

from __future__ import annotations

from dataclasses import dataclass

from domain.catalog import Document, Line
from domain.facts import Event
from domain.refusals import Conflict, Invalid
from domain.values import Micro, Money, OrderId, ReturnId, Sealed


class OrderPlaced(Event, name="ordering.order-placed"):
    order_id: OrderId
    document: Document
    lines: tuple[Line, ...]
    exact_micro: Micro
    """The sum of the lines, not rounded."""
    total: Money
    """What is asked of the buyer: the sum, rounded once."""
    settled: bool
    """Paid at the till already; the payment is recorded in answer to this fact."""
    contact: Sealed | None = None
    """The buyer's e-mail address."""

    @property
    def stream(self) -> str:
        return order_stream(self.order_id)


class GoodsReturned(Event, name="ordering.goods-returned"):
    """A credit note. It names no order: many tills write them so."""

    return_id: ReturnId
    document: Document
    lines: tuple[Line, ...]
    exact_micro: Micro
    total: Money

    @property
    def stream(self) -> str:
        return return_stream(self.return_id)


class OrderExists(Conflict):
    """An order of this number was placed with other content."""


class ReturnExists(Conflict):
    """A return of this number was recorded with other content."""


class NothingOrdered(Invalid):
    """An order needs at least one line, and every line a quantity above zero."""


class NothingReturned(Invalid):
    """A return needs at least one line."""


@dataclass(slots=True)
class Paper:
    """Whether an order or a return is on file, and with what content."""

    digest: str | None = None

    def apply(self, event: Event) -> None:
        if isinstance(event, OrderPlaced | GoodsReturned):
            self.digest = event.document.digest


def order_stream(order_id: OrderId) -> str:
    return f"order-{order_id}"


def return_stream(return_id: ReturnId) -> str:
    return f"return-{return_id}"


EVENTS = (OrderPlaced, GoodsReturned)
