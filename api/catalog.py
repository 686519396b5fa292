"""Catalog over HTTP: list an offer, see what is on offer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Response
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
from api.problems import CursorUnreadable
from commands.catalog import ListOffer
from domain.capacity import Capacity
from domain.catalog import Delivery, OfferAlreadyListed, SlugTaken
from domain.values import Code, Text
from projections.catalog import OFFER_LIST

commands = APIRouter(tags=["catalog"], dependencies=ALLOWED)
queries = APIRouter(tags=["catalog"], dependencies=ALLOWED)

OFFER = {"offer": "85123A", "title": "WHITE HANGING HEART T-LIGHT HOLDER", "delivery": "goods"}


class OfferBody(papers.Body):
    offer: Code
    title: Text
    delivery: Delivery = "goods"
    capacity: Capacity | None = Field(default=None, description="Places in its pool; null has no ceiling.")
    slug: Text | None = Field(default=None, description="A readable name that only one offer may have.")


class OfferReceipt(BaseModel):
    offer: str
    pool: str
    version: int
    position: str


class OfferView(BaseModel):
    offer: str
    title: str
    delivery: str
    pool: str


@commands.post(
    "/offers",
    status_code=201,
    responses=commanded(
        {"offer": "85123A", "pool": "85123A", "version": 1, "position": "0.1:8123"},
        OfferAlreadyListed,
        SlugTaken,
    ),
)
async def list_offer(body: Annotated[OfferBody, Body(examples=[OFFER])], asked: AskedOnce) -> OfferReceipt:
    """List an offer and open the pool behind it, unless that pool is open already."""
    done = await asked.handle(
        ListOffer(
            offer=body.offer, title=body.title, delivery=body.delivery, capacity=body.capacity, slug=body.slug
        )
    )
    listed = next(fact for fact in done.facts if fact.stream.startswith("offer-"))
    return OfferReceipt(
        offer=body.offer, pool=body.offer, version=listed.version, position=asked.token(done.position)
    )


@queries.get(
    "/offers",
    response_model=Page[OfferView],
    responses=answered(
        {"items": [{**OFFER, "pool": "85123A"}], "next": "/api/v1/offers?cursor=WyJ4Iiw4MTIzXQ"},
        CursorUnreadable,
    ),
)
async def offers(fresh: Fresh, limit: Limit = LIMIT, cursor: Cursor = None) -> Response:
    """What is on offer, by code."""
    start = after(cursor, "offers", "", a_code)
    told = await fresh.queries.run(
        OFFER_LIST, fresh.tenant, {"after": start, "limit": limit + 1}, **fresh.how()
    )
    return paged(
        fresh,
        told,
        told.rows[0],
        limit,
        "offers",
        key=lambda row: row.offer,
        view=lambda row: OfferView(**row.model_dump()),
    )
