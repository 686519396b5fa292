"""What stands for `threading` and `time` in the code under simulation: fibers and virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.fibers import Fiber
from tests.simulation.loop import VirtualLoop


class Lock:
    """Re-entered by nobody here, so that it serves as an RLock too."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.taken = False
        self.waiters: deque[asyncio.Future[None]] = deque()

    def acquire(self) -> bool:
        while self.taken:
            future = self.loop.create_future()
            self.waiters.append(future)
            self.loop.fibers.block(future)
        self.taken = True
        return True

    def release(self) -> None:
        self.taken = False
        if self.waiters:
            self.waiters.popleft().set_result(None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """Its owner is a fiber, or the loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(loop)
        self.owner: object = None
        self.depth = 0

    def acquire(self) -> bool:
        mine = self.loop.fibers.current or self.loop
        if self.owner is not mine:
            super().acquire()
            self.owner = mine
        self.depth += 1
        return True

    def release(self) -> None:
        self.depth -= 1
        if not self.depth:
            self.owner = None
            super().release()


class Condition:
    def __init__(self, loop: VirtualLoop, lock: Lock) -> None:
        self.loop, self.lock = loop, lock
        self.waiters: deque[asyncio.Future[bool]] = deque()

    def __enter__(self) -> bool:
        return self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        future = self.loop.create_future()
        self.waiters.append(future)
        timer = None if timeout is None else self.loop.call_later(max(timeout, 0.0), _resolve, future, False)
        self.lock.release()
        try:
            return bool(self.loop.fibers.block(future))
        finally:
            if timer is not None:
                timer.cancel()
            self.lock.acquire()

    def notify(self) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return


class Event:
    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.happened = loop.create_future()

    def is_set(self) -> bool:
        return self.happened.done()

    def set(self) -> None:
        _resolve(self.happened, True)

    def wait(self) -> bool:
        return bool(self.loop.fibers.block(self.happened))


class Thread:
    def __init__(self, loop: VirtualLoop, target: Callable[[], None]) -> None:
        self.loop, self.target = loop, target
        self.fiber: Fiber | None = None

    def start(self) -> None:
        self.fiber = self.loop.fibers.start(self.target)

    def join(self) -> None:
        assert self.fiber is not None
        self.loop.fibers.block(self.fiber.done)


class Threading:
    """`threading`, as far as it is used."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop

    def Lock(self) -> Lock:  # noqa: N802  the names are the module's
        return Lock(self.loop)

    def RLock(self) -> RLock:  # noqa: N802
        return RLock(self.loop)

    def Condition(self, lock: Any) -> Condition:  # noqa: N802
        return Condition(self.loop, lock)

    def Event(self) -> Event:  # noqa: N802
        return Event(self.loop)

    def Thread(self, *, target: Callable[[], None], name: str, daemon: bool) -> Thread:  # noqa: N802
        return Thread(self.loop, target)

    def current_thread(self) -> object:
        """Equal to no Thread: nothing here asks but from outside of it."""
        return self.loop.fibers.current or self.loop


class Time:
    """`time`, as far as it is used."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop

    def monotonic(self) -> float:
        return self.loop.now_s

    def sleep(self, seconds: float) -> None:
        self.loop.fibers.sleep(seconds)


def _resolve(future: asyncio.Future[Any], value: bool) -> None:
    if not future.done():
        future.set_result(value)
