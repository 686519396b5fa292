"""How much somebody may ask for in a minute: counted here always, and in Redis with every other process.

A sliding window of two counters: what was let through in the window before, weighted by how much of it is
still within reach, and in this one. That is two numbers however high the limit is; a moving window, the exact
kind, keeps the time of each request, sixty thousand of them for one tenant.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any

from limits.aio.storage import RedisStorage, SlidingWindowCounterSupport

from infra.settings import BadSetting

WINDOW_S = 60
KEYS_MAX = 100_000
"""Counted apart at a time, by one limit of one process: 18 MB. Whoever comes then shares one counter."""
REDIS_S_MAX = 0.05
"""For all that one request asks of Redis, which answers in less than a millisecond or is as good as away."""
REDIS_AGAIN_S = 1.0
"""How often Redis is looked for while it is away, and how long it may take; no request waits for that."""
REDIS_CONNECTIONS = 8
"""Who comes when all are busy waits for one, which is no fault of Redis and not in REDIS_S_MAX."""
EVERYBODY_ELSE = "*"
log = logging.getLogger("counterfoil.limits")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where somebody stands after a request: whether it is let through, and how many more would be now."""

    admitted: bool
    remaining: int
    reset_s: int
    """Until the present window ends."""
    wait_s: int
    """Until one more is let through, if nobody asks meanwhile; 0 for now."""


@dataclass(slots=True)
class _Count:
    began_s: float
    previous: int = 0
    current: int = 0


class InProcess(SlidingWindowCounterSupport):
    """The contract of the library's stores, in a dictionary of bounded size.

    Its own one looks through every key at each request: 2 ms with ten thousand addresses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, keys_max: int = KEYS_MAX) -> None:
        self.clock, self.keys_max = clock, keys_max
        self.counts: dict[str, _Count] = {}

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now_s = self.clock()
        count = self._rolled(key, expiry, now_s)
        left = 1 - (now_s - count.began_s) / expiry
        if floor(count.previous * left) + count.current + amount > limit:
            return False
        count.current += amount
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """How many before, for how many seconds they still count; how many now, for how many seconds."""
        now_s = self.clock()
        count = self._rolled(key, expiry, now_s)
        left_s = count.began_s + expiry - now_s
        return count.previous, left_s, count.current, left_s + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        self.counts.pop(key, None)

    def _rolled(self, key: str, window_s: int, now_s: float) -> _Count:
        """The key's counters, of the window that it is now; the one whose window began first stands first."""
        found = self.counts.get(key)
        if found is None and key != EVERYBODY_ELSE and self._full(window_s, now_s):
            return self._rolled(EVERYBODY_ELSE, window_s, now_s)
        if found is None or now_s >= found.began_s + 2 * window_s:
            self.counts.pop(key, None)
            self.counts[key] = _Count(now_s)
        elif now_s >= found.began_s + window_s:
            del self.counts[key]
            self.counts[key] = _Count(found.began_s + window_s, previous=found.current)
        return self.counts[key]

    def _full(self, window_s: int, now_s: float) -> bool:
        if len(self.counts) < self.keys_max:
            return False
        oldest = next(iter(self.counts))
        if now_s < self.counts[oldest].began_s + 2 * window_s:
            return True
        del self.counts[oldest]
        return False


async def take(store: SlidingWindowCounterSupport, key: str, amount: int, window_s: int) -> Standing:
    """Count one request, if it is let through."""
    admitted = await store.acquire_sliding_window_entry(key, amount, window_s)
    return await standing(store, key, amount, window_s, admitted=admitted)


async def standing(
    store: SlidingWindowCounterSupport, key: str, amount: int, window_s: int, *, admitted: bool
) -> Standing:
    before, before_s, now, now_s = await store.get_sliding_window(key, window_s)
    remaining = max(0, amount - now - floor(before * before_s / window_s))
    end_s = now_s - window_s if now_s > window_s else float(window_s)
    wait_s = 0
    if not remaining:
        # The weight of those before falls below what this window leaves free; else this one has to end.
        frees_s = before_s - (amount - now) * window_s / before if before and now < amount else end_s
        wait_s = floor(max(0.0, frees_s)) + 1
    return Standing(admitted, remaining, max(1, ceil(end_s)), wait_s)


