"""Limits: one contract for both stores, and what is left of it on the day that Redis is lost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import pytest
import redis
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from infra.limits import EVERYBODY_ELSE, InProcess, Limit, Shared, Standing, take
from infra.runtime import Runtime
from infra.settings import BadSetting, Settings
from tests.redis_server import RedisServer


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# ── the contract ──────────────────────────────────────────────────────────────────────────────────

Ask = Callable[[str, int, int], Awaitable[Standing]]
Claim = Callable[[Ask], Awaitable[None]]


@pytest.fixture(params=["memory", "redis"])
def holds(request: pytest.FixtureRequest) -> Callable[[Claim], None]:
    """Run a claim against a store, on the loop that production has."""

    async def against_memory(claim: Claim) -> None:
        await claim(partial(take, InProcess()))

    async def against_redis(claim: Claim) -> None:
        async with shared(server.url) as counts:

            async def ask(key: str, amount: int, window_s: int) -> Standing:
                told = await counts.take(key, amount, window_s)
                assert told is not None
                return told

            await claim(ask)

    if request.param == "memory":
        return lambda claim: uvloop.run(against_memory(claim))
    request.getfixturevalue("patient")
    server: RedisServer = request.getfixturevalue("redis_server")
    return lambda claim: uvloop.run(against_redis(claim))


@asynccontextmanager
async def shared(url: str) -> AsyncIterator[Shared]:
    counts = Shared(url)
    await counts.open()
    try:
        yield counts
    finally:
        await counts.close()


def test_as_many_as_the_limit_says_and_not_one_more(holds: Callable[[Claim], None]) -> None:
    async def claim(ask: Ask) -> None:
        told = [await ask("demo", 5, 60) for _ in range(8)]
        assert [each.admitted for each in told] == [True] * 5 + [False] * 3
        assert [each.remaining for each in told] == [4, 3, 2, 1, 0, 0, 0, 0]
        assert all(58 <= each.reset_s <= 60 for each in told)
        assert [each.wait_s > 0 for each in told] == [False] * 4 + [True] * 4

    holds(claim)


def test_of_many_who_come_at_once_as_many_as_the_limit_says(holds: Callable[[Claim], None]) -> None:
    async def claim(ask: Ask) -> None:
        told = await asyncio.gather(*(ask("demo", 20, 60) for _ in range(200)))
        assert sum(each.admitted for each in told) == 20

    holds(claim)


def test_one_does_not_count_for_another(holds: Callable[[Claim], None]) -> None:
    async def claim(ask: Ask) -> None:
        assert (await ask("demo", 1, 60)).admitted
        assert not (await ask("demo", 1, 60)).admitted
        assert (await ask("other", 1, 60)).admitted

    holds(claim)


def test_whoever_waits_as_long_as_told_is_let_through(holds: Callable[[Claim], None]) -> None:
    async def claim(ask: Ask) -> None:
        for _ in range(2):
            while (told := await ask("demo", 3, 1)).admitted:
                pass
            await asyncio.sleep(told.wait_s + 0.02)
            assert (await ask("demo", 3, 1)).admitted

    holds(claim)


def test_whoever_was_away_for_two_windows_has_everything_again(holds: Callable[[Claim], None]) -> None:
    async def claim(ask: Ask) -> None:
        for _ in range(2):
            told = [await ask("demo", 3, 1) for _ in range(4)]
            assert [each.admitted for each in told] == [True, True, True, False]
            await asyncio.sleep(2.1)

    holds(claim)


# ── in the process ────────────────────────────────────────────────────────────────────────────────


def test_what_was_let_through_before_counts_for_as_much_of_the_window_as_is_left() -> None:
    async def claim() -> None:
        clock = Clock()
        store = InProcess(clock)
        for _ in range(10):
            assert (await take(store, "demo", 10, 60)).admitted
        clock.now_s += 60
        refused = await take(store, "demo", 10, 60)
        assert (refused.admitted, refused.wait_s) == (False, 1)
        clock.now_s += 30
        told = [await take(store, "demo", 10, 60) for _ in range(6)]
        assert [each.admitted for each in told] == [True] * 5 + [False]
        assert told[-1].wait_s == 1, "six of sixty seconds are one of ten"

    asyncio.run(claim())


@given(
    st.integers(1, 9),
    st.lists(st.floats(0, 45, allow_nan=False), min_size=1, max_size=60),
)
def test_no_window_lets_more_through_and_a_told_wait_is_long_enough(
    amount: int, pauses_s: list[float]
) -> None:
    async def claim() -> None:
        clock = Clock()
        store = InProcess(clock)
        began: dict[float, int] = {}
        for pause_s in pauses_s:
            clock.now_s += pause_s
            told = await take(store, "demo", amount, 60)
            window = store.counts["demo"].began_s
            began[window] = began.get(window, 0) + told.admitted
            if not told.admitted:
                assert 0 < told.wait_s <= 61
                clock.now_s += told.wait_s + 0.001  # a float's last digit is no time for a request to arrive
                assert (await take(store, "demo", amount, 60)).admitted
                began[store.counts["demo"].began_s] = began.get(store.counts["demo"].began_s, 0) + 1
        assert max(began.values()) <= amount

    asyncio.run(claim())


def test_who_comes_when_too_many_are_counted_shares_one_counter_and_crowds_out_nobody() -> None:
    async def claim() -> None:
        clock = Clock()
        store = InProcess(clock, keys_max=10)
        for number in range(10):
            assert (await take(store, f"early-{number}", 2, 60)).admitted
        late = [await take(store, f"late-{number}", 2, 60) for number in range(1000)]
        assert sum(each.admitted for each in late) == 2
        assert len(store.counts) == 11
        assert EVERYBODY_ELSE in store.counts
        assert (await take(store, "early-0", 2, 60)).admitted
        clock.now_s += 121
        again = [await take(store, f"late-{number}", 2, 60) for number in range(5)]
        assert all(each.admitted for each in again), "those of before are forgotten"
        assert len(store.counts) <= 11

    asyncio.run(claim())


# ── with Redis, and without ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a claim that is not about time, on a machine that may be busy."""
    monkeypatch.setattr("infra.limits.REDIS_S_MAX", 10.0)


