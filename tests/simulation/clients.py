"""Clients: they ask until they are told, and now and then look whether what they wrote is to be seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from commands.handling import Actor, Ask
from commands.log import Busy
from domain.refusals import Refusal
from domain.values import Permission
from infra.connection import LogUnavailable
from projections.registry import projections_in
from projections.rows import Engine
from tests.simulation.judge import facts_in
from tests.simulation.judge_views import judge_read
from tests.simulation.notes import Broken, Note
from tests.simulation.plan import Request
from tests.simulation.roles import Api, Died

if TYPE_CHECKING:
    from tests.simulation.world import World

FAULTS = (Busy, LogUnavailable, Died)
"""What a client tries again after: it does not know what became of its request, and its key will tell."""
TRIES = 6
PAUSE_S = 0.3
INSISTS = 20
"""How often it asks, a second apart, when nothing fails any more."""
READ_BACK = 0.015
"""Of the answers: to look at everything costs a good deal."""
READ_AGAIN_S = 0.05


class Clients:
    def __init__(self, world: World) -> None:
        self.world = world
        self.notes: list[Note] = []
        self.asking: list[asyncio.Task[None]] = []
        self.reading: list[asyncio.Task[None]] = []

    def begin(self, request: Request) -> None:
        note = Note(request)
        self.notes.append(note)
        self.asking += [asyncio.ensure_future(self._ask(note)) for _ in range(request.twins)]

    async def finished(self) -> None:
        for task in self.asking:
            await task

    async def have_read(self) -> None:
        for task in self.reading:
            await task

    async def insist(self) -> None:
        """Until every request has its answer. Raises Broken."""
        for note in self.notes:
            for _ in range(INSISTS):
                if note.settled or note.excused or await self._tried(note):
                    break
                await asyncio.sleep(1.0)
            else:
                raise Broken("I2 an unknown outcome is told by its key", str(note.request))

    def excuse(self) -> None:
        """The ledger was restored: what is not in it any more was told in vain, and may be asked again."""
        kept = self.world.server.database.tables["commands"]
        for note in self.notes:
            request = note.request
            if (request.tenant, request.actor, request.key) not in kept:
                note.excused = note.excused or bool(note.answers)
                note.answers.clear()
                note.refusals.clear()

    async def _ask(self, note: Note) -> None:
        for attempt in range(TRIES):
            if await self._tried(note):
                return
            await asyncio.sleep(PAUSE_S * (attempt + self.world.chance.random.random()))

    async def _tried(self, note: Note) -> bool:
        request = note.request
        by = Actor(request.tenant, request.actor, frozenset(Permission))
        api = self.world.roles[self.world.chance.random.choice(("api-1", "api-2"))]
        assert isinstance(api, Api)
        tables, restored = self.world.server.database.tables, self.world.restored
        try:
            answer = await api.ask(Ask(request.command, by, request.key))
        except Refusal as refused:
            note.refusals.append(refused)
        except FAULTS:
            note.unknown += 1
            return False
        else:
            if (
                restored != self.world.restored
                and (request.tenant, request.actor, request.key) not in tables["commands"]
            ):
                note.excused = True  # it was on its way when the ledger was restored
            else:
                note.answers.append(answer)
                if self.world.chance.happens(READ_BACK):
                    self.reading.append(asyncio.ensure_future(self._read_back(answer.position)))
        return True

    async def _read_back(self, position: int) -> None:
        """As a client that wants to see what it wrote: waits until it is said to be there, and looks."""
        waiting, restored = list(Engine), self.world.restored
        while waiting:
            for engine in list(waiting):
                standing = self.world.watch.standing(engine, self.world.blocks)
                if all(standing.reached(each, position) for each in projections_in(engine)):
                    facts = facts_in(self.world.server.database)[:position]
                    judge_read(self.world.server.database, self.world.blocks, facts, standing)
                    waiting.remove(engine)
            await asyncio.sleep(READ_AGAIN_S)
            if self.world.restored != restored:
                return
