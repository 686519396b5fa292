"""One seed, from the plan to the verdict."""

from __future__ import annotations

import traceback
import zlib
from dataclasses import dataclass

from tests.simulation.notes import Broken
from tests.simulation.plan import Plan, Request, plan_of
from tests.simulation.world import Planted, World, sound


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    invariant: str
    """That does not hold; empty if all do."""
    found: str
    requests: int
    facts: int
    steps: int
    virtual_s: float
    fingerprint: int
    """Of the run: where chance stood in the end, and what the log holds."""


def run(seed: int, requests: int, planted: Planted = sound) -> Outcome:
    return run_plan(plan_of(seed, requests), planted)


def run_plan(plan: Plan, planted: Planted = sound) -> Outcome:
    world = World(plan, planted)
    invariant = found = ""
    try:
        world.run()
    except Broken as broken:
        invariant, found = broken.invariant, broken.found
    except Exception as bug:  # noqa: BLE001  in the system or in the simulation: neither may happen
        invariant, found = "nothing raises what nobody expects", "".join(traceback.format_exception(bug)[-8:])
    facts = world.server.database.tables["stored_events"]
    ended = (world.chance.random.random(), tuple(facts.items()))
    return Outcome(
        plan.seed,
        invariant,
        found,
        sum(isinstance(step, Request) for step in plan.steps),
        len(facts),
        world.loop.steps,
        world.loop.now_s,
        zlib.crc32(repr(ended).encode()),
    )
