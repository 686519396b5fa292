"""Catalog: what is offered, and the lines in which it is bought. Part of the shared kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NaiveDatetime

from domain.facts import Event
from domain.refusals import Conflict, NotFound
from domain.values import MICRO_MAX, Code, Currency, Micro, Text, Value

Delivery = Literal["goods", "admission", "lesson", "course", "download", "mint", "subscription"]
QUANTITY_MAX = 2**31 - 1
Quantity = Annotated[int, Field(ge=-QUANTITY_MAX, le=QUANTITY_MAX)]


class Document(Value):
    """The paper a sale was written on: an invoice, a credit note, an adjustment."""

    number: Code
    digest: Text
    """Of the whole paper as its source had it: the same number with another digest is another paper."""
    customer: Text | None
    country: Text
    currency: Currency
    placed_at: NaiveDatetime
    """Business time, local to the shop and without a zone; the recorded time is the log's own."""


class Line(Value):
    """What, how many, and at what exact price; `quantity` below zero comes back or is written off."""

    code: Code
    title: Text
    quantity: Quantity
    unit_price_micro: Micro
    charge: bool = False
    """Postage, fees and the like: money without goods, so no pool moves."""
    placed_at: NaiveDatetime | None = None
    """Where it differs from the document's own."""

    @property
    def amount_micro(self) -> int:
        return self.quantity * self.unit_price_micro


class OfferListed(Event, name="catalog.offer-listed"):
    offer: Code
    title: Text
    delivery: Delivery
    pool: Code

    @property
    def stream(self) -> str:
        return f"offer-{self.offer}"


class SlugClaimed(Event, name="catalog.slug-claimed"):
    """A value that may be used once: the stream's name is its keyed hash, so nothing is readable."""

    claim: Text
    offer: Code

    @property
    def stream(self) -> str:
        return self.claim


class OfferAlreadyListed(Conflict):
    """An offer with this code is listed already."""


class SlugTaken(Conflict):
    """Another offer has this slug."""


class OfferUnknown(NotFound):
    """No offer is listed under this code."""


class AmountTooLarge(Conflict):
    """The amounts or quantities are larger than the books can carry."""


@dataclass(slots=True)
class Offer:
    listed: bool = False

    def apply(self, event: Event) -> None:
        if isinstance(event, OfferListed):
            self.listed = True


@dataclass(slots=True)
class Claim:
    """Whether a value is taken, and by which offer."""

    owner: str | None = None

    def apply(self, event: Event) -> None:
        if isinstance(event, SlugClaimed):
            self.owner = event.offer


def total_micro(lines: tuple[Line, ...]) -> int:
    """The exact sum of the lines, or a refusal where the books could not carry it."""
    total = sum(line.amount_micro for line in lines)
    if abs(total) > MICRO_MAX or any(abs(line.amount_micro) > MICRO_MAX for line in lines):
        raise AmountTooLarge(f"{total} millionths")
    return total


EVENTS = (OfferListed, SlugClaimed)
