"""What an audit finds: each finding names what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

Progress = Callable[[str, int, int], None]
"""(what is going on, how many are done, of how many)"""

EXAMPLES_MAX = 20
"""Findings told of one kind at one place; the rest are counted."""
TEXT_MAX = 500


def no_progress(what: str, done: int, total: int) -> None:
    """For who does not care."""


class AuditBusy(Exception):
    """Another audit of this ledger is at work: verifications may run side by side, a rebuild runs alone."""


RESTORE = "restore the log from a backup, or find out who wrote to its tables: no part of Counterfoil does"
REBUILD = "counterfoil rebuild {} --reason TEXT --accept-differences"
REGISTER = "run the program version that knows this fact, or add its class or upcaster"


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind` is stable, for programs; the rest is for people."""

    kind: str
    what: str
    where: str
    do: str


@dataclass(slots=True)
class Findings:
    """Collected with a limit for each kind, so that one broken table does not hide the rest."""

    told: list[Finding] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    """By kind, told or not."""
    shown: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kind: str, what: str, where: str, do: str, group: str = "") -> None:
        self.counted[kind] += 1
        self.shown[kind, group] += 1
        if self.shown[kind, group] <= EXAMPLES_MAX:
            self.told.append(Finding(kind, what[:TEXT_MAX], where, do))


@dataclass(frozen=True, slots=True)
class ParkedFact:
    """A fact that a projection could not take, or one behind it; known, and so no finding."""

    engine: str
    projection: str
    tenant: str
    stream: str
    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification came to."""

    head: int
    """The last position that was looked at."""
    findings: tuple[Finding, ...]
    findings_by_kind: dict[str, int]
    """Also those beyond the examples."""
    parked: tuple[ParkedFact, ...]
    parked_count: int
    counts: dict[str, int]
    rows: dict[str, int]
    """Rows compared, by engine.table of what is shown, and of its past."""
    behind: dict[str, int]
    """Facts not yet taken by engine.projection when it was looked at; it may be zero a moment later."""
    sampled: tuple[int, ...]
    """Positions whose past was compared as a whole."""
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self), "seconds": round(self.seconds, 2)}


def shown_value(value: Any) -> Any:
    """A column's value as JSON has it."""
    if isinstance(value, Decimal):
        return int(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
