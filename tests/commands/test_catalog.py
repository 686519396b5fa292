"""Offers are listed once, with a pool behind them; a slug is used once across all of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from commands.catalog import ListOffer
from domain.capacity import PoolOpened
from domain.catalog import Delivery, OfferAlreadyListed, OfferListed, SlugClaimed, SlugTaken
from tests.spec import TENANT, Scenario, given


def list_offer(offer: str = "heart", *, slug: str | None = None, capacity: int | None = None) -> ListOffer:
    return ListOffer(offer=offer, title="White heart", slug=slug, capacity=capacity)


def listed(offer: str = "heart", delivery: Delivery = "goods") -> OfferListed:
    return OfferListed(offer=offer, title="White heart", delivery=delivery, pool=offer)


def opened(offer: str = "heart", capacity: int | None = None) -> PoolOpened:
    return PoolOpened(pool=offer, capacity=capacity)


def claimed(scenario: Scenario, slug: str, offer: str = "heart") -> SlugClaimed:
    return SlugClaimed(claim=scenario.log.claim(TENANT, "slug", slug), offer=offer)


def test_an_offer_is_listed_with_a_pool_behind_it() -> None:
    given().when(list_offer(capacity=40)).then(listed(), opened(capacity=40))


def test_an_offer_without_a_capacity_has_a_pool_without_a_ceiling() -> None:
    given().when(list_offer()).then(listed(), opened())


def test_a_pool_that_is_open_already_stays_as_it_is() -> None:
    given(opened(capacity=7)).when(list_offer(capacity=40)).then(listed())


def test_an_offer_is_listed_once() -> None:
    given(listed()).when(list_offer()).refused(OfferAlreadyListed)


def test_a_slug_is_used_once_across_offers() -> None:
    shop = given()
    shop.when(list_offer(slug="white-heart")).then(claimed(shop, "white-heart"), listed(), opened())
    shop.when(list_offer("lantern", slug="white-heart")).refused(SlugTaken)
    shop.when(list_offer("lantern", slug="lantern")).then(
        claimed(shop, "lantern", "lantern"), listed("lantern"), opened("lantern")
    )


@pytest.mark.parametrize("capacity", [-1, 2**31])
def test_a_capacity_below_zero_or_beyond_counting_cannot_be_asked_for(capacity: int) -> None:
    with pytest.raises(ValidationError):
        list_offer(capacity=capacity)


def test_only_known_ways_of_delivery_can_be_asked_for() -> None:
    with pytest.raises(ValidationError):
        ListOffer.model_validate({"offer": "heart", "title": "", "delivery": "pigeon"})
