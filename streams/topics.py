"""What a record is: a run of one partition's facts. Where each fact belongs is in infra/places.py."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from infra.ledger import Place
from infra.mapper import StoredFact
from infra.places import PARTITIONS, context_of, partition_of, place_of, topic_of, topics

__all__ = [
    "PARTITIONS",
    "BadRecord",
    "Lately",
    "Run",
    "context_of",
    "pack",
    "partition_of",
    "place_of",
    "runs",
    "topic_of",
    "topics",
    "unpack",
]

RUN_BYTES_MAX = 256 * 1024
"""A record's size, as far as whole facts allow; brokers refuse more than 1 MiB by default."""

LATELY_BYTES_MAX = 8 * 1024 * 1024
"""Of records kept unpacked for the other feeds: the one that collects blocks is a second or two behind."""

HEADER = struct.Struct(">BQQI")
FACT = struct.Struct(">QQHHI")
FORMAT = 1


K = TypeVar("K")
V = TypeVar("V")


class BadRecord(ValueError):
    """Bytes from the broker that are not a record of ours; the gap they leave is read from the log."""


@dataclass(frozen=True, slots=True)
class Run:
    """A record: all of one partition's facts with positions in (after, last].

    Whoever has come less far than `after` has missed something, and knows where to read it.
    """

    topic: str
    partition: int
    after: int
    last: int
    facts: tuple[StoredFact, ...]

    @property
    def place(self) -> Place:
        return self.topic, self.partition


def pack(run: Run) -> bytes:
    parts = [HEADER.pack(FORMAT, run.after, run.last, len(run.facts))]
    for fact in run.facts:
        stream, name = fact.originator_id.encode(), fact.name.encode()
        parts.append(FACT.pack(fact.position, fact.version, len(stream), len(name), len(fact.state)))
        parts += (stream, name, fact.state)
    return b"".join(parts)


class Lately(Generic[K, V]):
    """What was made of some keys lately, the oldest forgotten first. Not for several threads.

    Bounded by what `size` says of the keys, in bytes: a count would not bound memory. A key is the whole
    content, so that nothing is ever found for other content.
    """

    def __init__(self, make: Callable[[K], V], size: Callable[[K], int], bytes_max: int) -> None:
        self.make, self.size, self.bytes_max = make, size, bytes_max
        self.kept: dict[K, V] = {}
        self.bytes = 0

    def of(self, key: K) -> V:
        """What is kept, or made now; what `make` raises is not kept."""
        found = self.kept.get(key)
        if found is None:
            found = self.kept[key] = self.make(key)
            self.bytes += self.size(key)
            while self.bytes > self.bytes_max:
                oldest = next(iter(self.kept))
                del self.kept[oldest]
                self.bytes -= self.size(oldest)
        return found


def unpack(topic: str, partition: int, record: bytes) -> Run:
    """Once for all feeds of a worker. Raises BadRecord."""
    return UNPACKED.of((topic, partition, record))


def _unpack(key: tuple[str, int, bytes]) -> Run:
    topic, partition, record = key
    try:
        form, after, last, count = HEADER.unpack_from(record)
        if form != FORMAT:
            raise BadRecord(f"format {form}")
        facts, at = [], HEADER.size
        for _ in range(count):
            position, version, stream_size, name_size, state_size = FACT.unpack_from(record, at)
            stream_from = at + FACT.size
            name_from = stream_from + stream_size
            state_from = name_from + name_size
            at = state_from + state_size
            if at > len(record):
                raise BadRecord("cut short")
            facts.append(
                StoredFact(
                    position,
                    record[stream_from:name_from].decode(),
                    version,
                    record[name_from:state_from].decode(),
                    record[state_from:at],
                )
            )
    except (struct.error, UnicodeDecodeError) as broken:
        raise BadRecord(str(broken)) from broken
    return Run(topic, partition, after, last, tuple(facts))


UNPACKED = Lately(_unpack, lambda key: len(key[2]), LATELY_BYTES_MAX)


def runs(ledger: str, facts: Iterable[StoredFact], heads: dict[Place, int]) -> Iterator[Run]:
    """Cut facts in log order into records; `heads` says what each partition's last record ended with,
    and is moved on."""
    waiting: dict[Place, list[StoredFact]] = {}
    sizes: dict[Place, int] = {}
    for fact in facts:
        place = place_of(ledger, fact)
        waiting.setdefault(place, []).append(fact)
        sizes[place] = sizes.get(place, 0) + len(fact.state) + 80
        if sizes[place] >= RUN_BYTES_MAX:
            yield _cut(place, waiting.pop(place), heads)
            sizes[place] = 0
    for place, left in waiting.items():
        yield _cut(place, left, heads)


def _cut(place: Place, facts: list[StoredFact], heads: dict[Place, int]) -> Run:
    after, heads[place] = heads.get(place, 0), facts[-1].position
    return Run(*place, after, facts[-1].position, tuple(facts))
