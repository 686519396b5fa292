"""A process of the simulated system: it can be killed at any step, or frozen and woken again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.fibers import Fiber
    from tests.simulation.loop import VirtualLoop


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""Whose step this is; tasks, timers and fibers inherit it. None: the machinery of the simulation itself."""


class Killed(BaseException):
    """Raised in whatever a dead process left standing, so that it unwinds; it can do no harm any more."""


class Process:
    """One life of a role. What it owns dies with it: tasks, fibers, and by `at_death` its connections."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop, self.name = loop, name
        self.alive = True
        self.frozen = False
        self.steps_left: int | None = None
        """A crash is due after so many more steps: between any two of them."""
        self.held_up: list[tuple[asyncio.Handle, Process | None]] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.fibers: dict[Fiber, None] = {}
        self.at_death: list[Callable[[], None]] = []

    def own(self, task: asyncio.Task[Any]) -> None:
        if self.alive:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self._unwind(task)

    def may_step(self, handle: asyncio.Handle) -> bool:
        if not self.alive:
            return False
        if self.frozen:
            self.held_up.append((handle, self))
            return False
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.kill()
                return False
        return True

    def thaw(self) -> None:
        self.frozen = False
        held_up, self.held_up = self.held_up, []
        self.loop.ready += held_up

    def kill(self) -> None:
        """As by SIGKILL: nothing of it runs again; unwinding what it left has no effect on anybody."""
        if not self.alive:
            return
        self.alive = False
        self.held_up.clear()
        at_death, self.at_death = self.at_death, []
        for tell in at_death:
            tell()
        for fiber in list(self.fibers):
            fiber.kill()
        context = context_of(self)
        for task in list(self.tasks):
            context.run(self._unwind, task)
        self.tasks.clear()

    def _unwind(self, task: asyncio.Task[Any]) -> None:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with suppress(Killed, RuntimeError):  # it may wait once more on its way out: nobody comes
            task.get_coro().close()


def context_of(process: Process | None) -> Context:
    """One in which everything that is started belongs to this process."""
    context = copy_context()
    context.run(PROCESS.set, process)
    return context