class Shared:
    """Counters in Redis, one for all processes of an installation. Raises BadSetting without its client."""

    def __init__(self, url: str) -> None:
        try:
            from redis import RedisError
            from redis.asyncio import ConnectionPool, Redis
        except ImportError:
            raise BadSetting(
                "COUNTERFOIL_REDIS: the client is not installed: pip install counterfoil[redis],"
                " or leave it empty and each process counts for itself"
            ) from None
        self.pool = ConnectionPool.from_url(url, max_connections=REDIS_CONNECTIONS, protocol=2)
        self.client = Redis(connection_pool=self.pool)
        self.free = asyncio.Semaphore(REDIS_CONNECTIONS)
        options: dict[str, Any] = {"connection_pool": self.pool}  # typed as a plain value there
        self.store = RedisStorage(
            f"async+{url}", implementation="redispy", key_prefix="counterfoil", **options
        )
        # RuntimeError is what uvloop says of a connection that is closed while somebody writes.
        self.faults: tuple[type[Exception], ...] = (RedisError, OSError, RuntimeError)
        self.looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Before the first request, so that none waits for a connection; a Redis that is away is no error."""
        fault = await self._opened()
        if fault is not None:
            self._lost(fault)

    def away(self) -> bool:
        return self.looking is not None

    async def take(self, key: str, amount: int, window_s: int) -> Standing | None:
        """None where Redis does not say so in REDIS_S_MAX, and at once until it is found again."""
        if self.away():
            return None
        async with self.free:
            if self.away():
                return None
            try:
                async with asyncio.timeout(REDIS_S_MAX):
                    return await take(self.store, key, amount, window_s)
            except self.faults as fault:
                self._lost(fault)
                return None

    def _lost(self, fault: BaseException) -> None:
        if not self.away():
            log.warning("Redis does not answer, each process counts for itself: %r", fault)
            self.looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while self.away():
            await asyncio.sleep(REDIS_AGAIN_S)
            if await self._opened() is None:
                log.warning("Redis answers again, and counts for all")
                self.looking = None

    async def _opened(self) -> BaseException | None:
        """Open all connections, which takes longer than a request may wait. What went wrong, if anything."""
        try:
            async with asyncio.timeout(REDIS_AGAIN_S):
                pings = (self.client.ping() for _ in range(REDIS_CONNECTIONS))
                told = await asyncio.gather(*pings, return_exceptions=True)
        except self.faults as fault:
            return fault
        return next((each for each in told if isinstance(each, BaseException)), None)

    async def close(self) -> None:
        if self.looking is not None:
            self.looking.cancel()
        await self.pool.aclose()


@dataclass
class Limit:
    """So many requests in a window, for whoever is named.

    What this process lets through it counts itself, whether Redis answers or not. So it never lets more
    through than `amount` when Redis is lost: its own count is there already, and stands.
    """

    name: str
    amount: int
    shared: Shared | None = None
    window_s: int = WINDOW_S
    here: InProcess = field(default_factory=InProcess)

    @property
    def policy(self) -> str:
        """RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers."""
        return f'"{self.name}";q={self.amount};w={self.window_s}'

    def told(self, standing: Standing) -> str:
        """RateLimit of the same: what remains, and the seconds until the window ends."""
        return f'"{self.name}";r={standing.remaining};t={standing.reset_s}'

    async def take(self, who: str) -> Standing:
        """Count one request of theirs, if it is let through. Never raises on account of Redis."""
        if self.shared is None:
            return await self._take_here(who)
        mine = await standing(self.here, who, self.amount, self.window_s, admitted=False)
        if not mine.remaining:
            return mine
        everywhere = await self.shared.take(f"{self.name}/{self.window_s}/{who}", self.amount, self.window_s)
        if everywhere is not None and not everywhere.admitted:
            return everywhere
        mine = await self._take_here(who)
        if everywhere is None or not mine.admitted:
            return mine
        return min(everywhere, mine, key=lambda each: each.remaining)

    async def _take_here(self, who: str) -> Standing:
        return await take(self.here, who, self.amount, self.window_s)
