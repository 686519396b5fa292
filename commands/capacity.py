"""What may be asked of a pool of places."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from commands.handling import Boundary, Command, Moment, Read
from domain.capacity import (
    Adjustment,
    AdjustmentExists,
    AdjustmentRecorded,
    Capacity,
    HoldAlive,
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    Pool,
    PoolAlreadyOpen,
    PoolOpened,
    StockAdjusted,
    demand,
    pool_stream,
)
from domain.catalog import QUANTITY_MAX, Document, Line, total_micro
from domain.facts import Event
from domain.values import AdjustmentId, Code, HoldId, Permission

HOLD_S_MAX = 86_400
"""A hold that lives for more than a day is a sale."""


class PoolCommand(Command, permission=Permission.PLACES_HOLD):
    """Abstract: a request that concerns one pool."""

    pool: Code

    def read(self, log: Read) -> Boundary:
        return Boundary(pool=log(pool_stream(self.pool), Pool))


class OpenPool(PoolCommand, permission=Permission.POOL_OPEN):
    """Open a pool; without a capacity it has no ceiling."""

    capacity: Capacity | None = None

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        if pool.open:
            raise PoolAlreadyOpen(f"pool {self.pool}")
        return [PoolOpened(pool=self.pool, capacity=self.capacity)]


class HoldPlaces(PoolCommand, permission=Permission.PLACES_HOLD):
    """Set places aside for `ttl_s` seconds; dead at that instant if nobody confirms."""

    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    ttl_s: Annotated[int, Field(ge=1, le=HOLD_S_MAX)]

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        pool.require_places(self.pool, self.quantity, at.now)
        return [
            PlacesHeld(
                pool=self.pool,
                hold_id=HoldId(at.id(0)),
                quantity=self.quantity,
                at=at.now,
                expires_at=at.now + timedelta(seconds=self.ttl_s),
            )
        ]


class ConfirmHold(PoolCommand, permission=Permission.PLACES_HOLD):
    """Turn a live hold into a sale."""

    hold_id: HoldId

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        hold = pool.require_live(self.hold_id, at.now)
        return [HoldConfirmed(pool=self.pool, hold_id=self.hold_id, quantity=hold.quantity, at=at.now)]


class ReleaseHold(PoolCommand, permission=Permission.PLACES_HOLD):
    """Give the places of a live hold back."""

    hold_id: HoldId

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        pool.require_live(self.hold_id, at.now)
        return [HoldReleased(pool=self.pool, hold_id=self.hold_id, at=at.now)]


class ExpireHold(PoolCommand, permission=Permission.PLACES_HOLD):
    """Put on record that a hold's deadline has passed; nothing to say if it ended before."""

    hold_id: HoldId

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        hold = pool.holds.get(self.hold_id)
        if hold is None and self.hold_id not in pool.dead:
            return []
        if hold is not None and hold.expires_at > at.now:
            raise HoldAlive(f"until {hold.expires_at.isoformat()}")
        return [HoldExpired(pool=self.pool, hold_id=self.hold_id, at=at.now)]


class AdjustStock(Command, permission=Permission.STOCK_ADJUST):
    """Record a paper of stock adjustments; each line's title is its reason."""

    adjustment_id: AdjustmentId
    document: Document
    lines: Annotated[tuple[Line, ...], Field(min_length=1)]

    def read(self, log: Read) -> Boundary:
        return Boundary(
            adjustment=log.fresh(f"adjustment-{self.adjustment_id}", Adjustment),
            pools=log.each(map(pool_stream, demand(self.lines)), Pool),
        )

    def decide(self, at: Moment, *, adjustment: Adjustment, pools: dict[str, Pool]) -> Sequence[Event]:
        if adjustment.digest is not None:
            if adjustment.digest != self.document.digest:
                raise AdjustmentExists(f"adjustment {self.document.number}")
            return []
        total_micro(self.lines)
        facts: list[Event] = [
            AdjustmentRecorded(adjustment_id=self.adjustment_id, document=self.document, lines=self.lines)
        ]
        for line in self.lines:
            if line.charge:
                continue
            pools[pool_stream(line.code)].require_open(line.code)
            if line.quantity:
                facts.append(
                    StockAdjusted(
                        pool=line.code,
                        quantity=line.quantity,
                        reason=line.title,
                        adjustment_id=self.adjustment_id,
                    )
                )
        return facts
