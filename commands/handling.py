"""The one way a command becomes facts: read, decide, append, and once only."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, TypeVar, cast
from uuid import UUID, uuid5

from domain.facts import KEY, Envelope, Event, Recorded
from domain.refusals import Conflict, Forbidden, Invalid, Refusal
from domain.values import Permission, Value

FACTS_MAX = 5_000
"""Facts of one command: the largest invoice of the demo needs 1,115."""
STREAMS_MAX = 2_000
"""Streams in one boundary: each is checked while the head row is locked."""
ATTEMPTS_MAX = 200
"""Decisions before a contended command is given up with Busy, a fifth of a second or more later.

Whoever has a turn still races those who have not met a conflict yet: eight writers in full run on one
stream were measured to need 25.
"""
CONFLICTS_MAX = 2
"""Conflicts before a writer takes turns with the others on what they contend for."""
REMEMBERED_MAX = 20_000
"""States kept in memory: a shop's pools, about 1 KB each."""


class KeyReused(Conflict):
    """This idempotency key was used for a different request."""


class BadKey(Invalid):
    """An idempotency key has 1 to 200 characters and no control characters."""


class NotPermitted(Forbidden):
    """The actor lacks the permission that this command needs."""


class TooManyFacts(Invalid):
    """The command would record more facts than one command may."""


class TooManyStreams(Invalid):
    """The command would read more streams than one command may."""


class Busy(Exception):
    """A fault, not a refusal: other writers kept getting there first. Try again."""


class UnreadStream(Exception):
    """A bug: a decision wrote a stream that its boundary does not hold."""


class State(Protocol):
    """Mutable while it is folded, read-only to `decide`; holds what some rule reads and no more."""

    def apply(self, event: Event) -> None: ...


S = TypeVar("S", bound=State)


class Boundary(dict[str, Any]):
    """What a decision may look at, by the names of `decide`'s keyword arguments."""


class Read(Protocol):
    """Hands a command the states it asks for; everything asked for is pinned at its version."""

    def __call__(self, stream: str, state: type[S]) -> S: ...

    def each(self, streams: Iterable[str], state: type[S]) -> dict[str, S]:
        """Many streams in one round trip."""
        ...

    def fresh(self, stream: str, state: type[S]) -> S:
        """A stream that ought to be new: pinned at version 0 without a look; the append knows better."""
        ...

    def claim(self, kind: str, value: str) -> str:
        """The stream that stands for a value which may be used once; a keyed hash, nothing readable."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Now and ids, the same however often the decision is taken again."""

    now: datetime
    command_id: UUID

    def id(self, number: int) -> UUID:
        return uuid5(self.command_id, f"id-{number}")


