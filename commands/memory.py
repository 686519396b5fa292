"""States kept in memory, so that a fold is paid for once, and handed out to decisions as boundaries.

A state may be ahead of the log: facts that are on their way are applied as soon as another decision wants
the state, and that decision follows their append. What turns out not to be recorded spoils the states it was
applied to; they are dropped and folded anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar, cast

from commands import snapshots
from commands.log import Log, Pending
from commands.snapshots import Form, Recalled, State, form_of
from domain.facts import Event, Recorded
from domain.refusals import Invalid

EPOCH_UNKNOWN = 0
STREAMS_MAX = 2_000
"""Streams in one boundary: each is checked while the head row is locked."""
REMEMBERED_MAX = 20_000
"""States kept in memory: a shop's pools, about 1 KB each."""
EPOCH = datetime.fromtimestamp(0, UTC)


class TooManyStreams(Invalid):
    """The command would read more streams than one command may."""


S = TypeVar("S", bound=State)
Key = tuple[str, str, type[State]]
"""Tenant, stream, and what it is folded into."""


class Unloaded(Exception):
    """A boundary asked for streams that memory does not hold: load them and read again."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(f"{len(keys)} streams")
        self.keys = keys


@dataclass(slots=True)
class Decided:
    """Facts on their way to one stream."""

    pending: Pending
    events: list[Event]
    at: datetime


@dataclass(slots=True)
class Remembered:
    key: Key
    state: State
    version: int = 0
    at: datetime = EPOCH
    """The latest recorded time; of facts still on their way, the time they were decided at."""
    waiting: Decided | None = None
    """Decided on this state, and not applied to it yet."""
    basis: Pending | None = None
    """The last append whose facts were applied before it was settled."""

    def settle(self) -> bool:
        """Apply what waits; False if the state holds facts that were not recorded."""
        if self.basis is not None and self.basis.settled:
            if self.basis.failed:
                return False
            self.basis = None
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return True
        settled = waiting.pending.settled  # asked before the verdict, which may come in between
        if not waiting.pending.failed:
            for event in waiting.events:
                self.state.apply(event)
            self.version += len(waiting.events)
            self.at = max(self.at, waiting.at)
            self.basis = None if settled else waiting.pending
        return True

    def fold(self, fact: Recorded) -> None:
        """Bring the state up to this fact; one already seen is passed over."""
        if fact.version == self.version + 1:
            self.state.apply(fact.event)
            self.version = fact.version
        if fact.version <= self.version:
            self.at = max(self.at, fact.at)


class Memory:
    """States by (tenant, stream, type), least recently used first out."""

    def __init__(self, size_max: int = REMEMBERED_MAX) -> None:
        self.size_max = size_max
        self.states: OrderedDict[Key, Remembered] = OrderedDict()
        self.epoch = EPOCH_UNKNOWN
        """Of the ledger whose states they are."""

    def enter(self, epoch: int) -> None:
        """Forget what is of another epoch: the same versions hold other facts there."""
        if epoch != self.epoch:
            self.states.clear()
            self.epoch = epoch

    def recall(self, key: Key) -> Remembered | None:
        found = self.states.get(key)
        if found is not None:
            self.states.move_to_end(key)
        return found

    def keep(self, key: Key, remembered: Remembered) -> None:
        self.states[key] = remembered
        while len(self.states) > self.size_max:
            self.states.popitem(last=False)


def forms(keys: Iterable[Key]) -> dict[str, Form | None]:
    """How each stream is to be recalled; one that is folded into two states, from its beginning."""
    found: dict[str, Form | None] = {}
    for _, stream, state in keys:
        found[stream] = None if stream in found else form_of(state)
    return found


@dataclass(slots=True)
class Reading:
    """One command's boundary: every state handed out, from memory where memory has it."""

    log: Log
    tenant: str
    memory: Memory
    held: dict[str, list[Remembered]] = field(default_factory=dict)
    loaded: dict[Key, Remembered] = field(default_factory=dict)
    """What this command had to load: its own, should memory be too small to keep it."""
    epoch: int = EPOCH_UNKNOWN
    """In which all of it was read."""

    def __call__(self, stream: str, state: type[S]) -> S:
        return self.each((stream,), state)[stream]

    def each(self, streams: Iterable[str], state: type[S]) -> dict[str, S]:
        found: dict[str, S] = {}
        unknown: list[Key] = []
        for stream in dict.fromkeys(streams):
            remembered = self._find((self.tenant, stream, state))
            if remembered is None:
                unknown.append((self.tenant, stream, state))
                if len(self.held) + len(unknown) > STREAMS_MAX:
                    raise TooManyStreams(f"more than {STREAMS_MAX:,} streams")
            else:
                found[stream] = cast(S, self._hold(stream, remembered))
        if unknown:
            raise Unloaded(unknown)
        return found

    def fresh(self, stream: str, state: type[S]) -> S:
        key = (self.tenant, stream, state)
        remembered = self._find(key)
        if remembered is None:
            remembered = self.loaded[key] = Remembered(key, state())
            self.memory.keep(key, remembered)
        return cast(S, self._hold(stream, remembered))

    def _find(self, key: Key) -> Remembered | None:
        remembered = self.memory.recall(key) or self.loaded.get(key)
        if remembered is None or remembered.settle():
            return remembered
        self._drop(remembered)
        return None

    def _drop(self, remembered: Remembered) -> None:
        for states in (self.memory.states, self.loaded):
            if states.get(remembered.key) is remembered:
                del states[remembered.key]

    def _hold(self, stream: str, remembered: Remembered) -> State:
        self.held.setdefault(stream, []).append(remembered)
        if len(self.held) > STREAMS_MAX:
            raise TooManyStreams(f"more than {STREAMS_MAX:,} streams")
        return remembered.state

    def claim(self, kind: str, value: str) -> str:
        return self.log.claim(self.tenant, kind, value)

    def load(self, keys: Iterable[Key], recalled: Recalled) -> None:
        """Remember what this folds to; a state that came into memory meanwhile stays. Memory has no use for
        what was read in another epoch than its own."""
        if self.epoch == EPOCH_UNKNOWN:
            self.memory.enter(recalled.epoch)
            self.epoch = recalled.epoch
        by_stream: dict[str, list[Remembered]] = {}
        for key in keys:
            remembered = self.loaded[key] = Remembered(key, key[2]())
            if base := recalled.bases.get(key[1]):
                remembered.state, remembered.version = base.state, base.snapshot.version
                remembered.at = base.snapshot.at
            by_stream.setdefault(key[1], []).append(remembered)
            if key not in self.memory.states and self.epoch == self.memory.epoch == recalled.epoch:
                self.memory.keep(key, remembered)
        folded: dict[str, list[Recorded]] = {}
        for fact in recalled.facts:
            folded.setdefault(fact.stream, []).append(fact)
            for remembered in by_stream[fact.stream]:
                remembered.fold(fact)
        for stream, facts in folded.items():
            if len(facts) >= snapshots.FOLD_FACTS_MIN:
                self._take(by_stream[stream], facts, recalled)

    def _take(self, states: Sequence[Remembered], facts: Sequence[Recorded], recalled: Recalled) -> None:
        """Keep what was dear to fold, off the way of whoever waits for it."""
        _, stream, state = states[0].key
        form = forms(each.key for each in states)[stream]
        if form is not None:
            base = recalled.bases.get(stream)
            before = None if base is None else base.snapshot
            take = partial(snapshots.taken, stream, state, form, before, facts, recalled.epoch)
            self.log.keep(self.tenant, take)

    def begin(self) -> None:
        """Read anew, in the present epoch."""
        self.held = {}
        self.memory.enter(self.log.epoch)
        if self.epoch != self.memory.epoch:
            self.loaded.clear()
            self.epoch = self.memory.epoch

    def fold(self, facts: Iterable[Recorded]) -> None:
        """Bring the states up to these facts, those apart that hold what was never recorded."""
        for states in self.held.values():
            for remembered in states:
                if not remembered.settle():
                    self._drop(remembered)
        for fact in facts:
            for remembered in self.held.get(fact.stream, ()):
                remembered.fold(fact)

    def expect(self, pending: Pending, facts: Sequence[Event], at: datetime) -> None:
        """These facts, decided on this boundary, are on their way."""
        by_stream: dict[str, list[Event]] = {}
        for fact in facts:
            by_stream.setdefault(fact.stream, []).append(fact)
        for stream, events in by_stream.items():
            for remembered in self.held[stream]:
                remembered.waiting = Decided(pending, events, at)

    def follows(self) -> list[Pending]:
        """The unsettled appends that these states rest on."""
        return [r.basis for states in self.held.values() for r in states if r.basis is not None]

    def forget(self) -> None:
        """Believe nothing that was remembered: the ledger was restored."""
        self.memory.states.clear()
        self.loaded.clear()

    def versions(self) -> dict[str, int]:
        """The version each stream is pinned at: the least that any of its states has seen."""
        return {
            stream: states[0].version if len(states) == 1 else min(r.version for r in states)
            for stream, states in self.held.items()
        }

    def latest(self) -> datetime:
        """The latest recorded time in the boundary."""
        return max((r.at for states in self.held.values() for r in states), default=EPOCH)
