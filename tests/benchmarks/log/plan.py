"""How much is measured: enough in full, enough to see whether it works in quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FAST, SLOW = "real fsync", "fsync + 1 ms"
"""The two servers."""
Cell = tuple[str, int]
"""A server and how many commands are under way at once."""


QUICK_UNTIL_S = {"append": 150, "decide": 190, "hot": 205, "hot_processes": 220, "paced": 235}


@dataclass(frozen=True)
class Plan:
    quick: bool
    rounds: int
    cells: tuple[Cell, ...]
    """Of one event a command."""
    headline: tuple[Cell, ...]
    """Those that promised ratios are made of: longer slices for whoever is in a ratio."""
    slice_s: float
    short_s: float
    decide_at: int
    skip_events: int
    skip_s_max: float
    hot_at: int
    hot_processes: int
    paced_share: float
    relay_facts: int
    growth_facts: tuple[int, int] | None
    soak_s: float | None
    until_s: Mapping[str, float]
    """When a scenario has to be over, in seconds from the beginning: no round begins that would end later."""


def planned(quick: bool, rounds: int | None) -> Plan:
    headline: tuple[Cell, ...] = ((FAST, 8), (FAST, 64), (SLOW, 8), (SLOW, 64))
    every = tuple((server, concurrent) for server in (FAST, SLOW) for concurrent in (1, 8, 32, 64))
    return Plan(
        quick=quick,
        rounds=rounds or (3 if quick else 5),
        cells=headline if quick else every,
        headline=() if quick else ((FAST, 8), (SLOW, 64)),
        slice_s=1.0 if quick else 10.0,
        short_s=1.0 if quick else 3.0,
        decide_at=8,
        skip_events=50_000 if quick else 1_000_000,
        skip_s_max=25.0 if quick else 900.0,
        hot_at=64,
        hot_processes=4,
        paced_share=0.7,
        relay_facts=100_000 if quick else 500_000,
        growth_facts=None if quick else (100_000, 10_000_000),
        soak_s=None if quick else 600.0,
        until_s=QUICK_UNTIL_S if quick else {},
    )