class Command(Value):
    """A request named in the imperative; one class holds its inputs, its permission and its rule."""

    permission: ClassVar[Permission]

    def __init_subclass__(cls, *, permission: Permission, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.permission = permission

    def read(self, log: Read) -> Boundary:
        """Ask for every state the decision needs, in steps if need be."""
        raise NotImplementedError

    def decide(self, at: Moment, *_: Any, **states: Any) -> Sequence[Event]:
        """Pure: the facts, or a refusal."""
        raise NotImplementedError

    def digest(self) -> bytes:
        """Of the request's whole content, to tell a retry from another request under the same key."""
        return hashlib.sha256(type(self).__name__.encode() + b"\n" + self.model_dump_json().encode()).digest()


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, for which tenant, and what they may do."""

    tenant: str
    name: str
    permissions: frozenset[Permission]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to: the position to read at least, and its facts as recorded."""

    position: int
    """The last of its facts, or where the log stood when there were none."""
    facts: tuple[Recorded, ...]
    replayed: bool


# ── the port ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Append:
    """One command's facts, with everything it read at the versions it read them."""

    envelope: Envelope
    digest: bytes
    command: str
    versions: Mapping[str, int]
    facts: Sequence[Event]
    at: datetime


@dataclass(frozen=True, slots=True)
class Appended:
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
    """Something that was read has moved on; these are the newer facts of those streams."""

    newer: tuple[Recorded, ...]


class Log(Protocol):
    """One ledger's log, as `handle` needs it. Contract: tests/infra/test_log_contract.py."""

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        """The facts of each stream past a version, in order within each stream."""
        ...

    def append(self, append: Append) -> Appended | Spent | Stale:
        """All or nothing, in one call, with no round trip while the head row is locked."""
        ...

    def spent(self, envelope: Envelope) -> Spent | None:
        """What the envelope's key was used for, if it was."""
        ...

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        """The facts of one command, by position."""
        ...

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        """Wait for one's turn among the writers of these streams."""
        ...

    def claim(self, tenant: str, kind: str, value: str) -> str:
        """The claim stream of a value: a hash under the ledger's key."""
        ...


# ── handling ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Remembered:
    state: State
    version: int
    at: datetime


EPOCH = datetime.fromtimestamp(0, UTC)


class Memory:
    """States by (tenant, stream, type), least recently used first out; a fold is paid for once."""

    def __init__(self, size_max: int = REMEMBERED_MAX) -> None:
        self.size_max = size_max
        self.states: OrderedDict[tuple[str, str, type[State]], Remembered] = OrderedDict()

    def recall(self, key: tuple[str, str, type[State]]) -> Remembered | None:
        found = self.states.get(key)
        if found is not None:
            self.states.move_to_end(key)
        return found

    def keep(self, key: tuple[str, str, type[State]], remembered: Remembered) -> None:
        self.states[key] = remembered
        while len(self.states) > self.size_max:
            self.states.popitem(last=False)


@dataclass(slots=True)
class Reading:
    """One attempt's boundary: every state handed out, from memory where memory has it."""

    log: Log
    tenant: str
    memory: Memory
    held: dict[str, list[Remembered]] = field(default_factory=dict)

    def __call__(self, stream: str, state: type[S]) -> S:
        return self.each((stream,), state)[stream]

    def each(self, streams: Iterable[str], state: type[S]) -> dict[str, S]:
        found: dict[str, S] = {}
        unknown: dict[str, int] = {}
        for stream in dict.fromkeys(streams):
            found[stream], known = self._hold(stream, state)
            if not known:
                unknown[stream] = 0
        if unknown:
            self.fold(self.log.read(self.tenant, unknown))
        return found

    def fresh(self, stream: str, state: type[S]) -> S:
        return self._hold(stream, state)[0]

    def _hold(self, stream: str, state: type[S]) -> tuple[S, bool]:
        remembered = self.memory.recall((self.tenant, stream, state))
        known = remembered is not None
        if remembered is None:
            remembered = Remembered(state(), 0, EPOCH)
            self.memory.keep((self.tenant, stream, state), remembered)
        self.held.setdefault(stream, []).append(remembered)
        if len(self.held) > STREAMS_MAX:
            raise TooManyStreams(f"more than {STREAMS_MAX:,} streams")
        return cast(S, remembered.state), known

    def claim(self, kind: str, value: str) -> str:
        return self.log.claim(self.tenant, kind, value)

    def fold(self, facts: Iterable[Recorded]) -> None:
        """Bring the states up to these facts; one already seen is passed over."""
        for fact in facts:
            for remembered in self.held.get(fact.stream, ()):
                if fact.version == remembered.version + 1:
                    remembered.state.apply(fact.event)
                    remembered.version, remembered.at = fact.version, fact.at

    def refresh(self, streams: Iterable[str]) -> bool:
        """Bring these streams up to the log; False if it is behind what memory has seen: it was restored.

        The last fact seen is asked for again, to tell a stream with nothing newer from one cut short.
        """
        versions = self.versions()
        known = {stream: versions[stream] for stream in streams if stream in versions}
        facts = self.log.read(self.tenant, {stream: max(seen - 1, 0) for stream, seen in known.items()})
        self.fold(facts)
        return {stream for stream, seen in known.items() if seen} <= {fact.stream for fact in facts}

    def versions(self) -> dict[str, int]:
        """The version each stream is pinned at: the least that any of its states has seen."""
        return {stream: min(r.version for r in states) for stream, states in self.held.items()}

    def latest(self) -> datetime:
        """The latest recorded time in the boundary."""
        return max((r.at for states in self.held.values() for r in states), default=EPOCH)


class Handler:
    """Handles commands one after another, deciding from memory and believing only the append.

    A refusal is believed only of states confirmed against the log during this very call.
    """

    def __init__(self, log: Log, clock: Callable[[], datetime], memory: Memory | None = None) -> None:
        self.log, self.clock = log, clock
        self.memory = Memory() if memory is None else memory
        self.lock = threading.Lock()

    def handle(
        self,
        command: Command,
        *,
        by: Actor,
        key: str,
        correlation: UUID | None = None,
        causation: UUID | None = None,
    ) -> Answer:
        """Record what `command` decides, once for this key.

        Raises its refusals, BadKey, KeyReused, NotPermitted, TooManyFacts, TooManyStreams; Busy when other
        writers kept getting there first; the log's own faults when it cannot be reached.
        """
        if command.permission not in by.permissions:
            raise NotPermitted(f"{command.permission} is needed")
        if not KEY.fullmatch(key):
            raise BadKey(f"{len(key)} characters")
        envelope = Envelope(by.tenant, by.name, key, correlation, causation)
        with self.lock:
            return self._settle(command, envelope, command.digest())

    def _settle(self, command: Command, envelope: Envelope, digest: bytes) -> Answer:
        confirmed: set[str] = set()
        contended: set[str] = set()
        mine: set[str] = set()
        conflicts = 0
        with ExitStack() as turn:
            for _ in range(ATTEMPTS_MAX):
                waited: set[str] = set()
                if conflicts >= CONFLICTS_MAX and contended != mine:
                    # Kept until settled: a turn given back between decisions loses to whoever is in full run.
                    turn.close()
                    waited = mine = contended.copy()
                    turn.enter_context(self.log.turn(envelope.tenant, mine))
                reading = Reading(self.log, envelope.tenant, self.memory)
                try:
                    outcome = self._attempt(command, envelope, digest, reading, refresh=waited)
                except Refusal:
                    doubtful = reading.held.keys() - confirmed
                    if doubtful:
                        if not reading.refresh(doubtful):
                            self.memory.states.clear()
                        confirmed |= doubtful
                        continue
                    spent = self.log.spent(envelope)
                    if spent is None:
                        raise
                    outcome = spent
                match outcome:
                    case Appended():
                        reading.fold(outcome.facts)
                        return Answer(outcome.position, outcome.facts, replayed=False)
                    case Spent():
                        return self._replay(envelope, digest, outcome)
                    case Stale():
                        conflicts += 1
                        if not outcome.newer:  # memory is ahead of the log: it was restored
                            self.memory.states.clear()
                        reading.fold(outcome.newer)
                        contended |= {fact.stream for fact in outcome.newer}
        raise Busy(f"{ATTEMPTS_MAX} decisions were overtaken; try again")

    def _attempt(
        self, command: Command, envelope: Envelope, digest: bytes, reading: Reading, refresh: set[str]
    ) -> Appended | Spent | Stale:
        boundary = command.read(reading)
        if refresh:
            reading.refresh(refresh)
            boundary = command.read(reading)  # what is read in steps may lead elsewhere now
        now = max(self.clock(), reading.latest())
        facts = command.decide(Moment(now, envelope.command_id), **boundary)
        if len(facts) > FACTS_MAX:
            raise TooManyFacts(f"{len(facts):,} facts, and a command may record {FACTS_MAX:,}")
        versions = reading.versions()
        for fact in facts:
            if fact.stream not in versions:
                raise UnreadStream(f"{type(command).__name__} wrote {fact.stream} without reading it")
        return self.log.append(Append(envelope, digest, type(command).__name__, versions, facts, now))

    def _replay(self, envelope: Envelope, digest: bytes, spent: Spent) -> Answer:
        if spent.digest != digest:
            raise KeyReused(f"key {envelope.key}")
        facts = self.log.recorded(envelope.tenant, spent.position - spent.count + 1, spent.count)
        return Answer(spent.position, facts, replayed=True)
