"""The simulated database under a projector: the same deliveries leave the same rows, past and marks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random
from unittest.mock import patch

import pytest

from commands.handling import Actor, Handler
from domain.refusals import Refusal
from domain.values import Permission
from infra import ledger
from infra.ledger import Ledger
from infra.memory import MemoryLog
from infra.readmodel import PostgresSink, physical
from infra.settings import Settings
from projections.registry import projections_in
from projections.rows import Engine
from streams.projector import Projector
from streams.topics import Run
from tests.simulation.connections import connecting
from tests.simulation.database import EPOCH_BEGINS, Database
from tests.simulation.faults import CALM, Chance
from tests.simulation.judge_views import told
from tests.simulation.loop import VirtualLoop
from tests.simulation.plan import Request, plan_of
from tests.simulation.roles import LEDGER
from tests.simulation.server import Server
from tests.simulation.sql_rows import know
from tests.simulation.world import Moody
from tests.streams.line import Line

REQUESTS = 60
TABLES = [
    table for projection in projections_in(Engine.POSTGRES) for table in projection.tables_in(Engine.POSTGRES)
]


@pytest.fixture
def line(settings: Settings) -> Iterator[Line]:
    made = Line(settings)
    yield made
    made.close()


def history(seed: int) -> MemoryLog:
    """What a plan's requests come to when nothing goes wrong."""
    log = MemoryLog()
    handler = Handler(log, lambda: EPOCH_BEGINS)
    for step in plan_of(seed, REQUESTS).steps:
        if isinstance(step, Request):
            try:
                by = Actor(step.tenant, step.actor, frozenset(Permission))
                handler.handle(step.command, by=by, key=step.key)
            except Refusal:
                continue
    return log


def deliveries(random: Random, runs: Sequence[Run]) -> list[list[Run]]:
    """Some never, some twice, none in order, a few at a time."""
    brought = [run for run in runs for _ in range(random.choice((0, 1, 1, 2)))]
    random.shuffle(brought)
    return [brought[first : first + 4] for first in range(0, len(brought), 4)]


async def bring(projector: Projector, brought: Sequence[Sequence[Run]], poisoned: set[str]) -> None:
    """The projection that breaks is mended half way."""
    for nth, runs in enumerate(brought):
        if nth == len(brought) // 2:
            poisoned.clear()
            await projector.drain()
        await projector.take(runs)
    for _ in range(4):
        await projector.heal_tails()


def followers(poisoned: set[str]) -> list[Moody]:
    made = [Moody(projection) for projection in projections_in(Engine.POSTGRES)]
    for each in made:
        each.poisoned = poisoned
    return made


def simulated(
    memory: MemoryLog, runs: Sequence[Run], brought: Sequence[Sequence[Run]], poisoned: set[str]
) -> Database:
    chance = Chance(Random(0), CALM)
    loop = VirtualLoop(chance.random)  # type: ignore[abstract]  # it has what is used
    server = Server(loop, chance)
    tables = server.database.tables
    for position, (tenant, stream, *rest) in enumerate(memory.rows, 1):
        tables["stored_events"][position,] = (f"{tenant}/{stream}", *rest)
    tables["head"][()] = (len(memory.rows), memory.at_us, 1)
    tables["relay"][()] = (len(memory.rows), "a broker", 1, 0.0)
    for run in runs:
        tables["relay_head"][run.place] = run.last
    for table in TABLES:
        know(physical(table, 1), table)
    with patch.object(ledger, "connect", connecting(server)):
        sink = PostgresSink(Ledger("", ""))
        loop.run(bring(Projector(LEDGER, Ledger("", ""), sink, followers(poisoned)), brought, poisoned))
    return server.database


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_same_deliveries_leave_the_same_in_postgres(line: Line, seed: int) -> None:
    random, memory = Random(seed), history(seed)
    line.copied(memory)
    runs = line.runs()
    line.publish(runs)
    brought = deliveries(random, runs)
    bad = set(random.sample(sorted({fact.originator_id for fact in line.stored()}), 8))

    async def story() -> None:
        mine = set(bad)
        async with line.projecting("postgres", followers(mine)) as projector:
            await bring(projector, brought, mine)
            assert projector.counted.parked
            assert projector.counted.healed
            assert projector.counted.duplicates

    asyncio.run(story())
    database = simulated(memory, runs, brought, set(bad))
    for table in TABLES:
        assert dict(database.tables[physical(table, 1)]) == line.shown(table)
        for position in (len(memory.rows) // 2, 2**62):
            assert told(database, table, position) == line.told(table, position)
    marks = {key[1:2] + key[3:]: at for key, at in database.tables["checkpoints"].items()}
    assert marks == line.marks()
    parked = [(key[1], key[2], key[3], row[2]) for key, row in database.tables["parked"].items()]
    assert sorted(parked) == sorted(line.parked())
    line.agrees()
