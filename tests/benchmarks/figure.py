"""One figure: what each round measured, beside the floors that were measured seconds apart from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from statistics import median
from typing import Any

NOISY = 0.2
"""A floor that moves by more than this between rounds says the machine was busy with something else."""


class Wrong(Exception):
    """The system counted wrong, or lost something: no speed is a figure then."""


def load_average() -> float:
    return os.getloadavg()[0]


@dataclass(slots=True)
class Figure:
    """`floors` are in the figure's own unit: the same work with everything left out that can be."""

    name: str
    what: str
    unit: str
    target: float
    more_is_better: bool
    rounds: list[float] = field(default_factory=list)
    floors: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    loads: list[float] = field(default_factory=lambda: [load_average()])
    skipped: str | None = None

    def round(self, value: float, floors: dict[str, float] | None = None) -> None:
        self.rounds.append(value)
        for name, floor in (floors or {}).items():
            self.floors.setdefault(name, []).append(floor)
        self.loads.append(load_average())

    @property
    def value(self) -> float | None:
        return median(self.rounds) if self.rounds else None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target

    @property
    def ratios(self) -> dict[str, float]:
        """To each floor, round by round: a floor shares its round's weather."""
        return {
            name: median(value / floor for value, floor in zip(self.rounds, floors, strict=True))
            for name, floors in self.floors.items()
        }

    @property
    def noisy(self) -> bool:
        return any((max(floors) - min(floors)) / median(floors) > NOISY for floors in self.floors.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "target": self.target,
            "more_is_better": self.more_is_better,
            "value": self.value,
            "met": self.met,
            "ratios": self.ratios,
            "noisy": self.noisy,
            "rounds": self.rounds,
            "floors": self.floors,
            "details": self.details,
            "load": [min(self.loads), max(self.loads)],
            "skipped": self.skipped,
        }
