"""The log in memory, for rules' tests and simulation: the same contract as the one in Postgres."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from commands.log import Append, Appended, Outcome, Pending, Settled, Spent, Stale
from commands.snapshots import Base, Form, Recalled, Snapshot
from domain.facts import Envelope, Recorded
from infra.mapper import TIME, envelope_json, microseconds, recorded_of, rest_of


class MemoryLog:
    """Stores bytes, not objects, so that every scenario passes through the codec."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, int, str, bytes]] = []
        """(tenant, stream, version, name, state); the position is the index + 1."""
        self.streams: dict[tuple[str, str], list[int]] = {}
        self.keys: dict[tuple[str, str, str], Spent] = {}
        self.snapshots: dict[tuple[str, str, str], Snapshot] = {}
        """By tenant, stream and the form's name."""
        self.at_us = 0
        self.epoch = 1
        self.lock = threading.RLock()

    def read(self, tenant: str, after: Mapping[str, int]) -> list[Recorded]:
        with self.lock:
            return [
                self._recorded(position)
                for stream, version in sorted(after.items())
                for position in self.streams.get((tenant, stream), [])[version:]
            ]

    def recall(self, tenant: str, wanted: Mapping[str, Form | None]) -> Recalled:
        with self.lock:
            bases = {
                stream: base for stream, form in wanted.items() if (base := self._base(tenant, stream, form))
            }
            after = {stream: bases[stream].snapshot.version if stream in bases else 0 for stream in wanted}
            return Recalled(self.epoch, bases, self.read(tenant, after))

    def _base(self, tenant: str, stream: str, form: Form | None) -> Base | None:
        kept = None if form is None else self.snapshots.get((tenant, stream, form.name))
        if form is None or kept is None or not self.believes(tenant, kept, form):
            return None
        state = form.read(kept.written)
        return None if state is None else Base(state, kept)

    def believes(self, tenant: str, kept: Snapshot, form: Form) -> bool:
        """Of this epoch and this form, and folded to a fact that is still in that place."""
        place = self.streams.get((tenant, kept.stream), [])[kept.version - 1 : kept.version]
        return kept.epoch == self.epoch and kept.form.shape == form.shape and place == [kept.position]

    def keep(self, tenant: str, take: Callable[[], Snapshot | None]) -> None:
        snapshot = take()
        if snapshot is None or snapshot.epoch != self.epoch:
            return
        mine = (tenant, snapshot.stream, snapshot.form.name)
        with self.lock:
            kept = self.snapshots.get(mine)
            if kept and kept.version > snapshot.version and self.believes(tenant, kept, snapshot.form):
                return
            self.snapshots[mine] = snapshot

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> Settled:
        return Settled(self.append(append))

    def append(self, append: Append) -> Outcome:
        envelope = append.envelope
        with self.lock:
            if spent := self.spent(envelope):
                return spent
            for read, version in append.versions.items():
                if len(self.streams.get((envelope.tenant, read), ())) != version:
                    return Stale(tuple(self.read(envelope.tenant, append.versions)))
            if not append.spends:
                return Appended((), len(self.rows))
            if append.facts:
                self.at_us = max(self.at_us, microseconds(append.at))
            first, written = len(self.rows) + 1, envelope_json(envelope)
            for number, fact in enumerate(append.facts):
                stream = self.streams.setdefault((envelope.tenant, fact.stream), [])
                state = TIME.pack(self.at_us) + rest_of(fact, number, written)
                self.rows.append((envelope.tenant, fact.stream, len(stream) + 1, fact.name, state))
                stream.append(len(self.rows))
            position, count = len(self.rows), len(append.facts)
            mine = (envelope.tenant, envelope.actor, envelope.key)
            self.keys[mine] = Spent(append.digest, position, count)
            return Appended(self.recorded(envelope.tenant, first, count), position)

    def spent(self, envelope: Envelope) -> Spent | None:
        with self.lock:
            return self.keys.get((envelope.tenant, envelope.actor, envelope.key))

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        with self.lock:
            return tuple(
                self._recorded(position)
                for position in range(first, min(first + count, len(self.rows) + 1))
                if self.rows[position - 1][0] == tenant
            )

    @contextmanager
    def turn(self, tenant: str, streams: Iterable[str]) -> Iterator[None]:
        if any(True for _ in streams):
            with self.lock:
                yield
        else:
            yield

    def claim(self, tenant: str, kind: str, value: str) -> str:
        return f"claim-{kind}-{hashlib.sha256(f'{tenant}/{value}'.encode()).hexdigest()[:32]}"

    def _recorded(self, position: int) -> Recorded:
        tenant, stream, version, name, state = self.rows[position - 1]
        return recorded_of(tenant, stream, version, position, name, state)
