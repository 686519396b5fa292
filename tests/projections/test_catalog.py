"""What is on offer."""

from __future__ import annotations

from domain.catalog import OfferListed, SlugClaimed
from projections.catalog import OFFERS
from tests.projections.tables import after


def test_a_listed_offer_is_a_row_and_a_claimed_slug_is_none() -> None:
    shown = after(
        SlugClaimed(claim="claim-slug-0123", offer="85123A"),
        OfferListed(offer="85123A", title="White heart", delivery="goods", pool="85123A"),
    )
    assert shown.row(OFFERS) == {
        "offer": "85123A",
        "title": "White heart",
        "delivery": "goods",
        "pool": "85123A",
    }
