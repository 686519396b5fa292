"""An event loop whose time is a number and whose order is chance: the same seed gives the same run."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar, TypeVarTuple

from tests.simulation.fibers import Fibers
from tests.simulation.process import PROCESS, Process

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
DEFAULT_THREADS = 6
"""Of `asyncio.to_thread`: what Python gives a machine of two cores."""

Ready = tuple[asyncio.Handle, Process | None]


class Hung(Exception):
    """Nothing is left to run, and what was waited for has not happened."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs one step at a time: any that is ready, by chance; when none is, time jumps to the next timer.

    A step belongs to a process. Those of a dead process are never run, those of a frozen one wait. Threads
    are fibers: real ones, that run only while the loop stands still.
    """

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.now_s = 0.0
        self.steps = 0
        self.ready: list[Ready] = []
        self.timers: list[tuple[float, int, asyncio.TimerHandle, Process | None]] = []
        self.fibers = Fibers(self)
        self.broken: list[BaseException] = []
        """What a callback raised: always a bug, here or there."""
        self.trace: list[tuple[float, str, str]] | None = None
        """Every step, for whoever compares two runs."""

    # ── running ───────────────────────────────────────────────────────────────────────────────────────────

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        task = self.create_task(main)
        events._set_running_loop(self)
        try:
            while not task.done():
                self._step()
                if self.broken:
                    raise self.broken[0]
            return task.result()
        finally:
            events._set_running_loop(None)

    def _step(self) -> None:
        ready = self.ready
        if not ready:
            self._next_instant()
        last = len(ready) - 1
        if last:
            nth = int(self.chance.random() * (last + 1))
            ready[nth], ready[last] = ready[last], ready[nth]
        handle, process = ready.pop()
        if handle.cancelled():
            return
        if process is not None and not process.may_step(handle):
            return
        self.steps += 1
        if self.trace is not None:
            name = getattr(handle._callback, "__qualname__", type(handle._callback).__name__)  # type: ignore[attr-defined]
            self.trace.append((self.now_s, process.name if process else "", name))
        handle._run()

    def _next_instant(self) -> None:
        while not self.ready:
            if not self.timers:
                raise Hung
            when, _, handle, process = heappop(self.timers)
            if not handle.cancelled():
                self.now_s = max(self.now_s, when)
                self.ready.append((handle, process))
        while self.timers and self.timers[0][0] <= self.now_s:
            _, _, handle, process = heappop(self.timers)
            self.ready.append((handle, process))

    # ── what asyncio asks of a loop ───────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append((handle, _owner(context)))
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        # Ties go by chance, and the number only keeps handles from being compared.
        heappush(self.timers, (when, len(self.timers) + self.steps, handle, _owner(context)))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = _owner(context)
        if process is not None:
            process.own(task)
        return task

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As a fiber of the process, which has as many threads as the executor would have."""
        threads = DEFAULT_THREADS if executor is None else executor._max_workers  # type: ignore[attr-defined]
        return self.fibers.run(id(executor), threads, func, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raised = context.get("exception")
        if "handle" not in context:  # of a future that nobody waits for any more, its process being dead
            return
        self.broken.append(raised if raised is not None else RuntimeError(str(context.get("message"))))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""


def _owner(context: Context | None) -> Process | None:
    return PROCESS.get() if context is None else context.get(PROCESS)
