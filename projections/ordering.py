"""Orders and returns, one row each."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import NaiveDatetime

from domain.catalog import Document, Line
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.values import Value
from projections.rows import Projection, Put, Query, RowOp, Table


class OrderRow(Value):
    order_id: UUID
    document: str
    customer: str | None
    country: str
    currency: str
    placed_at: NaiveDatetime
    """Local to the shop, without a zone."""
    line_count: int
    units: int
    exact_micro: int
    total_minor: int
    settled: bool
    recorded_at: datetime
    version: int
    """Of the order's stream: its ETag."""
    position: int


class ReturnRow(Value):
    return_id: UUID
    document: str
    customer: str | None
    country: str
    currency: str
    placed_at: NaiveDatetime
    line_count: int
    units: int
    exact_micro: int
    total_minor: int
    recorded_at: datetime
    version: int
    position: int


ORDERS = Table("orders", OrderRow, key=("order_id",))
RETURNS = Table("returns", ReturnRow, key=("return_id",))

ORDER_BY_ID = Query(OrderRow, (("ordering", ORDERS),), "SELECT * FROM {orders} WHERE order_id = %(order_id)s")
ORDER_LIST = Query(
    OrderRow,
    (("ordering", ORDERS),),
    "SELECT * FROM {orders} WHERE position > %(after)s AND position <= %(through)s"
    " ORDER BY position LIMIT %(limit)s",
)
RETURN_LIST = Query(
    ReturnRow,
    (("ordering", RETURNS),),
    "SELECT * FROM {returns} WHERE position > %(after)s AND position <= %(through)s"
    " ORDER BY position LIMIT %(limit)s",
)


def project(recorded: Recorded) -> list[RowOp]:
    event = recorded.event
    match event:
        case OrderPlaced():
            common = _common(recorded, event.document, event.lines)
            row = OrderRow(
                order_id=event.order_id,
                exact_micro=event.exact_micro,
                total_minor=event.total.minor,
                settled=event.settled,
                **common,
            )
            return [Put(ORDERS, row)]
        case GoodsReturned():
            common = _common(recorded, event.document, event.lines)
            back = ReturnRow(
                return_id=event.return_id,
                exact_micro=event.exact_micro,
                total_minor=event.total.minor,
                **common,
            )
            return [Put(RETURNS, back)]
        case _:
            return []


def _common(recorded: Recorded, document: Document, lines: tuple[Line, ...]) -> dict[str, Any]:
    return {
        "document": document.number,
        "customer": document.customer,
        "country": document.country,
        "currency": document.currency,
        "placed_at": document.placed_at,
        "line_count": len(lines),
        "units": sum(line.quantity for line in lines),
        "recorded_at": recorded.at,
        "version": recorded.version,
        "position": recorded.position,
    }


PROJECTION = Projection("ordering", (OrderPlaced, GoodsReturned), (ORDERS, RETURNS), project)
