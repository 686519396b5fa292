"""The least of a plan that still breaks the same invariant: delta debugging, under the same seed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.simulation.plan import Plan, Step, plan_of
from tests.simulation.run import run_plan
from tests.simulation.world import Planted, sound

PATIENCE_S = 60.0
"""A smaller list would be nicer, and is not worth waiting for any longer."""


@dataclass(frozen=True, slots=True)
class Least:
    steps: Sequence[Step]
    found: str


def shrink(seed: int, requests: int, invariant: str, planted: Planted = sound) -> Least:
    """Andreas Zeller's ddmin: leave out ever smaller parts for as long as it goes on failing."""
    plan, until = plan_of(seed, requests), time.monotonic() + PATIENCE_S
    least = Least(plan.steps, "")
    parts = 2
    while len(least.steps) > 1 and time.monotonic() < until:
        size = -(-len(least.steps) // parts)
        for first in range(0, len(least.steps), size):
            fewer = [*least.steps[:first], *least.steps[first + size :]]
            outcome = run_plan(_only(plan, fewer), planted)
            if outcome.invariant == invariant:
                least = Least(fewer, outcome.found)
                parts = max(parts - 1, 2)
                break
            if time.monotonic() > until:
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(least.steps))
    return least


def _only(plan: Plan, steps: Sequence[Step]) -> Plan:
    return replace(plan, steps=tuple(steps))
