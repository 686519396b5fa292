"""What a projector needs of a store, whichever it is: marks, rows and parked facts that commit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from domain.facts import Recorded
from infra.ledger import Place
from infra.mapper import StoredFact


class Follower(Protocol):
    """Whatever takes facts in: a projection, or a reaction."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> frozenset[str]: ...
    @property
    def contexts(self) -> frozenset[str]: ...
    def take(self, recorded: Recorded) -> Sequence[Any]:
        """What the fact asks for; pure. Whatever it raises parks the fact's stream."""
        ...


Taken = tuple[StoredFact, Recorded, Sequence[Any]]
"""A fact, decoded, with what its follower made of it."""


class Refused(Exception):
    """The store will not take what some fact of a unit asks for: not now, not ever."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Held:
    """Where a follower stands, held until its unit ends: no other owner gets past it."""

    version: int
    """Of its tables: the one that is shown."""
    marks: dict[Place, int]
    """The last position taken in, by partition."""
    parked: set[str]
    """Streams (tenant/stream) with a fact it could not take."""


Wanted = tuple[Follower, Sequence[Place]]


Reached = tuple[Follower, int, dict[Place, int]]
"""A follower, the version it wrote to, and how far it has come."""


class Unit(Protocol):
    """One commit."""

    async def hold(self, wanted: Sequence[Wanted]) -> dict[str, Held]:
        """Read and hold the marks of some followers, by name; a new one starts where it should."""
        ...

    async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
        """Apply all. In a careful unit, raises Refused when the store will not, with none applied; elsewhere
        that may come to light only when the unit ends, and the whole unit is lost."""
        ...

    async def park(self, follower: Follower, place: Place, facts: Iterable[tuple[StoredFact, str]]) -> None:
        """Set facts aside, each with its reason."""
        ...

    async def parked_facts(
        self, follower: Follower, after: int, limit: int
    ) -> list[tuple[str, int, str, int]]:
        """(stream, position, topic, partition) past a position, oldest first, held until this unit ends.

        Waits for another unit that holds some of them, so that a stream's facts are never taken out of turn.
        """
        ...

    async def unpark(self, follower: Follower, facts: Iterable[StoredFact]) -> None:
        """They have been taken after all."""
        ...

    async def mark(self, reached: Sequence[Reached]) -> None:
        """Move marks; they never go back."""
        ...


class Sink(Protocol):
    """A store of read models. Contract: tests/streams/test_projector.py runs on every one."""

    def unit(self, *, careful: bool = False) -> AbstractAsyncContextManager[Unit]:
        """A careful unit survives a refusal, at the price of more round trips; another raises Refused, at its
        end at the latest."""
        ...

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        """Positions by (name, topic, partition), of shown versions, read without holding anything."""
        ...
