"""One run: the whole system on one loop, a plan that happens to it, and what has to hold in the end."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import Any

from commands.handling import Actor, Ask
from commands.log import Busy
from domain.facts import Recorded
from domain.refusals import Refusal
from domain.values import Permission
from infra.connection import LogUnavailable
from infra.readmodel import physical
from projections.registry import projections_in
from projections.rows import Engine, Projection
from streams.projector import Projecting
from tests.simulation.blocks import Blocks
from tests.simulation.broker import Broker
from tests.simulation.faults import Chance
from tests.simulation.judge import facts_in, judge_clients, judge_log, judge_rules
from tests.simulation.judge_views import judge_read, judge_views
from tests.simulation.loop import VirtualLoop
from tests.simulation.notes import Broken, Note
from tests.simulation.plan import ACTIVE_RELAY, ROLES, Mishap, Plan
from tests.simulation.roles import Api, Death, Died, Role
from tests.simulation.seams import seams
from tests.simulation.server import Server
from tests.simulation.sql_rows import know
from tests.simulation.watch import Watch

FAULTS = (Busy, LogUnavailable, Died)
"""What a client tries again after: it does not know what became of its request, and its key will tell."""
TRIES = 6
PAUSE_S = 0.3
SETTLED_S_MAX = 120.0
"""After the last fault: time for leases, retries, looks at tails and drains, several times over."""
LOOK_S = 0.5
READ_BACK = 0.015
"""Of the answers: to look at everything costs a good deal."""
READ_AGAIN_S = 0.05
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
        self.notes: list[Note] = []
        self.reading: list[asyncio.Task[None]] = []
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
        for projection in projections_in(Engine.POSTGRES):
            self.server.database.tables["projections"]["postgres", projection.name] = 1
            for table in projection.tables_in(Engine.POSTGRES):
                know(physical(table, 1), table)

    def run(self) -> None:
        """Raises Broken."""
        logging.disable(0 if __import__("os").environ.get("SIMLOG") else logging.CRITICAL)
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
        asking: list[asyncio.Task[None]] = []
        for step in self.plan.steps:
            await asyncio.sleep(max(0.0, step.at_s - self.loop.now_s))
            self._look()
            if isinstance(step, Mishap):
                self._happen(step)
            else:
                note = Note(step)
                self.notes.append(note)
                asking += [asyncio.ensure_future(self._ask(note)) for _ in range(step.twins)]
        for task in asking:
            await task
        await self._settle()
        for task in self.reading:
            await task
        self._judge()

    async def _ask(self, note: Note) -> None:
        for attempt in range(TRIES):
            if await self._tried(note):
                return
            await asyncio.sleep(PAUSE_S * (attempt + self.chance.random.random()))

    async def _tried(self, note: Note) -> bool:
        request = note.request
        by = Actor(request.tenant, request.actor, frozenset(Permission))
        api = self.roles[self.chance.random.choice(("api-1", "api-2"))]
        assert isinstance(api, Api)
        tables, restored = self.server.database.tables, self.restored
        try:
            answer = await api.ask(Ask(request.command, by, request.key))
        except Refusal as refused:
            note.refusals.append(refused)
        except FAULTS:
            note.unknown += 1
            return False
        else:
            if (
                restored != self.restored
                and (request.tenant, request.actor, request.key) not in tables["commands"]
            ):
                note.excused = True  # it was on its way when the ledger was restored
            else:
                note.answers.append(answer)
                if self.chance.happens(READ_BACK):
                    self.reading.append(asyncio.ensure_future(self._read_back(answer.position)))
        return True

    async def _read_back(self, position: int) -> None:
        """As a client that wants to see what it wrote: waits until it is said to be there, and looks."""
        waiting, restored = list(Engine), self.restored
        while waiting:
            for engine in list(waiting):
                standing = self.watch.standing(engine, self.blocks)
                if all(standing.reached(each, position) for each in projections_in(engine)):
                    facts = facts_in(self.server.database)[:position]
                    judge_read(self.server.database, self.blocks, facts, standing)
                    waiting.remove(engine)
            await asyncio.sleep(READ_AGAIN_S)
            if self.restored != restored:
                return

    def _happen(self, mishap: Mishap) -> None:
        later = self.loop.call_later
        match mishap.kind:
            case "crash":
                self.roles[mishap.what].process.steps_left = mishap.number
            case "freeze":
                relay = self.watch.holder if mishap.what == ACTIVE_RELAY else None
                process = relay or self.roles.get(mishap.what, self.roles["relay-1"]).process
                process.frozen = True
                self.thawed_at_s = max(self.thawed_at_s, self.loop.now_s + mishap.for_s)
                later(mishap.for_s, process.thaw)
            case "database stops":
                self.server.stop()
                later(mishap.for_s, self.server.start)
            case "broker stops":
                self.broker.up = False
                later(mishap.for_s, self._broker_up)
            case "broker forgets":
                self.broker.forget()
            case "workers change":
                self.broker.rebalance()
            case "poison":
                self.poisoned.add(mishap.what)
                later(mishap.for_s, self.poisoned.discard, mishap.what)
            case "backup":
                self.backup = self.server.database.backup()
            case "restore" if self.backup is not None:
                self._restore(self.backup)

    def _broker_up(self) -> None:
        self.broker.up = True

    def _restore(self, backup: dict[str, Any]) -> None:
        """As a runbook would have it: followers stop, broker and ClickHouse are emptied, the API goes on."""
        following = [role for role in self.roles.values() if not isinstance(role, Api)]
        for role in following:
            role.stop()
        self.server.stop()
        self.server.database.restore(backup)
        self.server.start()
        self.broker.forget()
        self.blocks.tables.clear()
        self.watch.forget()
        self.restored += 1
        kept = self.server.database.tables["commands"]
        for note in self.notes:
            request = note.request
            if (request.tenant, request.actor, request.key) not in kept:
                note.excused = note.excused or bool(note.answers)
                note.answers.clear()
                note.refusals.clear()
        for role in following:
            role.start()

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
        for note in self.notes:
            for _ in range(20):
                if note.settled or note.excused or await self._tried(note):
                    break
                await asyncio.sleep(1.0)
            else:
                raise Broken("I2 an unknown outcome is told by its key", str(note.request))
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
        judge_clients(database.tables["commands"], facts, self.notes)
        judge_rules(facts)
        judge_views(database, self.blocks, facts)

    def _look(self) -> None:
        for death in self.deaths:
            raise Broken(
                "a role dies of nothing but mishaps", f"{death.role}: {death.reason!r}"
            ) from death.reason
        for invariant, found in self.watch.found:
            raise Broken(invariant, found)