@pytest.mark.usefixtures("patient")
def test_processes_count_together_in_redis(redis_server: RedisServer) -> None:
    async def claim() -> None:
        async with shared(redis_server.url) as first, shared(redis_server.url) as second:
            limits = [Limit("commands", 20, each) for each in (first, second)]
            told = await asyncio.gather(*(limit.take("demo/operator") for limit in limits for _ in range(40)))
            assert sum(each.admitted for each in told) == 20

    uvloop.run(claim())


def test_control_processes_that_do_not_count_together_let_each_their_own_through() -> None:
    async def claim() -> None:
        limits = [Limit("commands", 20) for _ in range(2)]
        told = await asyncio.gather(*(limit.take("demo/operator") for limit in limits for _ in range(40)))
        assert sum(each.admitted for each in told) == 40

    uvloop.run(claim())


AMOUNT = 300


async def load_through_a_kill(server: RedisServer, kind: type[Limit]) -> tuple[int, list[float]]:
    """2,000 requests of twenty clients; Redis dies after the first hundred.

    How many were let through, and how long each request took, in seconds.
    """
    async with shared(server.url) as counts:
        limit = kind("commands", AMOUNT, counts)
        admitted, took_s, turns = [], [], count()

        async def client() -> None:
            for _ in range(100):
                if next(turns) == 100:
                    server.kill()
                began_s = time.perf_counter()
                admitted.append((await limit.take("demo/operator")).admitted)
                took_s.append(time.perf_counter() - began_s)
                await asyncio.sleep(0)

        await asyncio.gather(*(client() for _ in range(20)))
        assert counts.away()
        return sum(admitted), took_s


def test_redis_killed_under_load_costs_nobody_an_answer_and_lets_not_one_too_many_through(
    redis_server: RedisServer,
) -> None:
    admitted, took_s = uvloop.run(load_through_a_kill(redis_server, Limit))
    assert admitted == AMOUNT
    assert len(took_s) == 2000
    assert sorted(took_s)[1900] < 0.02, "but for those under way"
    assert max(took_s) < 1


