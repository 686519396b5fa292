"""One run: the whole system on one loop, a plan that happens to it, and what has to hold in the end."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import Any

from domain.facts import Recorded
from infra.readmodel import physical
from projections.registry import projections_in
from projections.rows import Engine, Projection
from streams.projector import Projecting
from tests.simulation.blocks import Blocks
from tests.simulation.broker import Broker
from tests.simulation.clients import Clients
from tests.simulation.faults import Chance
from tests.simulation.happening import happen
from tests.simulation.judge import facts_in, judge_clients, judge_log, judge_rules
from tests.simulation.judge_views import judge_views
from tests.simulation.loop import VirtualLoop
from tests.simulation.notes import Broken
from tests.simulation.plan import ROLES, Mishap, Plan
from tests.simulation.roles import Api, Death, Role
from tests.simulation.seams import seams
from tests.simulation.server import Server
from tests.simulation.sql_rows import know
from tests.simulation.watch import Watch

SETTLED_S_MAX = 120.0
"""After the last fault: time for leases, retries, looks at tails and drains, several times over."""
LOOK_S = 0.5
AWAKE_S = 1.0
"""What was frozen longest has so long to do its harm."""

Planted = Callable[["World"], AbstractContextManager[object]]


def sound(world: World) -> AbstractContextManager[object]:
    """Nothing is wrong."""
    return nullcontext()


class Moody(Projecting):
    """A projection with a mistake: for a while it breaks on some streams."""

    poisoned: set[str]

    def take(self, recorded: Recorded) -> Any:
        if f"{recorded.tenant}/{recorded.stream}" in self.poisoned:
            raise ValueError("poison")
        return super().take(recorded)


class World:
    """`planted`: what is made wrong on purpose for this run."""

    def __init__(self, plan: Plan, planted: Planted = sound) -> None:
        self.plan, self.planted = plan, planted
        self.chance = Chance(Random(f"order {plan.seed}"), plan.weather)
        self.loop = VirtualLoop(self.chance.random)  # type: ignore[abstract]  # it has what is used
        self.server = Server(self.loop, self.chance)
        self.watch = Watch(self.server)
        self.broker = Broker(self.loop, self.chance, self.watch.record)
        self.blocks = Blocks(self.loop, self.chance)
        self.deaths: list[Death] = []
        self.poisoned: set[str] = set()
        self.thawed_at_s = 0.0
        """When the last of the frozen wakes."""
        self.backup: dict[str, Any] | None = None
        self.restored = 0
        """How often."""
        self.roles: dict[str, Role] = {}
        for name in ROLES:
            kind = Api if name.startswith("api") else Role
            self.roles[name] = kind(self.loop, name, plan.skews_s[name], self.deaths)
        self.clients = Clients(self)
        for projection in projections_in(Engine.POSTGRES):
            self.server.database.tables["projections"]["postgres", projection.name] = 1
            for table in projection.tables_in(Engine.POSTGRES):
                know(physical(table, 1), table)

    def run(self) -> None:
        """Raises Broken."""
        logging.disable(logging.CRITICAL)
        gc.disable()
        try:
            driven = seams(self.loop, self.server, self.broker, self.blocks, self._projecting)
            with driven, self.planted(self):
                self.loop.run(self._whole())
        finally:
            gc.enable()
            logging.disable(logging.NOTSET)

    def _projecting(self, projection: Projection) -> Moody:
        made = Moody(projection)
        made.poisoned = self.poisoned
        return made

    # ── what happens ──────────────────────────────────────────────────────────────────────────────────────

    async def _whole(self) -> None:
        try:
            await self._story()
        finally:
            for role in self.roles.values():
                role.stop()

    async def _story(self) -> None:
        for role in self.roles.values():
            role.start()
        for step in self.plan.steps:
            await asyncio.sleep(max(0.0, step.at_s - self.loop.now_s))
            self._look()
            if isinstance(step, Mishap):
                happen(self, step)
            else:
                self.clients.begin(step)
        await self.clients.finished()
        await self._settle()
        await self.clients.have_read()
        self._judge()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self) -> None:
        """Nothing fails any more: every request gets its answer, and everything that follows catches up."""
        self.chance.calm_down()
        self.poisoned.clear()
        self.server.start()
        self.broker.up = True
        for role in self.roles.values():
            role.process.steps_left = None
        await asyncio.sleep(max(0.0, self.thawed_at_s - self.loop.now_s) + AWAKE_S)
        await self.clients.insist()
        deadline_s = self.loop.now_s + SETTLED_S_MAX
        while missing := self.watch.missing(self.broker, self.blocks):
            if self.loop.now_s > deadline_s:
                raise Broken("I6 whoever follows catches up", missing)
            await asyncio.sleep(LOOK_S)
            self._look()
        self._look()

    def _judge(self) -> None:
        database = self.server.database
        facts = facts_in(database)
        judge_log(database, facts)
        judge_clients(database.tables["commands"], facts, self.clients.notes)
        judge_rules(facts)
        judge_views(database, self.blocks, facts)

    def _look(self) -> None:
        for death in self.deaths:
            raise Broken(
                "a role dies of nothing but mishaps", f"{death.role}: {death.reason!r}"
            ) from death.reason
        for invariant, found in self.watch.found:
            raise Broken(invariant, found)
