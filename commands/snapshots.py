"""States kept beside the log, so that a long stream is not folded from its beginning each time.

A snapshot is never the truth. It is believed only if it is whole, of this epoch, in today's form, and folded
to a fact that the log has in that very place; anything else is passed over, and the stream is folded. ADR 13.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import ClassVar, Protocol, cast

from pydantic import TypeAdapter, ValidationError

from domain.facts import Event, Recorded

FOLD_FACTS_MIN = 500
"""A state is kept when so many facts had to be folded for it.

Measured on two shared cores: a cold decision takes 17 µs more for each fact (reading, decoding, applying),
and from a snapshot the same 3.5 ms however long the stream; keeping one takes 20 ms of a thread. At 500 facts
that is 7 ms saved each time, so the third process that starts has it back.
"""
STATE_BYTES_MAX = 1 << 20
"""A larger state is not kept."""


class State(Protocol):
    """Mutable while it is folded, read-only to `decide`; holds what some rule reads and no more."""

    def apply(self, event: Event) -> None: ...


class Keepable(State, Protocol):
    """A state that says how it is kept. Raise the version whenever the same facts come to mean another state:
    what was kept before is then passed over. tests/commands/test_snapshot_versions.py notices who forgets."""

    snapshot_name: ClassVar[str]
    """What is stored, context first, whatever the class is called."""
    snapshot_version: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Form:
    """How states of one type are kept: as JSON of their fields."""

    name: str
    shape: bytes
    """Of the fields, the version, and the versions of the facts it is folded from: another one is another
    form, and what was kept in it is not read."""
    adapter: TypeAdapter[State]

    def written(self, state: State) -> bytes:
        return self.adapter.dump_json(state)

    def read(self, written: bytes) -> State | None:
        """None for what is no such state."""
        try:
            return self.adapter.validate_json(written)
        except ValidationError:
            return None


@cache
def form_of(state: type[State]) -> Form | None:
    """None if states of this type are not kept."""
    if not hasattr(state, "snapshot_version"):
        return None
    kept = cast(type[Keepable], state)
    adapter: TypeAdapter[State] = TypeAdapter(state)
    context = kept.snapshot_name.partition(".")[0]
    facts = sorted((fact.name, fact.class_version) for fact in _below(Event) if fact.context() == context)
    shape = json.dumps([kept.snapshot_version, adapter.json_schema(), facts], sort_keys=True)
    return Form(kept.snapshot_name, hashlib.sha256(shape.encode()).digest(), adapter)


def _below(fact: type[Event]) -> Iterator[type[Event]]:
    """Every kind of fact there is. A log has to know them all; commands may not import what does."""
    for each in fact.__subclasses__():
        yield each
        yield from _below(each)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state as it was after one fact of its stream, written down."""

    stream: str
    form: Form
    epoch: int
    version: int
    position: int
    """Of that fact; it and the version are the log's own only as long as it is not restored."""
    at: datetime
    """When that fact was recorded."""
    written: bytes


@dataclass(frozen=True, slots=True)
class Base:
    """What a fold begins with."""

    state: State
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Recalled:
    """Streams from their snapshots on, where there is one to believe; from their beginning where not."""

    epoch: int
    bases: dict[str, Base]
    """By stream; each state is for one caller to have and to change."""
    facts: Sequence[Recorded]
    """Those after the base, in order within each stream."""


def taken(
    stream: str, state: type[State], form: Form, base: Snapshot | None, facts: Sequence[Recorded], epoch: int
) -> Snapshot | None:
    """Fold these facts, of this stream and at least one, once more: a state of a decision may be ahead of the
    log, and goes on changing. None if it is too large to be kept."""
    folded = (None if base is None else form.read(base.written)) or state()
    for fact in facts:
        folded.apply(fact.event)
    written = form.written(folded)
    if len(written) > STATE_BYTES_MAX:
        return None
    last = facts[-1]
    return Snapshot(stream, form, epoch, last.version, last.position, last.at, written)
