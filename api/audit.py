"""The state of the read models over HTTP: how far each is, and what it could not take."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from api.dependencies import (
    ALLOWED,
    LIMIT,
    Cursor,
    Fresh,
    Limit,
    Page,
    a_position,
    after,
    answered,
    paged,
)
from api.problems import CursorUnreadable
from infra.queries import Told

queries = APIRouter(tags=["audit"], dependencies=ALLOWED)

PROJECTION = {
    "projection": "ordering",
    "engine": "postgres",
    "version": 1,
    "complete_through": "0.1:8123",
    "lag": 0,
    "lag_s": 0.0,
    "parked": 0,
}
PARKED = {
    "engine": "postgres",
    "projection": "ordering",
    "stream": "order-3b7a0c52-5b8f-5a9b-9a53-0f6b9f1c0d7e",
    "position": "0.1:8123",
    "reason": "ValueError: no such currency",
    "parked_at": "2026-01-01T12:00:00Z",
}


class ProjectionView(BaseModel):
    projection: str
    engine: str
    version: int = Field(description="Of its tables, as shown.")
    complete_through: str
    lag: int = Field(description="Positions to the log's head.")
    lag_s: float = Field(description="For how long it has been behind, as far as this process has seen.")
    parked: int


class Projections(BaseModel):
    position: str = Field(description="The log's head.")
    relayed_through: str
    items: list[ProjectionView]


class ParkedView(BaseModel):
    engine: str
    projection: str
    stream: str
    position: str
    reason: str
    parked_at: datetime


@queries.get(
    "/projections",
    response_model=Projections,
    responses=answered({"position": "0.1:8123", "relayed_through": "0.1:8123", "items": [PROJECTION]}),
)
async def projections(fresh: Fresh) -> Response:
    """Every projection in every engine: its version, and how far it is behind the log."""
    desk = await fresh.queries.desk.recent()
    lags = await fresh.queries.lags()

    items = [
        ProjectionView(
            projection=lag.projection,
            engine=lag.engine,
            version=lag.version,
            complete_through=fresh.token(lag.complete_through),
            lag=lag.lag,
            lag_s=lag.lag_s,
            parked=lag.parked,
        )
        for lag in lags
    ]
    through = min(lag.complete_through for lag in lags)
    body = Projections(
        position=fresh.token(desk.position), relayed_through=fresh.token(desk.through), items=items
    )
    return fresh.answer(Told([], through, desk.epoch, 0), body)


@queries.get(
    "/parked",
    response_model=Page[ParkedView],
    responses=answered({"items": [PARKED], "next": "/api/v1/parked?cursor=WyJ4Iiw4MTIzXQ"}, CursorUnreadable),
)
async def parked(fresh: Fresh, limit: Limit = LIMIT, cursor: Cursor = None) -> Response:
    """The facts that a projection or a reaction could not take, with the reason, oldest first."""
    start = after(cursor, "parked", (0, "", ""), _place)
    found = await fresh.queries.parked(fresh.tenant, start, limit + 1)
    lags = await fresh.queries.lags()
    told = Told([], min(lag.complete_through for lag in lags), fresh.epoch, len(found[:limit]))
    return paged(
        fresh,
        told,
        found,
        limit,
        "parked",
        key=lambda row: (row.position, row.engine, row.projection),
        view=lambda row: ParkedView(**{**row.model_dump(), "position": fresh.token(row.position)}),
    )


def _place(key: Any) -> tuple[int, str, str]:
    position, engine, name = key
    if not isinstance(engine, str) or not isinstance(name, str) or "\0" in engine + name:
        raise ValueError
    return a_position(position), engine, name
