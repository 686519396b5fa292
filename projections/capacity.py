"""How many places each pool has given away, taken back and set aside."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from domain.capacity import (
    HoldConfirmed,
    HoldExpired,
    HoldReleased,
    PlacesHeld,
    PlacesReturned,
    PlacesTaken,
    PoolOpened,
    StockAdjusted,
)
from domain.facts import Recorded
from domain.values import Value
from projections.rows import Add, Big, Delete, Projection, Put, Query, RowOp, Table


class PoolRow(Value):
    pool: str
    capacity: int | None


class PoolUnitsRow(Value):
    pool: str
    taken: Big = 0
    returned: Big = 0
    adjusted: Big = 0


class HoldRow(Value):
    hold_id: UUID
    pool: str
    quantity: int
    expires_at: datetime
    """Dead at that instant: a query that asks what is live compares it with now."""


class PoolUnits(Value):
    """A pool as people see it."""

    pool: str
    capacity: int | None
    taken: int
    returned: int
    adjusted: int
    net_units: int


class UnitsOfPool(Value):
    code: str
    net_units: int


POOLS = Table("pools", PoolRow, key=("pool",))
POOL_UNITS = Table("pool_units", PoolUnitsRow, key=("pool",), sums=("taken", "returned", "adjusted"))
HOLDS = Table("holds", HoldRow, key=("hold_id",))

POOL_LIST = Query(
    PoolUnits,
    (("capacity", POOLS), ("capacity", POOL_UNITS)),
    "SELECT p.pool, p.capacity, coalesce(u.taken, 0) AS taken, coalesce(u.returned, 0) AS returned,"
    " coalesce(u.adjusted, 0) AS adjusted,"
    " coalesce(u.taken - u.returned + u.adjusted, 0) AS net_units"
    " FROM {pools} p LEFT JOIN {pool_units} u USING (pool)"
    " WHERE p.pool > %(after)s ORDER BY p.pool LIMIT %(limit)s",
)

NET_UNITS = Query(
    UnitsOfPool,
    (("capacity", POOL_UNITS),),
    "SELECT pool AS code, (taken - returned + adjusted)::bigint AS net_units FROM {pool_units}"
    " WHERE pool = ANY(%(codes)s) ORDER BY pool",
)


def project(recorded: Recorded) -> list[RowOp]:
    match recorded.event:
        case PlacesTaken() as taken:
            return [Add(POOL_UNITS, (taken.pool,), {"taken": taken.quantity})]
        case PlacesReturned() as returned:
            return [Add(POOL_UNITS, (returned.pool,), {"returned": returned.quantity})]
        case StockAdjusted() as adjusted:
            return [Add(POOL_UNITS, (adjusted.pool,), {"adjusted": adjusted.quantity})]
        case PoolOpened() as opened:
            return [Put(POOLS, PoolRow(pool=opened.pool, capacity=opened.capacity))]
        case PlacesHeld() as held:
            row = HoldRow(
                hold_id=held.hold_id, pool=held.pool, quantity=held.quantity, expires_at=held.expires_at
            )
            return [Put(HOLDS, row)]
        case HoldConfirmed() as confirmed:
            return [
                Delete(HOLDS, (confirmed.hold_id,)),
                Add(POOL_UNITS, (confirmed.pool,), {"taken": confirmed.quantity}),
            ]
        case HoldReleased() | HoldExpired() as ended:
            return [Delete(HOLDS, (ended.hold_id,))]
        case _:
            return []


PROJECTION = Projection(
    "capacity",
    (
        PoolOpened,
        PlacesTaken,
        PlacesReturned,
        StockAdjusted,
        PlacesHeld,
        HoldConfirmed,
        HoldReleased,
        HoldExpired,
    ),
    (POOLS, POOL_UNITS, HOLDS),
    project,
)
