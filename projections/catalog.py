"""What is on offer."""

from __future__ import annotations

from domain.catalog import OfferListed
from domain.facts import Recorded
from domain.values import Value
from projections.rows import Projection, Put, Query, RowOp, Table


class OfferRow(Value):
    offer: str
    title: str
    delivery: str
    pool: str


OFFERS = Table("offers", OfferRow, key=("offer",))

OFFER_LIST = Query(
    OfferRow,
    (("catalog", OFFERS),),
    "SELECT * FROM {offers} WHERE offer > %(after)s ORDER BY offer LIMIT %(limit)s",
)


def project(recorded: Recorded) -> list[RowOp]:
    match recorded.event:
        case OfferListed() as listed:
            row = OfferRow(offer=listed.offer, title=listed.title, delivery=listed.delivery, pool=listed.pool)
            return [Put(OFFERS, row)]
        case _:
            return []


PROJECTION = Projection("catalog", (OfferListed,), (OFFERS,), project)
