"""Real Postgres comes to what the fold comes to, in whatever order it arrives: now, and at any position."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from commands.handling import Command
from infra.readmodel import past, physical
from projections.registry import PROJECTIONS
from projections.rows import Engine
from tests.e2e.chaos.judge import agree
from tests.projections.histories import history, steps
from tests.streams.line import Line
from tests.streams.test_projector import go, heal

TABLES = [table for projection in PROJECTIONS for table in projection.tables_in(Engine.POSTGRES)]


@given(taken=steps, seed=st.integers(0, 2**32))
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_postgres_equals_the_fold_now_and_at_every_position(
    line: Line, taken: list[tuple[str, Command | str]], seed: int
) -> None:
    chance = random.Random(seed)
    line.empty()
    line.copied(history(taken))
    line.publish()
    arriving = [run for run in line.runs(each=chance.randint(1, 4)) for _ in range(chance.choice((0, 1, 2)))]
    chance.shuffle(arriving)

    async def story() -> None:
        async with line.projecting() as projector:
            while arriving:
                size = chance.randint(1, 5)
                await projector.take(arriving[:size])
                del arriving[:size]
            await heal(projector)

    go(story())
    line.agrees()
    head = len(line.stored())
    for position in {0, 1, head, *(chance.randint(0, head) for _ in range(6))}:
        fold = line.fold(position)
        for table in TABLES:
            agree(table, fold.rows(table), line.told(table, position))


def test_the_past_begins_with_nothing_and_is_never_rewritten(line: Line) -> None:
    """History rows of a key touch, never overlap, and only the last one is open."""

    @given(taken=steps)
    @settings(max_examples=4, deadline=None, phases=[Phase.generate], derandomize=True, database=None)
    def look(taken: list[tuple[str, Command | str]]) -> None:
        line.empty()
        line.copied(history(taken))

        async def story() -> None:
            async with line.projecting() as projector:
                await projector.take(line.runs())

        go(story())
        for table in TABLES:
            assert line.told(table, 0) == {}
            if table.sums:
                continue
            keys = ", ".join(f'"{name}"' for name in table.whole_key)
            bad = line.conn.execute(
                f"SELECT 1 FROM (SELECT to_position, lead(from_position)"
                f" OVER (PARTITION BY {keys} ORDER BY from_position) AS next FROM {past(table, 1)}) h"
                " WHERE next IS NOT NULL AND (to_position IS NULL OR to_position > next)".encode()
            ).fetchall()
            assert not bad, physical(table, 1)

    look()
