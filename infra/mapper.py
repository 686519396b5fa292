"""Facts to bytes and back: the one place that knows the stored layout.

A stored state is a header of 14 bytes, big-endian (recorded time in microseconds since 1970 UTC,
signed 64 bits; the fact's number in its command, its class version and the envelope's length, 16
bits each), then the envelope as JSON, then the fact as JSON. The first 8 bytes are written by the
database, which alone knows the recorded time. ADR 0002 says why.
"""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple
from uuid import UUID

from eventsourcing.persistence import Mapper, StoredEvent

from domain.facts import Envelope, Event, Recorded
from domain.registry import event_named

TIME = struct.Struct(">q")
HEADER = struct.Struct(">qHHH")
REST = struct.Struct(">HHH")
ENVELOPE_FROM = HEADER.size
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
"""What hostile bytes raise on their way: not JSON, other JSON, too deep, a time after the year 9999."""


class StoredFact(NamedTuple):
    """A fact as it is stored and as it travels: not decoded."""

    position: int
    originator_id: str
    version: int
    name: str
    state: bytes

    def recorded(self) -> Recorded:
        tenant, stream = split(self.originator_id)
        return recorded_of(tenant, stream, self.version, self.position, self.name, self.state)


class Unreadable(ValueError):
    """Stored bytes that this program cannot read as a fact."""


def microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


@lru_cache(maxsize=4_096)  # all commands of a batch are recorded at one time
def instant(at_us: int) -> datetime:
    return EPOCH + at_us * MICROSECOND


def envelope_json(envelope: Envelope) -> bytes:
    """As `json.dumps` would, compact and not in ASCII, for a fifth of its price."""
    text = f'{{"actor":{encode_basestring(envelope.actor)},"key":{encode_basestring(envelope.key)}'
    if envelope.correlation is not None:
        text += f',"correlation":"{envelope.correlation}"'
    if envelope.causation is not None:
        text += f',"causation":"{envelope.causation}"'
    if envelope.request is not None:
        text += f',"request":"{envelope.request}"'
    if envelope.trace is not None:
        text += f',"trace":"{envelope.trace}"'
    return f"{text}}}".encode()


@lru_cache(maxsize=4_096)  # one envelope is shared by all facts of a command
def envelope_of(tenant: str, stored: bytes) -> Envelope:
    document = json.loads(stored)
    return Envelope(
        tenant,
        document["actor"],
        document["key"],
        UUID(document["correlation"]) if "correlation" in document else None,
        UUID(document["causation"]) if "causation" in document else None,
        document.get("request"),
        document.get("trace"),
    )


def rest_of(fact: Event, number: int, envelope: bytes) -> bytes:
    """Everything but the recorded time."""
    return REST.pack(number, fact.class_version, len(envelope)) + envelope + fact.stored()


def recorded_of(tenant: str, stream: str, version: int, position: int, name: str, state: bytes) -> Recorded:
    """Read a stored fact, or raise Unreadable; an unknown name is Unreadable too."""
    try:
        at_us, number, class_version, length = HEADER.unpack_from(state)
        data_from = ENVELOPE_FROM + length
        event = event_named(name).from_stored(state[data_from:], class_version)
        envelope = envelope_of(tenant, state[ENVELOPE_FROM:data_from])
        return Recorded(event, stream, version, position, instant(at_us), number, envelope)
    except UNREADABLE as broken:
        raise Unreadable(f"position {position}, {name[:80]!r}: {broken}") from broken


def split(originator_id: str) -> tuple[str, str]:
    """tenant/stream in two."""
    tenant, _, stream = originator_id.partition("/")
    return tenant, stream


class FactMapper(Mapper[str]):
    """The same layout at the eventsourcing library's seam, cipher and compressor included."""

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        recorded: Recorded = domain_event
        state = TIME.pack(microseconds(recorded.at)) + rest_of(
            recorded.event, recorded.number, envelope_json(recorded.envelope)
        )
        if self.compressor:
            state = self.compressor.compress(state)
        if self.cipher:
            state = self.cipher.encrypt(state)
        originator_id = f"{recorded.tenant}/{recorded.stream}"
        return StoredEvent(originator_id, recorded.version, recorded.event.name, state)

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        state = stored_event.state
        if self.cipher:
            state = self.cipher.decrypt(state)
        if self.compressor:
            state = self.compressor.decompress(state)
        tenant, stream = split(str(stored_event.originator_id))
        position = getattr(stored_event, "id", 0)
        return recorded_of(
            tenant, stream, stored_event.originator_version, position, stored_event.topic, state
        )
