"""Ordering over HTTP: place an order, record a return, see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Path, Response
from pydantic import BaseModel, Field

from api.dependencies import (
    ALLOWED,
    LIMIT,
    AskedOnce,
    Asking,
    Cursor,
    Fresh,
    Limit,
    Page,
    a_position,
    after,
    answered,
    commanded,
    paged,
)
from api.papers import (
    PAPER_EXAMPLE,
    RECEIPT_EXAMPLE,
    MoneyView,
    PaperBody,
    PaperReceipt,
)
from api.problems import CursorUnreadable
from api.retail.importer import Paper, paper_id
from commands.ordering import PlaceOrder, ReturnGoods
from domain.capacity import PoolUnknown, SoldOut
from domain.catalog import AmountTooLarge
from domain.ordering import (
    GoodsReturned,
    NothingOrdered,
    OrderExists,
    OrderPlaced,
    ReturnExists,
    order_stream,
    return_stream,
)
from domain.refusals import NotFound
from domain.values import OrderId, ReturnId, decimal_text
from infra.queries import StreamParked
from projections.ordering import ORDER_BY_ID, ORDER_LIST, RETURN_LIST, OrderRow, ReturnRow

commands = APIRouter(tags=["ordering"], dependencies=ALLOWED)
queries = APIRouter(tags=["ordering"], dependencies=ALLOWED)

TOTAL = {"minor": 2025, "currency": "GBP"}
ORDER = {
    "order_id": RECEIPT_EXAMPLE["id"],
    "document": "536365",
    "customer": "17850",
    "country": "United Kingdom",
    "placed_at": "2010-12-01T08:26:00",
    "line_count": 2,
    "units": 7,
    "exact": "20.250",
    "total": TOTAL,
    "settled": True,
    "recorded_at": "2026-01-01T12:00:00Z",
    "version": 1,
    "position": "0.1:8123",
}
RETURN: dict[str, Any] = {
    "return_id": RECEIPT_EXAMPLE["id"],
    **{name: value for name, value in ORDER.items() if name not in ("order_id", "settled")},
    "document": "C536379",
    "units": -1,
    "exact": "-27.500",
    "total": {"minor": -2750, "currency": "GBP"},
}
RETURN_BODY: dict[str, Any] = {
    **PAPER_EXAMPLE,
    "document": "C536379",
    "lines": [{"code": "85123A", "title": "Broken", "quantity": -1, "unit_price": "27.50"}],
}


class OrderUnknown(NotFound):
    """No order has this id."""


class OrderBody(PaperBody):
    settled: bool = Field(
        default=False, description="Paid already, at the till; the payment is recorded in answer."
    )
    contact: str | None = Field(
        default=None,
        max_length=254,
        pattern=r"^[^@\s\x00]+@[^@\s\x00]+$",
        description="The buyer's e-mail address; stored sealed, in no read model.",
    )


class PaperTotal(PaperReceipt):
    total: MoneyView = Field(description="What is asked: the exact sum, rounded once.")


class OrderView(BaseModel):
    order_id: UUID
    document: str
    customer: str | None
    country: str
    placed_at: datetime = Field(description="Local to the shop, without a zone.")
    line_count: int
    units: int
    exact: str
    total: MoneyView
    settled: bool
    recorded_at: datetime
    version: int
    position: str


class ReturnView(BaseModel):
    return_id: UUID
    document: str
    customer: str | None
    country: str
    placed_at: datetime = Field(description="Local to the shop, without a zone.")
    line_count: int
    units: int
    exact: str
    total: MoneyView
    recorded_at: datetime
    version: int
    position: str


@commands.post(
    "/orders",
    status_code=201,
    responses=commanded(
        {**RECEIPT_EXAMPLE, "total": TOTAL},
        *(PoolUnknown, SoldOut, OrderExists, NothingOrdered, AmountTooLarge),
        again=PaperTotal,
    ),
)
async def place_order(
    body: Annotated[OrderBody, Body(examples=[{**PAPER_EXAMPLE, "contact": "ana@example.org"}])],
    asked: AskedOnce,
) -> PaperTotal:
    """Place an order at the prices its lines name, taking all of its places or none."""
    number = body.number(asked.key)
    order_id = OrderId(paper_id(asked.by.tenant, number, Paper.ORDER))
    seal = asked.runtime.sealer.seal
    contact = None if body.contact is None else seal(asked.by.tenant, str(order_id), "contact", body.contact)
    command = PlaceOrder(
        order_id=order_id,
        document=body.written_on(number, contact.box if contact else ""),
        lines=body.all_lines(),
        settled=body.settled,
        contact=contact,
    )
    fact, position = await asked.paper(command, order_stream(order_id))
    assert isinstance(fact.event, OrderPlaced)
    return PaperTotal(
        id=order_id,
        document=fact.event.document.number,
        exact=decimal_text(fact.event.exact_micro),
        total=MoneyView.of(fact.event.total),
        version=fact.version,
        position=position,
    )


@commands.post(
    "/returns",
    status_code=201,
    responses=commanded(
        {**RECEIPT_EXAMPLE, "document": "C536379", "exact": "-27.500", "total": RETURN["total"]},
        *(PoolUnknown, SoldOut, ReturnExists, AmountTooLarge),
        again=PaperTotal,
    ),
)
async def return_goods(
    body: Annotated[PaperBody, Body(examples=[RETURN_BODY])], asked: AskedOnce
) -> PaperTotal:
    """Record a credit note: lines that come back have a quantity below zero."""
    number = body.number(asked.key)
    return_id = ReturnId(paper_id(asked.by.tenant, number, Paper.RETURN))
    command = ReturnGoods(return_id=return_id, document=body.written_on(number), lines=body.all_lines())
    fact, position = await asked.paper(command, return_stream(return_id))
    assert isinstance(fact.event, GoodsReturned)
    return PaperTotal(
        id=return_id,
        document=fact.event.document.number,
        exact=decimal_text(fact.event.exact_micro),
        total=MoneyView.of(fact.event.total),
        version=fact.version,
        position=position,
    )


@queries.get(
    "/orders",
    response_model=Page[OrderView],
    responses=answered({"items": [ORDER], "next": "/api/v1/orders?cursor=WyJ4Iiw4MTIzXQ"}, CursorUnreadable),
)
async def orders(fresh: Fresh, limit: Limit = LIMIT, cursor: Cursor = None) -> Response:
    """Orders as they were recorded, oldest first."""
    start = after(cursor, "orders", 0, a_position)
    told = await fresh.queries.run(
        ORDER_LIST, fresh.tenant, {"after": start, "limit": limit + 1}, **fresh.how()
    )
    return paged(
        fresh,
        told,
        told.rows[0],
        limit,
        "orders",
        key=lambda row: row.position,
        view=lambda row: _order(fresh, row),
    )


@queries.get(
    "/orders/{order_id}",
    response_model=OrderView,
    responses=answered(ORDER, OrderUnknown, StreamParked),
)
async def order(order_id: Annotated[UUID, Path(examples=[RECEIPT_EXAMPLE["id"]])], fresh: Fresh) -> Response:
    """One order; its entity tag is its stream's version."""
    told = await fresh.queries.run(
        ORDER_BY_ID,
        fresh.tenant,
        {"order_id": order_id},
        **fresh.how(),
        stream=order_stream(OrderId(order_id)),
    )
    if not told.rows[0]:
        raise OrderUnknown(f"order {order_id}")
    (row,) = told.rows[0]
    return fresh.answer(told, _order(fresh, row), tag=f"v{row.version}")


