"""Capacity over HTTP: pools of places, holds on them, adjustments of stock."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Path, Response
from pydantic import BaseModel, Field

from api import papers
from api.dependencies import (
    ALLOWED,
    LIMIT,
    AskedOnce,
    Cursor,
    Fresh,
    Limit,
    Page,
    a_code,
    after,
    answered,
    commanded,
    paged,
)
from api.papers import PAPER_EXAMPLE, RECEIPT_EXAMPLE, PaperBody, PaperReceipt
from api.problems import CursorUnreadable
from api.retail.importer import Paper, paper_id
from commands.capacity import HOLD_S_MAX, AdjustStock, ConfirmHold, HoldPlaces, OpenPool, ReleaseHold
from domain.capacity import (
    AdjustmentExists,
    AdjustmentRecorded,
    Capacity,
    HoldConfirmed,
    HoldReleased,
    HoldUnknown,
    PlacesHeld,
    PoolAlreadyOpen,
    PoolUnknown,
    SoldOut,
)
from domain.catalog import QUANTITY_MAX, AmountTooLarge, total_micro
from domain.values import AdjustmentId, Code, HoldId, decimal_text
from projections.capacity import POOL_LIST

commands = APIRouter(tags=["capacity"], dependencies=ALLOWED)
queries = APIRouter(tags=["capacity"], dependencies=ALLOWED)

PoolCode = Annotated[Code, Path(examples=["85123A"])]
HoldPath = Annotated[UUID, Path(examples=["9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11"])]
HOLD = {
    "hold_id": "9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11",
    "pool": "85123A",
    "quantity": 2,
    "expires_at": "2026-01-01T12:15:00Z",
    "version": 2,
    "position": "0.1:8123",
}
ENDED = {
    "hold_id": "9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11",
    "pool": "85123A",
    "at": "2026-01-01T12:03:00Z",
    "version": 3,
    "position": "0.1:8124",
}


class PoolBody(papers.Body):
    pool: Code
    capacity: Capacity | None = Field(default=None, description="null has no ceiling.")


class PoolReceipt(BaseModel):
    pool: str
    capacity: int | None
    version: int
    position: str


class HoldBody(papers.Body):
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    ttl_s: Annotated[int, Field(ge=1, le=HOLD_S_MAX, description="Seconds until the hold is dead.")]


class HoldReceipt(BaseModel):
    hold_id: UUID
    pool: str
    quantity: int
    expires_at: datetime
    version: int
    position: str


class HoldEnded(BaseModel):
    hold_id: UUID
    pool: str
    at: datetime
    version: int
    position: str


class PoolView(BaseModel):
    pool: str
    capacity: int | None
    taken: int
    returned: int
    adjusted: int
    net_units: int = Field(description="Taken, less returned, plus adjusted: what has left the shop.")


@commands.post(
    "/pools",
    status_code=201,
    responses=commanded(
        {"pool": "85123A", "capacity": 100, "version": 1, "position": "0.1:8123"}, PoolAlreadyOpen
    ),
)
async def open_pool(
    body: Annotated[PoolBody, Body(examples=[{"pool": "85123A", "capacity": 100}])], asked: AskedOnce
) -> PoolReceipt:
    """Open a pool of places."""
    done = await asked.handle(OpenPool(pool=body.pool, capacity=body.capacity))
    return PoolReceipt(
        pool=body.pool,
        capacity=body.capacity,
        version=done.facts[0].version,
        position=asked.token(done.position),
    )


@commands.post("/pools/{pool}/holds", status_code=201, responses=commanded(HOLD, PoolUnknown, SoldOut))
async def hold_places(
    pool: PoolCode,
    body: Annotated[HoldBody, Body(examples=[{"quantity": 2, "ttl_s": 900}])],
    asked: AskedOnce,
) -> HoldReceipt:
    """Set places aside for a while; dead at that instant if nobody confirms."""
    done = await asked.handle(HoldPlaces(pool=pool, quantity=body.quantity, ttl_s=body.ttl_s))
    held = done.facts[0].event
    assert isinstance(held, PlacesHeld)
    return HoldReceipt(
        hold_id=held.hold_id,
        pool=pool,
        quantity=held.quantity,
        expires_at=held.expires_at,
        version=done.facts[0].version,
        position=asked.token(done.position),
    )


@commands.post(
    "/pools/{pool}/holds/{hold_id}/confirm", responses=commanded(ENDED, HoldUnknown, created=False)
)
async def confirm_hold(pool: PoolCode, hold_id: HoldPath, asked: AskedOnce) -> HoldEnded:
    """Turn a live hold into a sale."""
    return await _ended(pool, hold_id, asked, ConfirmHold(pool=pool, hold_id=HoldId(hold_id)))


@commands.post(
    "/pools/{pool}/holds/{hold_id}/release", responses=commanded(ENDED, HoldUnknown, created=False)
)
async def release_hold(pool: PoolCode, hold_id: HoldPath, asked: AskedOnce) -> HoldEnded:
    """Give the places of a live hold back."""
    return await _ended(pool, hold_id, asked, ReleaseHold(pool=pool, hold_id=HoldId(hold_id)))


async def _ended(pool: str, hold_id: UUID, asked: AskedOnce, command: ConfirmHold | ReleaseHold) -> HoldEnded:
    done = await asked.handle(command)
    ended = done.facts[0].event
    assert isinstance(ended, HoldConfirmed | HoldReleased)
    return HoldEnded(
        hold_id=hold_id,
        pool=pool,
        at=ended.at,
        version=done.facts[0].version,
        position=asked.token(done.position),
    )


@commands.post(
    "/stock-adjustments",
    status_code=201,
    responses=commanded(RECEIPT_EXAMPLE, PoolUnknown, AdjustmentExists, AmountTooLarge, again=PaperReceipt),
)
async def adjust_stock(
    body: Annotated[PaperBody, Body(examples=[PAPER_EXAMPLE])], asked: AskedOnce
) -> PaperReceipt:
    """Record a paper of stock adjustments; below zero the stock shrinks, each title is a reason."""
    number = body.number(asked.key)
    adjustment_id = AdjustmentId(paper_id(asked.by.tenant, number, Paper.STOCK))
    command = AdjustStock(
        adjustment_id=adjustment_id, document=body.written_on(number), lines=body.all_lines()
    )
    fact, position = await asked.paper(command, f"adjustment-{adjustment_id}")
    assert isinstance(fact.event, AdjustmentRecorded)
    return PaperReceipt(
        id=adjustment_id,
        document=fact.event.document.number,
        exact=decimal_text(total_micro(fact.event.lines)),
        version=fact.version,
        position=position,
    )


@queries.get(
    "/pools",
    response_model=Page[PoolView],
    responses=answered(
        {
            "items": [
                {
                    "pool": "84077",
                    "capacity": 100000,
                    "taken": 54415,
                    "returned": 568,
                    "adjusted": 0,
                    "net_units": 53847,
                }
            ],
            "next": "/api/v1/pools?cursor=WyJ4Iiw4MTIzXQ",
        },
        CursorUnreadable,
    ),
)
async def pools(fresh: Fresh, limit: Limit = LIMIT, cursor: Cursor = None) -> Response:
    """Every pool with what was taken, returned and adjusted, by code."""
    start = after(cursor, "pools", "", a_code)
    told = await fresh.queries.run(
        POOL_LIST, fresh.tenant, {"after": start, "limit": limit + 1}, **fresh.how()
    )
    return paged(
        fresh,
        told,
        told.rows[0],
        limit,
        "pools",
        key=lambda row: row.pool,
        view=lambda row: PoolView(**row.model_dump()),
    )
