"""Capacity: the places that back an offer, capped or not. Part of the shared kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from typing import Annotated, ClassVar

from pydantic import Field

from domain.catalog import QUANTITY_MAX, AmountTooLarge, Document, Line, Quantity
from domain.facts import Event
from domain.refusals import Conflict, NotFound
from domain.values import AdjustmentId, Code, HoldId, OrderId, ReturnId, Text

Capacity = Annotated[int, Field(ge=0, le=QUANTITY_MAX)]


class PoolFact(Event, name="capacity.pool-fact"):
    """Abstract: what happens to one pool."""

    pool: Code

    @property
    def stream(self) -> str:
        return pool_stream(self.pool)


class PoolOpened(PoolFact, name="capacity.pool-opened"):
    capacity: Capacity | None
    """None: no ceiling, moves are booked and nothing is refused."""


class PlacesTaken(PoolFact, name="capacity.places-taken"):
    """Sold outright, without a hold before."""

    quantity: Quantity
    order_id: OrderId


class PlacesReturned(PoolFact, name="capacity.places-returned"):
    quantity: Quantity
    return_id: ReturnId


class StockAdjusted(PoolFact, name="capacity.stock-adjusted"):
    """Counted, damaged, lost or found; below zero the stock shrinks."""

    quantity: Quantity
    reason: Text
    adjustment_id: AdjustmentId


class PlacesHeld(PoolFact, name="capacity.places-held"):
    """Set aside until `expires_at`; dead at that instant, whether or not anything has said so."""

    hold_id: HoldId
    quantity: Quantity
    at: datetime
    expires_at: datetime


class HoldConfirmed(PoolFact, name="capacity.hold-confirmed"):
    hold_id: HoldId
    quantity: Quantity
    at: datetime


class HoldReleased(PoolFact, name="capacity.hold-released"):
    hold_id: HoldId
    at: datetime


class HoldExpired(PoolFact, name="capacity.hold-expired"):
    """Said by the deadlines' ticker, for the record; the hold was dead before."""

    hold_id: HoldId
    at: datetime


class AdjustmentRecorded(Event, name="capacity.adjustment-recorded"):
    """The paper of a stock adjustment, with its lines; the pools' own facts stand beside it."""

    adjustment_id: AdjustmentId
    document: Document
    lines: tuple[Line, ...]

    @property
    def stream(self) -> str:
        return f"adjustment-{self.adjustment_id}"


class PoolUnknown(NotFound):
    """No pool is open under this code."""


class PoolAlreadyOpen(Conflict):
    """A pool is open under this code already."""


class SoldOut(Conflict):
    """Fewer places are left than were asked for."""


class HoldUnknown(NotFound):
    """The pool has no live hold of this id: it never was, has ended, or is past its deadline."""


class HoldAlive(Conflict):
    """The hold's deadline has not come yet."""


class AdjustmentExists(Conflict):
    """An adjustment of this number was recorded with other content."""


@dataclass(slots=True)
class Hold:
    quantity: int
    expires_at: datetime


@dataclass(slots=True)
class Pool:
    """What a decision needs to know about a pool."""

    snapshot_name: ClassVar[str] = "capacity.pool"
    snapshot_version: ClassVar[int] = 1

    open: bool = False
    capacity: int | None = None
    used: int = 0
    """Taken and confirmed, less returned, less what adjustments added."""
    holds: dict[HoldId, Hold] = field(default_factory=dict)
    held: int = field(default=0, repr=False)
    """Places of all `holds`."""
    deadlines: list[tuple[datetime, HoldId]] = field(default_factory=list, repr=False)
    """A heap over the holds, and some that ended early: many cost no more than few."""
    dead: set[HoldId] = field(default_factory=set)
    """Past their deadline, and their end not on record yet: no rule but that of `ExpireHold` reads them."""

    def apply(self, event: Event) -> None:
        match event:
            case PlacesTaken():
                self.used += event.quantity
            case PlacesReturned():
                self.used -= event.quantity
            case StockAdjusted():
                self.used -= event.quantity
            case PoolOpened():
                self.open, self.capacity = True, event.capacity
            case PlacesHeld():
                self._bury(event.at)
                self.holds[event.hold_id] = Hold(event.quantity, event.expires_at)
                self.held += event.quantity
                heappush(self.deadlines, (event.expires_at, event.hold_id))
            case HoldConfirmed():
                self._end(event.hold_id)
                self.used += event.quantity
                self._bury(event.at)
            case HoldReleased() | HoldExpired():
                self._end(event.hold_id)
                self.dead.discard(event.hold_id)
                self._bury(event.at)

    def _end(self, hold_id: HoldId) -> Hold | None:
        hold = self.holds.pop(hold_id, None)
        if hold is not None:
            self.held -= hold.quantity
        return hold

    def _bury(self, at: datetime) -> None:
        while self.deadlines and self.deadlines[0][0] <= at:
            _, hold_id = heappop(self.deadlines)
            if self._end(hold_id) is not None:
                self.dead.add(hold_id)

    def _live(self, now: datetime) -> int:
        """Places of the holds that are alive at `now`: all but those at the top of the heap."""
        live, look = self.held, [0]
        while look:
            nth = look.pop()
            if nth < len(self.deadlines) and self.deadlines[nth][0] <= now:
                hold = self.holds.get(self.deadlines[nth][1])
                live -= 0 if hold is None else hold.quantity
                look += (2 * nth + 1, 2 * nth + 2)
        return live

    def require_open(self, pool: Code) -> None:
        if not self.open:
            raise PoolUnknown(f"pool {pool}")

    def require_places(self, pool: Code, quantity: int, now: datetime) -> None:
        """Refuse when fewer than `quantity` are free at `now`; live holds are not free.

        What comes back is never refused, not even by a pool that adjustments left over its capacity.
        """
        self.require_open(pool)
        if self.capacity is None or quantity <= 0:
            return
        left = self.capacity - self.used - self._live(now)
        if quantity > left:
            raise SoldOut(f"pool {pool}: {max(left, 0)} left, {quantity} asked for")

    def require_live(self, hold_id: HoldId, now: datetime) -> Hold:
        hold = self.holds.get(hold_id)
        if hold is None or hold.expires_at <= now:
            raise HoldUnknown(f"hold {hold_id}")
        return hold


@dataclass(slots=True)
class Adjustment:
    digest: str | None = None

    def apply(self, event: Event) -> None:
        if isinstance(event, AdjustmentRecorded):
            self.digest = event.document.digest


def pool_stream(pool: Code) -> str:
    return f"pool-{pool}"


def demand(lines: tuple[Line, ...]) -> dict[Code, int]:
    """Units asked of each pool, summed, so that two lines on one pool cannot each pass alone.

    Refuses a sum that no fact could carry.
    """
    asked: dict[Code, int] = {}
    for line in lines:
        if not line.charge:
            asked[line.code] = asked.get(line.code, 0) + line.quantity
    for code, quantity in asked.items():
        if abs(quantity) > QUANTITY_MAX:
            raise AmountTooLarge(f"pool {code}: {quantity} places")
    return asked


EVENTS = (
    PoolOpened,
    PlacesTaken,
    PlacesReturned,
    StockAdjusted,
    PlacesHeld,
    HoldConfirmed,
    HoldReleased,
    HoldExpired,
    AdjustmentRecorded,
)