@queries.get(
    "/returns",
    response_model=Page[ReturnView],
    responses=answered(
        {"items": [RETURN], "next": "/api/v1/returns?cursor=WyJ4Iiw4MTIzXQ"}, CursorUnreadable
    ),
)
async def returns(fresh: Fresh, limit: Limit = LIMIT, cursor: Cursor = None) -> Response:
    """Returns as they were recorded, oldest first."""
    start = after(cursor, "returns", 0, a_position)
    told = await fresh.queries.run(
        RETURN_LIST, fresh.tenant, {"after": start, "limit": limit + 1}, **fresh.how()
    )
    return paged(
        fresh,
        told,
        told.rows[0],
        limit,
        "returns",
        key=lambda row: row.position,
        view=lambda row: ReturnView(return_id=row.return_id, **_common(fresh, row)),
    )


def _order(fresh: Asking, row: OrderRow) -> OrderView:
    return OrderView(order_id=row.order_id, settled=row.settled, **_common(fresh, row))


def _common(fresh: Asking, row: OrderRow | ReturnRow) -> dict[str, Any]:
    return {
        "document": row.document,
        "customer": row.customer,
        "country": row.country,
        "placed_at": row.placed_at,
        "line_count": row.line_count,
        "units": row.units,
        "exact": decimal_text(row.exact_micro),
        "total": MoneyView(minor=row.total_minor, currency=row.currency),
        "recorded_at": row.recorded_at,
        "version": row.version,
        "position": fresh.token(row.position),
    }
