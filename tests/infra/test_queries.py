"""How far an answer is complete: by partition, by projection, by version, and no further than is true."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.queries import Desk, Queries, Standing, Watch
from infra.runtime import Runtime
from infra.settings import Settings
from projections.capacity import POOL_LIST
from projections.ordering import ORDER_LIST, PROJECTION
from projections.registry import projections_in
from projections.rows import Engine

TOPIC = "counterfoil.0.ordering.v1.p4"
OTHER = "counterfoil.0.catalog.v1.p4"


def standing(
    through: int, heads: dict[int, int], marks: dict[int, int], *, shown: int = 1, marked: int = 1
) -> Standing:
    desk = Desk(
        position=through,
        epoch=1,
        through=through,
        relay_active=True,
        heads={(TOPIC, partition): last for partition, last in heads.items()} | {(OTHER, 0): through},
        versions={("postgres", "ordering"): shown},
        marks={},
        parked={},
    )
    places = {("ordering", marked, TOPIC, partition): at for partition, at in marks.items()}
    return Standing(desk, Engine.POSTGRES, places)


def test_a_partition_that_is_not_as_far_as_asked_holds_the_answer_back() -> None:
    assert standing(9, {0: 9, 1: 5}, {0: 9, 1: 5}).reached(PROJECTION, 9)
    assert not standing(9, {0: 9, 1: 5}, {0: 8, 1: 5}).reached(PROJECTION, 9)
    assert standing(9, {0: 9, 1: 5}, {0: 8, 1: 5}).reached(PROJECTION, 8)
    assert not standing(9, {0: 9, 1: 5}, {0: 9, 1: 4}).reached(PROJECTION, 5)


def test_a_quiet_partition_holds_nothing_back() -> None:
    assert standing(9_000, {0: 9_000, 1: 5}, {0: 9_000, 1: 5}).reached(PROJECTION, 9_000)
    assert standing(9_000, {0: 9_000, 1: 5}, {0: 9_000, 1: 5}).complete_through(PROJECTION) == 9_000
    assert standing(7, {}, {}).reached(PROJECTION, 7)


def test_what_the_relay_has_not_published_is_not_there_however_far_the_marks_are() -> None:
    assert not standing(8, {0: 8}, {0: 8}).reached(PROJECTION, 9)


def test_a_partition_without_a_mark_has_nothing_yet() -> None:
    assert not standing(9, {0: 9, 1: 5}, {0: 9}).reached(PROJECTION, 9)
    assert standing(9, {0: 9, 1: 5}, {0: 9}).complete_through(PROJECTION) == 0


def test_marks_of_a_version_that_is_not_shown_count_for_nothing() -> None:
    assert not standing(9, {0: 9}, {0: 9}, shown=2, marked=1).reached(PROJECTION, 9)
    assert standing(9, {0: 9}, {0: 9}, shown=2, marked=2).reached(PROJECTION, 9)


def test_clickhouse_is_not_as_far_as_its_progress_while_the_desk_has_not_heard_what_was_parked() -> None:
    """Else a fact that is about to be parked would be neither shown nor told of as parked."""
    desk = replace(standing(9, {0: 9}, {}).desk, heads={(TOPIC, 0): 9})
    progress = {("sales", 1, TOPIC, 0): 9}
    (sales,) = projections_in(Engine.CLICKHOUSE)
    for committed in (0, 8, 9):
        marked = replace(desk, marks={("clickhouse", "sales", 1, TOPIC, 0): committed})
        shown = Standing(marked, Engine.CLICKHOUSE, progress)
        assert shown.reached(sales, 9) == (committed == 9)
        assert shown.complete_through(sales) == committed


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_complete_through_is_true_and_everything_up_to_it_is_reached(
    log: list[int], data: st.DataObject
) -> None:
    """A log of facts by partition, published to some position, projected unevenly: nothing up to the
    position told is missing, and `reached` says the same of each position as a look at the facts does."""
    through = data.draw(st.integers(0, len(log)))
    positions = {p: [at for at, partition in enumerate(log[:through], 1) if partition == p] for p in range(4)}
    heads = {p: found[-1] for p, found in positions.items() if found}
    marks = {p: data.draw(st.sampled_from([0, *positions[p]])) for p in heads}
    found = standing(through, heads, marks)

    def there(position: int) -> bool:
        return all(at <= marks[log[at - 1]] for at in range(1, position + 1))

    told = found.complete_through(PROJECTION)
    assert there(told)
    assert found.reached(PROJECTION, told)
    for position in range(through + 1):
        if found.reached(PROJECTION, position):
            assert there(position)
    assert not found.reached(PROJECTION, through + 1)


# ── the watch ─────────────────────────────────────────────────────────────────────────────────────


def watching(look: Callable[[], Awaitable[int]], body: Callable[[Watch[int]], Awaitable[None]]) -> None:
    async def run() -> None:
        watch = Watch("postgres", look, 0.02)
        task = asyncio.create_task(watch.run())
        try:
            await body(watch)
        finally:
            task.cancel()

    asyncio.run(run())


def test_many_waiters_share_one_look_that_began_after_they_came() -> None:
    looks: list[int] = []

    async def look() -> int:
        looks.append(len(looks))
        began = len(looks)
        await asyncio.sleep(0.01)
        return began

    async def body(watch: Watch[int]) -> None:
        await watch.next()
        for _ in range(5):
            begun = watch.begun
            values = await asyncio.gather(*(watch.next() for _ in range(50)))
            assert set(values) == {begun + 1}
        assert len(looks) <= 8

    watching(look, body)


def test_a_watch_ends_though_a_look_swallows_its_end() -> None:
    """As asyncio.wait_for does in Python 3.11, when what it waits for comes at the same time."""
    looking = asyncio.Event()

    async def look() -> int:
        looking.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 1

    async def story() -> None:
        task = asyncio.create_task(Watch("postgres", look, 0.02).run())
        await looking.wait()
        task.cancel()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)

    asyncio.run(story())


def test_an_idle_watch_looks_once_a_second() -> None:
    looks: list[float] = []

    async def look() -> int:
        looks.append(0)
        return 1

    async def body(watch: Watch[int]) -> None:
        await watch.next()
        await asyncio.sleep(1.5)

    watching(look, body)
    assert len(looks) <= 4


# ── walls ─────────────────────────────────────────────────────────────────────────────────────────


def asked(settings: Settings, body: Callable[[Queries], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Runtime(
            settings.model_copy(update={"clickhouse": "http://127.0.0.1:1/x"})
        ).queries() as queries:
            return await body(queries)

    return asyncio.run(run())


def test_a_parameter_is_never_part_of_the_sql(shared: Settings) -> None:
    async def body(queries: Queries) -> None:
        for nasty in ("'; DROP TABLE pools_v1; --", "{pools}", "%(limit)s", "%s", "{", "\\"):
            told = await queries.run(POOL_LIST, "demo", {"after": nasty, "limit": 5})
            assert told.rows == [[]]
            assert (await queries.run(POOL_LIST, nasty, {"after": "", "limit": 5})).rows == [[]]

    asked(shared, body)


def test_the_tenant_is_of_one_transaction_and_not_of_the_connection(shared: Settings) -> None:
    async def body(queries: Queries) -> None:
        await queries.run(ORDER_LIST, "demo", {"after": 0, "limit": 5})
        async with queries.pool.connection() as conn:
            row = await (await conn.execute("SELECT current_setting('counterfoil.tenant', true)")).fetchone()
        assert row is not None
        assert row[0] in (None, "")

    asked(shared, body)


def test_nothing_can_be_written_through_a_query(shared: Settings) -> None:
    async def body(queries: Queries) -> None:
        async with queries.pool.connection() as conn:
            for statement in (
                "DELETE FROM orders_v1",
                "DELETE FROM checkpoints",
                "UPDATE head SET position = 0",
            ):
                with pytest.raises(Exception, match=r"permission denied|read-only"):
                    async with conn.transaction():
                        await conn.execute(statement.encode())

    asked(shared, body)
