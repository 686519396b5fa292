"""Threads that take turns with the loop: real stacks, one of which runs at a time, by the seed's will."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from tests.simulation.process import PROCESS, Killed, Process

if TYPE_CHECKING:
    from tests.simulation.loop import VirtualLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Carrier(threading.Thread):
    """An operating system's thread that runs one fiber after another."""

    idle: list[Carrier] = []  # noqa: RUF012  shared on purpose: threads outlive a simulation

    def __init__(self) -> None:
        super().__init__(name="carrier", daemon=True)
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.job: Callable[[], None] | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.go.acquire()
            assert self.job is not None
            self.job()
            self.job = None
            self.idle.append(self)
            self.back.release()


class Fiber:
    """A call that may block; it goes on when the loop resumes it."""

    def __init__(self, loop: VirtualLoop, process: Process | None, call: Callable[[], Any]) -> None:
        self.loop, self.process, self.call = loop, process, call
        self.context: Context = copy_context()
        self.outside: Context = copy_context()
        """Of the loop's own steps for it: a context is entered by one at a time."""
        self.done: asyncio.Future[Any] = loop.create_future()
        self.carrier: Carrier | None = None
        self.killed = False
        if process is not None:
            process.fibers[self] = None

    def resume(self, _: object = None) -> None:
        """Called by the loop, which stands still until the fiber blocks or ends."""
        if self.done.done():
            return
        if self.carrier is None:
            self.carrier = Carrier.idle.pop() if Carrier.idle else Carrier()
            self.carrier.job = self._run
        fibers, carrier = self.loop.fibers, self.carrier
        before, fibers.current = fibers.current, self
        carrier.go.release()
        carrier.back.acquire()
        fibers.current = before

    def block(self, future: asyncio.Future[T]) -> T:
        """Called by the fiber: wait for a future of the loop."""
        if self.killed:
            raise Killed
        if not future.done():
            future.add_done_callback(self.resume, context=self.outside)
            carrier = self.carrier
            assert carrier is not None
            carrier.back.release()
            carrier.go.acquire()
            if self.killed:
                raise Killed
        return future.result()

    def kill(self) -> None:
        self.killed = True
        if self.carrier is None:
            self._end()
        else:
            while not self.done.done():
                self.resume()

    def _run(self) -> None:
        outcome: Any = None
        raised: BaseException | None = None
        try:
            outcome = self.context.run(self.call)
        except BaseException as broken:  # noqa: BLE001  whoever waits is told
            raised = broken
        self._end()
        if self.done.done():
            return
        if raised is None:
            self.done.set_result(outcome)
        elif isinstance(raised, Killed):
            self.done.cancel()
        else:
            self.done.set_exception(raised)

    def _end(self) -> None:
        if self.process is not None:
            self.process.fibers.pop(self, None)
        if self.killed and not self.done.done():
            self.done.cancel()


class Fibers:
    """All of a loop, and the pools of threads that processes think they have."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.current: Fiber | None = None
        self.pools: dict[tuple[Process | None, int], tuple[int, deque[Fiber]]] = {}

    def start(self, call: Callable[[], Any]) -> Fiber:
        """A thread of the present process, that begins soon."""
        fiber = Fiber(self.loop, PROCESS.get(), call)
        self.loop.call_soon(fiber.resume)
        return fiber

    def run(self, pool: int, threads: int, call: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """In a pool of so many threads: who comes when all are busy waits for one."""
        process = PROCESS.get()
        fiber = Fiber(self.loop, process, lambda: call(*args))
        busy, waiting = self.pools.get((process, pool), (0, deque[Fiber]()))
        if busy >= threads:
            waiting.append(fiber)
        else:
            busy += 1
            self.loop.call_soon(fiber.resume)
        self.pools[process, pool] = busy, waiting
        fiber.done.add_done_callback(lambda _: self._next(process, pool))
        told: asyncio.Future[T] = self.loop.create_future()
        fiber.done.add_done_callback(lambda done: _tell(done, told))
        return told

    def _next(self, process: Process | None, pool: int) -> None:
        busy, waiting = self.pools[process, pool]
        if waiting:
            self.loop.call_soon(waiting.popleft().resume)
        else:
            self.pools[process, pool] = busy - 1, waiting

    def block(self, future: asyncio.Future[T]) -> T:
        if self.current is None:
            raise RuntimeError("the event loop itself would block here")
        return self.current.block(future)

    def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.call_later(seconds, _wake, future)
        self.block(future)


def _tell(done: asyncio.Future[Any], told: asyncio.Future[Any]) -> None:
    """A thread cannot be cancelled: it goes on when whoever waited for it does not wait any more."""
    if told.done() or done.cancelled():
        if not done.cancelled():
            done.exception()
    elif (raised := done.exception()) is not None:
        told.set_exception(raised)
    else:
        told.set_result(done.result())


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