class Opening(Limit):
    """Lets everybody through while Redis is away."""

    async def take(self, who: str) -> Standing:
        assert self.shared is not None
        told = await self.shared.take(who, self.amount, self.window_s)
        return told or Standing(True, self.amount, 60, 0)


class CountingFromThen(Limit):
    """Begins to count for itself when Redis is lost: what was let through before is forgotten."""

    async def take(self, who: str) -> Standing:
        assert self.shared is not None
        return await self.shared.take(who, self.amount, self.window_s) or await self._take_here(who)


@pytest.mark.parametrize("kind", [Opening, CountingFromThen])
def test_control_a_limiter_that_opens_or_forgets_when_redis_dies_is_caught(
    redis_server: RedisServer, kind: type[Limit]
) -> None:
    admitted, _ = uvloop.run(load_through_a_kill(redis_server, kind))
    assert admitted > AMOUNT


async def back(counts: Shared) -> None:
    assert counts.looking
    await asyncio.wait_for(counts.looking, 10)


def test_redis_is_used_again_when_it_is_back(redis_server: RedisServer) -> None:
    async def claim() -> None:
        async with shared(redis_server.url) as counts:
            limit = Limit("commands", 100, counts)
            await asyncio.gather(*(limit.take("demo/operator") for _ in range(16)))  # all connections
            redis_server.kill()
            assert (await limit.take("demo/operator")).admitted
            assert counts.away()
            redis_server.start()
            told = [await limit.take("demo/operator") for _ in range(10)]
            assert counts.away(), "nobody looks so soon"
            await back(counts)
            told += await asyncio.gather(*(limit.take("demo/operator") for _ in range(16)))
            assert not counts.away()
            told += await asyncio.gather(*(limit.take("demo/operator") for _ in range(16)))
            assert not counts.away()
            assert all(each.admitted for each in told)
            assert min(each.remaining for each in told) == 100 - 16 - 1 - 10 - 32, (
                "this process forgot nothing"
            )
        with redis.Redis.from_url(redis_server.url) as asked:
            assert asked.keys() == [b"counterfoil:{commands/60/demo/operator}"]
            found = asked.get(b"counterfoil:{commands/60/demo/operator}")
            assert isinstance(found, bytes)
            assert int(found) > 16

    uvloop.run(claim())


def test_a_redis_that_hangs_holds_up_who_is_just_asking_for_a_moment_and_nobody_else(
    redis_server: RedisServer,
) -> None:
    async def claim() -> None:
        async with shared(redis_server.url) as counts:
            limit = Limit("commands", 1000, counts)
            assert (await limit.take("demo/operator")).admitted
            with redis_server.frozen():
                took_s = []
                for _ in range(100):
                    began_s = time.perf_counter()
                    assert (await limit.take("demo/operator")).admitted
                    took_s.append(time.perf_counter() - began_s)
            assert counts.away()
            assert 0.04 < took_s[0] < 0.5
            assert sum(took_s[1:]) < 0.5
            await back(counts)
            assert (await limit.take("demo/operator")).remaining == 1000 - 102
            assert not counts.away()

    uvloop.run(claim())


def test_without_any_redis_there_it_is_the_process_that_counts(redis_server: RedisServer) -> None:
    async def claim() -> None:
        redis_server.kill()
        async with shared(redis_server.url) as counts:
            limit = Limit("commands", 3, counts)
            told = [await limit.take("demo/operator") for _ in range(5)]
            assert [each.admitted for each in told] == [True] * 3 + [False] * 2

    uvloop.run(claim())


def test_its_client_that_is_not_installed_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    runtime = Runtime(Settings(redis="redis://:hunter2@127.0.0.1:1/0"))
    with pytest.raises(BadSetting, match=r"COUNTERFOIL_REDIS.*pip install counterfoil\[redis\]") as refused:
        runtime.limit("commands", 5)
    assert "hunter2" not in str(refused.value)


def test_a_limit_of_nothing_is_none() -> None:
    assert Runtime(Settings()).limit("commands", 0) is None
