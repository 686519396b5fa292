"""What a projector needs of a store, whichever it is: marks, rows and parked facts that commit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from domain.facts import Recorded
from infra.ledger import Place
from infra.mapper import StoredFact


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a follower has come in a partition, in which version of its tables."""

    version: int
    position: int


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
    """The store will not take what this fact asks for: not now, not ever."""

    def __init__(self, fact: StoredFact, reason: str) -> None:
        super().__init__(reason)
        self.fact, self.reason = fact, reason


class Unit(Protocol):
    """One commit."""

    async def marks(self, follower: Follower, places: Sequence[Place]) -> dict[Place, Mark]:
        """Read and hold the marks; no other owner gets past them before this unit ends."""
        ...

    async def parked(self, follower: Follower) -> set[str]:
        """Streams (tenant/stream) with a fact this follower could not take."""
        ...

    async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
        """Apply all, or raise Refused for one of them with none applied."""
        ...

    async def park(self, follower: Follower, place: Place, facts: Iterable[tuple[StoredFact, str]]) -> None:
        """Set facts aside, each with its reason."""
        ...

    async def parked_facts(self, follower: Follower, limit: int) -> list[tuple[str, int, str, int]]:
        """(stream, position, topic, partition), oldest first, held until this unit ends."""
        ...

    async def unpark(self, follower: Follower, facts: Iterable[StoredFact]) -> None:
        """They have been taken after all."""
        ...

    async def mark(self, follower: Follower, version: int, reached: dict[Place, int]) -> None: ...


class Sink(Protocol):
    """A store of read models. Contract: tests/streams/test_projector.py runs on every one."""

    def unit(self) -> AbstractAsyncContextManager[Unit]: ...

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        """Positions by (name, topic, partition), of shown versions, read without holding anything."""
        ...
