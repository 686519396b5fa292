"""From rates, round by round, to figures: medians, ratios within a round, rounds that do not count."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median

MOVED = 0.2
"""A round whose floor was off by more than this was a different machine's."""

Rates = Sequence[float | None]
"""One a round; None where there is none."""


def middle(rates: Rates, void: Collection[int] = ()) -> float | None:
    """The median of the rounds that count."""
    known = [rate for nth, rate in enumerate(rates) if rate is not None and nth not in void]
    return median(known) if known else None


def ratio(over: Rates, under: Rates, void: Collection[int] = ()) -> float | None:
    """The median of the rounds' own ratios: both sides of one had the same weather."""
    known = [
        mine / theirs
        for nth, (mine, theirs) in enumerate(zip(over, under, strict=True))
        if mine is not None and theirs and nth not in void
    ]
    return median(known) if known else None


def voided(floor: Rates) -> list[int]:
    """Rounds whose floor is far from the floors' median; none if that leaves fewer than two."""
    usual = middle(floor)
    if not usual:
        return []
    void = [nth for nth, rate in enumerate(floor) if rate is not None and abs(rate - usual) / usual > MOVED]
    return void if len(floor) - len(void) >= 2 else []
