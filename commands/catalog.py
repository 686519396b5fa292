"""What may be asked of the catalog."""

from __future__ import annotations

from collections.abc import Sequence

from commands.handling import Boundary, Command, Moment, Read
from domain.capacity import Capacity, Pool, PoolOpened, pool_stream
from domain.catalog import Claim, Delivery, Offer, OfferAlreadyListed, OfferListed, SlugClaimed, SlugTaken
from domain.facts import Event
from domain.values import Code, Permission, Text


class ListOffer(Command, permission=Permission.OFFER_LIST):
    """List an offer and open the pool behind it, unless that pool is open already."""

    offer: Code
    title: Text
    delivery: Delivery = "goods"
    capacity: Capacity | None = None
    """Places in the pool; None has no ceiling."""
    slug: Text | None = None
    """A readable name that only one offer may have."""

    def read(self, log: Read) -> Boundary:
        claim = None if self.slug is None else log.claim("slug", self.slug)
        return Boundary(
            offer=log.fresh(f"offer-{self.offer}", Offer),
            pool=log.fresh(pool_stream(self.offer), Pool),
            claim=None if claim is None else (claim, log(claim, Claim)),
        )

    def decide(
        self, at: Moment, *, offer: Offer, pool: Pool, claim: tuple[str, Claim] | None
    ) -> Sequence[Event]:
        if offer.listed:
            raise OfferAlreadyListed(f"offer {self.offer}")
        facts: list[Event] = []
        if claim is not None:
            name, claimed = claim
            if claimed.owner is not None:
                raise SlugTaken(f"slug {self.slug}")
            facts.append(SlugClaimed(claim=name, offer=self.offer))
        facts.append(OfferListed(offer=self.offer, title=self.title, delivery=self.delivery, pool=self.offer))
        if not pool.open:
            facts.append(PoolOpened(pool=self.offer, capacity=self.capacity))
        return facts
