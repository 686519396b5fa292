"""What clients were told, and what is said when an invariant does not hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from commands.handling import Answer
from domain.refusals import Refusal
from tests.simulation.plan import Request


class Broken(AssertionError):
    """An invariant does not hold: its name, and what was found."""

    def __init__(self, invariant: str, found: str) -> None:
        super().__init__(f"{invariant}: {found}")
        self.invariant, self.found = invariant, found


@dataclass(slots=True)
class Note:
    """What a client was told about one request."""

    request: Request
    answers: list[Answer] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    unknown: int = 0
    excused: bool = False
    """It was acknowledged, and a restore went back behind it."""

    @property
    def settled(self) -> bool:
        return bool(self.answers or self.refusals)
