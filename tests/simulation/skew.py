"""A rule over two pools, for requests that read one and write the other: where write skew would show."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from commands.handling import Boundary, Command, Moment, Read
from domain.capacity import PlacesReturned, PlacesTaken, Pool, SoldOut, pool_stream
from domain.facts import Event
from domain.values import Code, OrderId, Permission, ReturnId

PAIR: tuple[Code, Code] = ("left", "right")
PAIR_MOST = 3
"""Taken of both together; each alone has no ceiling."""


class PairCommand(Command, permission=Permission.ORDER_PLACE):
    """Abstract: concerns one of the pair, and depends on the other."""

    pool: Code
    other: Code

    def read(self, log: Read) -> Boundary:
        return Boundary(
            pool=log(pool_stream(self.pool), Pool),
            other=log(pool_stream(self.other), Pool),
        )


class TakeOfPair(PairCommand, permission=Permission.ORDER_PLACE):
    def decide(self, at: Moment, *, pool: Pool, other: Pool) -> Sequence[Event]:
        if pool.used + other.used >= PAIR_MOST:
            raise SoldOut(f"{self.pool} and {self.other}")
        return [PlacesTaken(pool=self.pool, quantity=1, order_id=OrderId(UUID(int=1)))]


class GiveToPair(PairCommand, permission=Permission.ORDER_PLACE):
    def decide(self, at: Moment, *, pool: Pool, other: Pool) -> Sequence[Event]:
        if not pool.used:
            raise SoldOut(f"nothing of {self.pool} is taken")
        return [PlacesReturned(pool=self.pool, quantity=1, return_id=ReturnId(UUID(int=1)))]
