"""The log, as handling needs it: what is appended, what comes of it, and what is read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from commands.snapshots import Form, Recalled, Snapshot
from domain.facts import Envelope, Event, Recorded


@dataclass(frozen=True, slots=True)
class Append:
    """One command's facts, with everything it read at the versions it read them."""

    envelope: Envelope
    digest: bytes
    command: str
    versions: Mapping[str, int]
    facts: Sequence[Event]
    at: datetime
    spends: bool = True
    """False for a refusal, which only asks whether what it rests on still stands: it leaves no mark."""
    epoch: int = 0
    """Of the ledger when it was read; 0 believes whatever it is now."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Recorded; or, for a refusal, confirmed."""

    facts: tuple[Recorded, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The key was used before: by this request if the digests agree."""

    digest: bytes
    position: int
    count: int


@dataclass(frozen=True, slots=True)
class Stale:
    """Something that was read has moved on; these are the newer facts of those streams.

    Without any, the ledger was restored: what was read is void.
    """

    newer: tuple[Recorded, ...]


@dataclass(frozen=True, slots=True)
class Undone:
    """An append that this one follows was not recorded."""


Outcome = Appended | Spent | Stale | Undone


class Pending(Protocol):
    """An append on its way. Appends are taken in the order in which they were submitted."""

    @property
    def settled(self) -> bool: ...
    @property
    def failed(self) -> bool:
        """Settled, and nothing was recorded by it."""
        ...

    def result(self) -> Outcome:
        """Wait for it. Raises the log's faults."""
        ...

    def __await__(self) -> Generator[Any, Any, Outcome]: ...


class Settled:
    """An append whose outcome is known at once."""

    settled = True

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    @property
    def failed(self) -> bool:
        return not isinstance(self.outcome, Appended)

    def result(self) -> Outcome:
        return self.outcome

    def __await__(self) -> Generator[Any, Any, Outcome]:
        yield from ()
        return self.outcome


class Log(Protocol):
    """One ledger's log, as `handle` needs it. Contract: tests/infra/test_log_contract.py."""

    @property
    def epoch(self) -> int:
        """The ledger's, as far as is known here; 0 before anything was read. What was read in another one is
        void."""
        ...

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        """The facts of each stream past a version, in order within each stream."""
        ...

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        """The facts of each stream that a state of this form still needs; without a form, all of them.

        In one round trip, but for a snapshot that was spoilt.
        """
        ...

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        """Take a snapshot and keep it, when there is time; or never. Nobody waits, nobody is told."""
        ...

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> Pending:
        """All or nothing, with no round trip while the head row is locked; does not wait.

        `follows`: appends that were not settled when this one was decided, and whose facts it counts on.
        Raises Overloaded when more waits already than there is room for.
        """
        ...

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        """The facts of one command, by position."""
        ...

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        """Wait for one's turn among the writers of these streams; those of one process share a turn."""
        ...

    def claim(self, tenant: str, kind: str, value: str) -> str:
        """The claim stream of a value: a hash under the ledger's key."""
        ...


class Busy(Exception):
    """A fault, not a refusal: other writers kept getting there first. Try again."""


class Overloaded(Busy):
    """A fault: more commands wait for the log than there is room for. Try again in a while."""
