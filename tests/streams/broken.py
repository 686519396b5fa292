"""Sinks that crash, wait or are wrong, for tests and their negative controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from infra.sinks import Follower, Reached, Sink, Taken, Unit

Hook = Callable[[], Awaitable[None]]


class Crash(Exception):
    """The process is killed here."""


async def crash() -> None:
    raise Crash


class Meddled:
    """A unit that passes everything on, except where a test meddles."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unit, name)


class Hooked:
    """A sink whose units stop at `before_mark`, and again at `before_commit`."""

    def __init__(
        self, sink: Sink, *, before_mark: Hook | None = None, before_commit: Hook | None = None
    ) -> None:
        self.sink, self.before_mark, self.before_commit = sink, before_mark, before_commit

    @asynccontextmanager
    async def unit(self, *, careful: bool = False) -> AsyncIterator[Unit]:
        hooked = self

        class Unhurried(Meddled):
            async def mark(self, reached: Sequence[Reached]) -> None:
                if hooked.before_mark is not None:
                    await hooked.before_mark()
                await self.unit.mark(reached)

        async with self.sink.unit(careful=careful) as unit:
            yield Unhurried(unit)
            if self.before_commit is not None:
                await self.before_commit()

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        return await self.sink.standing(followers)


class MarksFirst:
    """Wrong: the checkpoint commits before the rows, in a transaction of its own."""

    def __init__(self, sink: Sink, between: Hook) -> None:
        self.sink, self.between = sink, between

    def unit(self, *, careful: bool = False) -> AbstractAsyncContextManager[Unit]:
        return self._unit()

    @asynccontextmanager
    async def _unit(self) -> AsyncIterator[Unit]:
        held_back: list[tuple[Follower, int, Sequence[Taken]]] = []

        class Hasty(Meddled):
            async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
                held_back.append((follower, version, taken))

        async with self.sink.unit() as unit:
            yield Hasty(unit)
        await self.between()
        async with self.sink.unit() as unit:
            for follower, version, taken in held_back:
                await unit.write(follower, version, taken)

    async def standing(self, followers: Sequence[Follower]) -> dict[tuple[str, str, int], int]:
        return await self.sink.standing(followers)


async def nothing() -> None:
    """No crash this time."""


class Gate:
    """Where one unit waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()
