"""Writers that hold transactions open, in every order: a reader delivers just what was committed.

`make proofs` runs the schedules of five and six writers; those of up to four are in every run of the suite.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from infra.migrate import admin_dsn
from tests.infra.proofs.schedules import Law, Schedule, overtakes, schedules
from tests.infra.proofs.stage import (
    WRITERS_MAX,
    BySequence,
    Follower,
    Relay,
    Stage,
    Stock,
    ThroughTheFunction,
    Writers,
    Writing,
    connections,
)
from tests.ledgers import InPostgres

GIVES_UP: Law = "one at a time, who waits may give up"
KEPT_UP: Law = "one at a time"


def go(story: Coroutine[Any, Any, None], timeout_s: float = 100) -> None:
    asyncio.run(asyncio.wait_for(story, timeout_s))


@asynccontextmanager
async def staged(
    stored: InPostgres,
    writing: Writing,
    schema: str,
    kinds: Sequence[type[Relay | Stock]] = (Relay, Stock),
    *,
    kill: bool = False,
) -> AsyncIterator[Stage]:
    """The relay's reader and the library's, in the role that the relay has."""
    admin = admin_dsn(stored.settings)
    readers = [kind(stored.settings.role_dsn("worker"), schema) for kind in kinds]
    async with connections(admin, schema, WRITERS_MAX + 1) as (observer, *free):
        followers = [Follower(reader, observer if kill else None) for reader in readers]
        yield Stage(Writers(writing, free, observer), followers)
    for reader in readers:
        await reader.close()


async def play_all(stored: InPostgres, writers: int, law: Law) -> int:
    played = 0
    async with staged(stored, ThroughTheFunction(), stored.schema) as stage:
        for schedule in schedules(writers, law):
            await stage.play(schedule)
            played += 1
    return played


@pytest.mark.parametrize(("writers", "count"), [(1, 2), (2, 6), (3, 42), (4, 414)])
def test_in_every_order_of_up_to_four_writers_what_is_delivered_is_what_was_committed(
    stored: InPostgres, writers: int, count: int
) -> None:
    async def story() -> None:
        assert await play_all(stored, writers, GIVES_UP) == count

    go(story())


@pytest.mark.proofs
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("writers", "law", "count"), [(5, GIVES_UP, 5_058), (6, KEPT_UP, 2_688)])
def test_in_every_order_of_six_writers_too(stored: InPostgres, writers: int, law: Law, count: int) -> None:
    async def story() -> None:
        assert await play_all(stored, writers, law) == count

    go(story(), 1_800)


@pytest.mark.parametrize(
    ("reader", "writers_max"), [(Relay, 3), (Stock, 2)]
)  # the library takes 0.1 s to reconnect
def test_a_reader_killed_at_every_step_begins_where_it_was_and_delivers_the_same(
    stored: InPostgres, reader: type[Relay | Stock], writers_max: int
) -> None:
    async def story() -> None:
        async with staged(stored, ThroughTheFunction(), stored.schema, (reader,), kill=True) as stage:
            for writers in range(1, writers_max + 1):
                for schedule in schedules(writers, KEPT_UP):
                    await stage.play(schedule)
            assert stage.followers[0].kills >= len(stage.writers.committed) > 5

    go(story())


# ── without a head row ────────────────────────────────────────────────────────────────────────────

BIGSERIAL = """
CREATE SCHEMA bigserial;
CREATE TABLE bigserial.stored_events (LIKE {schema}.stored_events);
CREATE SEQUENCE bigserial.positions;
ALTER TABLE bigserial.stored_events ALTER notification_id SET DEFAULT nextval('bigserial.positions');
CREATE VIEW bigserial.head AS SELECT coalesce(max(notification_id), 0) AS position, 1 AS epoch, NULL AS closed
  FROM bigserial.stored_events;
GRANT USAGE ON SCHEMA bigserial TO counterfoil_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA bigserial TO counterfoil_worker;
"""
"""As the library's stock table: the same columns and readers, and a position from a sequence."""


@pytest.fixture
def bigserial(stored: InPostgres) -> Iterator[str]:
    with stored.admin() as conn:
        conn.execute(BIGSERIAL.format(schema=stored.schema).encode())
        yield "bigserial"
        conn.execute("DROP SCHEMA bigserial CASCADE")


async def lost(stage: Stage, schedule: Schedule) -> bool:
    """Whether a fact was committed during this schedule that no reader will ever see."""
    before = len(stage.writers.committed)
    seen = [len(follower.delivered) for follower in stage.followers]
    for step in schedule:
        await stage.take(step)
    committed = len(stage.writers.committed) - before
    missed = [committed - len(each.delivered) + had for each, had in zip(stage.followers, seen, strict=True)]
    assert len(set(missed)) == 1, "one of the readers is better than the other"
    return missed[0] > 0


def test_control_of_positions_from_a_sequence_a_reader_loses_facts_in_every_order_that_overtakes(
    stored: InPostgres, bigserial: str
) -> None:
    """Negative control, by the same readers: in 22 of the 90 orders of up to three writers, no others."""

    async def story() -> None:
        every = [schedule for writers in (1, 2, 3) for schedule in schedules(writers, "all at once")]
        async with staged(stored, BySequence(), bigserial) as stage:
            losing = [schedule for schedule in every if await lost(stage, schedule)]
        assert losing == [schedule for schedule in every if overtakes(schedule)]
        assert (len(losing), len(every)) == (22, 90)

    go(story())


def test_control_the_assertion_of_the_proof_rejects_such_an_order(stored: InPostgres, bigserial: str) -> None:
    """Negative control: by what the proof above stands on, and by no other."""

    async def story() -> None:
        for schedule in filter(overtakes, schedules(2, "all at once")):
            async with staged(stored, BySequence(), bigserial) as stage:
                with pytest.raises(AssertionError, match="another order"):
                    await stage.play(schedule)
                await stage.writers.settle()

    go(story())
