"""The ticker: issues commands when their time has come."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Protocol

from commands.handling import Actor, Handler
from commands.log import Busy
from domain.refusals import Refusal
from domain.values import Permission
from infra.connection import LogUnavailable
from infra.ledger import DATABASE_FAULTS, Due
from infra.runtime import Runtime, run_role
from streams.registry import DUE_COMMANDS

TICK_S = 0.25
BATCH_MAX = 200
RETRY_S = 1.0

log = logging.getLogger("counterfoil.deadlines")


class Agenda(Protocol):
    """What is due, by the database's clock."""

    async def due(self, limit: int) -> list[Due]: ...
    async def done(self, due: Sequence[Due]) -> None: ...


async def tick(agenda: Agenda, handler: Handler) -> int:
    """Issue what is due, once each: the key makes a second ticker harmless. Returns how many."""
    due = await agenda.due(BATCH_MAX)
    if due:
        await asyncio.to_thread(_issue, handler, due)
        await agenda.done(due)
    return len(due)


def _issue(handler: Handler, due: Sequence[Due]) -> None:
    for each in due:
        command = DUE_COMMANDS[each.command].model_validate_json(json.dumps(each.body))
        by = Actor(each.tenant, "deadlines", frozenset({Permission.PLACES_HOLD}))
        try:
            handler.handle(
                command, by=by, key=each.key, correlation=each.correlation, causation=each.causation
            )
        except Refusal as refused:
            log.info("%s was refused: %s", each.command, refused.title())


async def main(runtime: Runtime) -> None:
    handler, ledger = runtime.handler("worker"), runtime.ledger()
    while True:
        try:
            if await tick(ledger, handler) < BATCH_MAX:
                await asyncio.sleep(TICK_S)
        except (*DATABASE_FAULTS, LogUnavailable, Busy) as lost:
            log.warning("database: %s", lost)
            await ledger.close()
            await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    run_role("deadlines", main)
