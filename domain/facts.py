"""What a fact is, how it is stored, and how yesterday's fact is read today."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Self
from uuid import UUID, uuid5

from domain.values import Value

COMMANDS = UUID("6f0d0bd2-9a5e-5a43-9c62-9e6f5a3a51c7")
"""Namespace of command ids: a constant of the format, never to change."""
TENANT = re.compile(r"[^\x00-\x1f/]{1,64}")
KEY = re.compile(r"[^\x00-\x1f]{1,200}")
"""Actors too. All three fit one index entry (2,704 bytes), and no line break blurs which is which."""

REQUEST = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header, of the one version there is."""


class Event(Value):
    """An immutable fact, named in the past tense; `name` is what is stored, forever.

    A change of shape beyond an optional field with a default raises `version` and needs a static
    `upcast_v1_v2(state)` that edits the older JSON in place, and a golden file.
    """

    name: ClassVar[str]
    class_version: ClassVar[int]

    def __init_subclass__(cls, *, name: str, version: int = 1, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name, cls.class_version = name, version

    @property
    def stream(self) -> str:
        """The stream this fact belongs to, without its tenant."""
        raise NotImplementedError

    @classmethod
    def context(cls) -> str:
        """The context that owns the fact: the part of its name before the dot."""
        return cls.name.partition(".")[0]

    def stored(self) -> bytes:
        """The fact as compact JSON."""
        return self.__pydantic_serializer__.to_json(self)

    @classmethod
    def from_stored(cls, data: bytes, version: int) -> Self:
        """Read stored JSON, walking `upcast_v1_v2`, `upcast_v2_v3`, ... first."""
        if version == cls.class_version:
            read: Self = cls.__pydantic_validator__.validate_json(data)
            return read
        if version > cls.class_version:
            raise ValueError(f"{cls.name} v{version} is newer than this program (v{cls.class_version})")
        state = json.loads(data)
        for step in range(version, cls.class_version):
            getattr(cls, f"upcast_v{step}_v{step + 1}")(state)
        return cls.model_validate_json(json.dumps(state))


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who asked, and on what account; shared by all facts of one command."""

    tenant: str
    actor: str
    key: str
    correlation: UUID | None = None
    """The command that began it all; None where that is this command itself."""
    causation: UUID | None = None
    """The fact that a reaction answered; None for a command from outside."""
    request: str | None = None
    """The HTTP request that brought it, by the id that its answer carried."""
    trace: str | None = None
    """The W3C `traceparent` that came with it; what answers one of its facts carries it on."""

    def __post_init__(self) -> None:
        for given, form in ((self.request, REQUEST), (self.trace, TRACE)):
            if given is not None and not form.fullmatch(given):
                raise ValueError(f"not an envelope: {given[:80]!r}")
        # A tenant with a slash would be read as another tenant's stream, by the second wall too.
        if not TENANT.fullmatch(self.tenant) or not KEY.fullmatch(self.actor) or not KEY.fullmatch(self.key):
            raise ValueError(f"not an envelope: {self.tenant[:80]!r}, {self.actor[:80]!r}, {self.key[:80]!r}")

    @property
    def command_id(self) -> UUID:
        return uuid5(COMMANDS, f"{self.tenant}\n{self.actor}\n{self.key}")


class Recorded(NamedTuple):  # made for every fact that anybody reads: a third of a dataclass's price
    """A fact with its place in the log: `version` counts in its stream, `position` in the ledger."""

    event: Event
    stream: str
    version: int
    position: int
    at: datetime
    """When it was recorded, UTC; never decreases with position."""
    number: int
    """Its place among its command's facts, from 0."""
    envelope: Envelope

    @property
    def tenant(self) -> str:
        return self.envelope.tenant

    @property
    def fact_id(self) -> UUID:
        """Derived from the command, not the position, so that it survives a restore."""
        return uuid5(self.envelope.command_id, str(self.number))
