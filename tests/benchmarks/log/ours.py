"""Where the bench meets our write side: its front ends are named and called here, and nowhere else."""

from __future__ import annotations

from commands.handling import Answer, Ask, Command, Handler
from commands.log import Append, Appended, Outcome
from commands.memory import Memory
from infra.eventstore import LedgerRecorder, PostgresLog, recorder
from infra.runtime import Runtime, now, operator
from infra.settings import Settings

TENANT = "bench"
LIBRARY, THREADS, ASYNC = "ours: library", "ours: threads", "ours: asyncio"
"""The contenders' names: the library's recorder; the log's own port; the front end of the API."""
AT_8, AT_64, DECIDES = ASYNC, ASYNC, THREADS
"""Whose rate the promised ratios are made of: at 8 writers, at 64 concurrent, for load + decide + append."""


class Refused(Exception):
    """The bench asks for nothing that could be: a bug, here or there."""


def library(settings: Settings) -> LedgerRecorder:
    """The library's recorder on a ledger; close it."""
    return recorder(settings.role_dsn("app"), Runtime(settings).schema)


class Front:
    """The log's port and a handler on it, for threads and for an event loop.

    `remembered` bounds the states that the handler keeps in memory.
    """

    def __init__(self, settings: Settings, remembered: int | None = None) -> None:
        self.log: PostgresLog = Runtime(settings).log()
        memory = Memory() if remembered is None else Memory(remembered)
        self.handler = Handler(self.log, now, memory)
        self.actor = operator(TENANT, "bench")

    def append(self, append: Append) -> None:
        _appended(self.log.append(append))

    async def append_async(self, append: Append) -> None:
        _appended(await self.log.submit(append))

    def handle(self, command: Command, key: str) -> Answer:
        return self.handler.handle(command, by=self.actor, key=key)

    async def handle_async(self, command: Command, key: str) -> Answer:
        return await self.handler.handling(Ask(command, self.actor, key))

    def close(self) -> None:
        self.log.close()


def _appended(outcome: Outcome) -> None:
    if not isinstance(outcome, Appended):
        raise Refused(f"not appended: {outcome}")
