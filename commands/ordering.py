"""What may be asked of ordering: the order and every pool it touches, in one append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from commands.handling import Boundary, Command, Moment, Read
from domain.capacity import PlacesReturned, PlacesTaken, Pool, demand, pool_stream
from domain.catalog import Document, Line, total_micro
from domain.facts import Event
from domain.ordering import (
    GoodsReturned,
    NothingOrdered,
    OrderExists,
    OrderPlaced,
    Paper,
    ReturnExists,
    order_stream,
    return_stream,
)
from domain.values import OrderId, Permission, ReturnId, Sealed, rounded

Lines = Annotated[tuple[Line, ...], Field(min_length=1)]


class PlaceOrder(Command, permission=Permission.ORDER_PLACE):
    """Place an order at the prices its lines name, taking all of its places or none."""

    order_id: OrderId
    document: Document
    lines: Lines
    settled: bool
    """Paid already, outside; the payment is put on record in answer."""
    contact: Sealed | None = None

    def read(self, log: Read) -> Boundary:
        return Boundary(
            order=log.fresh(order_stream(self.order_id), Paper),
            pools=log.each(map(pool_stream, demand(self.lines)), Pool),
        )

    def decide(self, at: Moment, *, order: Paper, pools: dict[str, Pool]) -> Sequence[Event]:
        if order.digest is not None:
            if order.digest != self.document.digest:
                raise OrderExists(f"order {self.document.number}")
            return []
        if any(line.quantity <= 0 for line in self.lines):
            raise NothingOrdered(f"order {self.document.number}")
        exact_micro = total_micro(self.lines)
        placed = OrderPlaced(
            order_id=self.order_id,
            document=self.document,
            lines=self.lines,
            exact_micro=exact_micro,
            total=rounded(exact_micro, self.document.currency),
            settled=self.settled,
            contact=self.contact,
        )
        facts: list[Event] = [placed]
        for pool, quantity in demand(self.lines).items():
            pools[pool_stream(pool)].require_places(pool, quantity, at.now)
            facts.append(PlacesTaken(pool=pool, quantity=quantity, order_id=self.order_id))
        return facts


class ReturnGoods(Command, permission=Permission.GOODS_RETURN):
    """Record a credit note: its goods go back to their pools, whatever order they came from.

    Lines that come back have a quantity below zero; one above zero takes some of it back again.
    """

    return_id: ReturnId
    document: Document
    lines: Lines

    def read(self, log: Read) -> Boundary:
        return Boundary(
            paper=log.fresh(return_stream(self.return_id), Paper),
            pools=log.each(map(pool_stream, demand(self.lines)), Pool),
        )

    def decide(self, at: Moment, *, paper: Paper, pools: dict[str, Pool]) -> Sequence[Event]:
        if paper.digest is not None:
            if paper.digest != self.document.digest:
                raise ReturnExists(f"return {self.document.number}")
            return []
        exact_micro = total_micro(self.lines)
        returned = GoodsReturned(
            return_id=self.return_id,
            document=self.document,
            lines=self.lines,
            exact_micro=exact_micro,
            total=rounded(exact_micro, self.document.currency),
        )
        facts: list[Event] = [returned]
        for pool, quantity in demand(self.lines).items():
            pools[pool_stream(pool)].require_places(pool, quantity, at.now)
            if quantity:
                facts.append(PlacesReturned(pool=pool, quantity=-quantity, return_id=self.return_id))
        return facts
