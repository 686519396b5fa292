"""The system's processes, by the programs they run in earnest, and whoever starts them again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from commands.handling import Answer, Ask, Handler
from infra.runtime import Runtime
from infra.settings import Settings
from streams import app, deadlines, relay
from tests.simulation.database import EPOCH_BEGINS
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import Process, context_of

LEDGER = "0"
CLAIM_KEY = b"a claim key of the simulation"
RESTART_S = 0.4
EXPECTED = (app.Stalled, app.BrokerChanged)
"""What a role may die of by its own hand."""

MAINS: dict[str, Callable[[Runtime], Awaitable[None]]] = {
    "relay": relay.main,
    "worker": app.main,
    "deadlines": deadlines.main,
}


class Died(Exception):
    """The connection to the API broke: nobody knows what became of the request."""


def runtime(loop: VirtualLoop, skew_s: float) -> Runtime:
    """The composition root itself, with settings that lead nowhere."""
    settings = SimpleNamespace(
        ledger=LEDGER,
        role_dsn=lambda role: role,
        sealing_key=lambda: CLAIM_KEY,
        kafka="broker:9092",
        clickhouse="http://clickhouse",
    )
    return Runtime(cast(Settings, settings), lambda: EPOCH_BEGINS + timedelta(seconds=loop.now_s + skew_s))


@dataclass(frozen=True, slots=True)
class Death:
    role: str
    reason: BaseException


class Role:
    """One program, kept running: when it dies it is started again a little later."""

    def __init__(self, loop: VirtualLoop, name: str, skew_s: float, deaths: list[Death]) -> None:
        self.loop, self.name, self.skew_s, self.deaths = loop, name, skew_s, deaths
        self.own = context_of(None)
        self.process = Process(loop, name)
        self.wanted = False
        self.life: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.wanted = True
        self.process = process = Process(self.loop, self.name)
        process.at_death.append(self._again)
        self.life = self.loop.create_task(self._live(process), context=context_of(process))

    def stop(self) -> None:
        self.wanted = False
        self.process.kill()

    async def _live(self, process: Process) -> None:
        try:
            await MAINS[self.name.split("-")[0]](runtime(self.loop, self.skew_s))
        except Exception as died:  # noqa: BLE001  whatever it is: it is on record, and the process ends
            if process.alive and not isinstance(died, EXPECTED):
                self.deaths.append(Death(self.name, died))
        self.loop.call_soon(process.kill, context=self.own)

    def _again(self) -> None:
        if self.wanted:
            self.loop.call_later(RESTART_S, self._restart, context=self.own)

    def _restart(self) -> None:
        if self.wanted and not self.process.alive:
            self.start()


class Api(Role):
    """A handler that any number of clients call."""

    handler: Handler

    def __init__(self, loop: VirtualLoop, name: str, skew_s: float, deaths: list[Death]) -> None:
        super().__init__(loop, name, skew_s, deaths)
        self.calls: dict[asyncio.Future[Answer], None] = {}

    async def _live(self, process: Process) -> None:
        process.at_death.append(self._hang_up)
        self.handler = runtime(self.loop, self.skew_s).handler()

    def _hang_up(self) -> None:
        calls, self.calls = self.calls, {}
        for told in calls:
            if not told.done():
                told.set_exception(Died())

    async def ask(self, request: Ask) -> Answer:
        """Raises what the handler does, or Died."""
        if not self.process.alive or not hasattr(self, "handler"):
            raise Died
        told: asyncio.Future[Answer] = self.loop.create_future()
        self.calls[told] = None
        handling = self.loop.create_task(self.handler.handling(request), context=context_of(self.process))
        handling.add_done_callback(lambda done: _pass_on(done, told), context=self.own)
        try:
            return await told
        finally:
            self.calls.pop(told, None)


def _pass_on(done: asyncio.Task[Any], told: asyncio.Future[Any]) -> None:
    if done.cancelled() or told.done():
        return
    if (raised := done.exception()) is not None:
        told.set_exception(raised)
    else:
        told.set_result(done.result())
