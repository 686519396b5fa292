"""Reactions: facts that ask for commands, now or at an instant, each exactly once in effect.

A command's key is derived from the fact and the reaction, so that doing it again does nothing. A
rebuild cannot react: it has projections, and no handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid5

from commands.handling import Actor, Ask, Command, Handler
from domain.facts import Event, Recorded
from domain.refusals import Refusal
from domain.values import Permission
from infra.ledger import Due, Ledger
from infra.places import PARTITIONS, topic_of
from infra.readmodel import PostgresSink, PostgresUnit
from infra.sinks import Follower, Held, Refused, Taken, Wanted

ENGINE = "reaction"


@dataclass(frozen=True, slots=True)
class Deadline:
    """A command to issue at an instant; rules never depend on it having run."""

    at: datetime
    command: Command


@dataclass(frozen=True, slots=True)
class Reaction:
    """A pure function from facts to commands. It starts at the head unless it says `from_start`."""

    name: str
    events: tuple[type[Event], ...]
    permissions: frozenset[Permission]
    react: Callable[[Recorded], Sequence[Command | Deadline]]
    from_start: bool = False

    names: frozenset[str] = field(init=False)
    contexts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(event.name for event in self.events))
        object.__setattr__(self, "contexts", frozenset(event.context() for event in self.events))

    def take(self, recorded: Recorded) -> Sequence[Command | Deadline]:
        return self.react(recorded)

    def actor(self, tenant: str) -> Actor:
        return Actor(tenant, f"reaction:{self.name}", self.permissions)

    def key(self, fact_id: UUID, number: int) -> str:
        return str(uuid5(fact_id, f"{self.name}#{number}" if number else self.name))


class ReactionUnit(PostgresUnit):
    """Commands are handled before the checkpoint that covers them commits."""

    handler: Handler
    ledger: Ledger

    async def begin(self, wanted: Sequence[Wanted], held: dict[str, Held]) -> None:
        for follower, places in wanted:
            if isinstance(follower, Reaction) and not follower.from_start:
                await self.begin_at_head(follower, places)
        await PostgresUnit.begin(self, wanted, held)

    async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
        assert isinstance(follower, Reaction)
        deadlines = [due for each in taken for due in _deadlines(follower, each)]
        if deadlines:
            await self.ledger.set_due(deadlines)
        await asyncio.to_thread(self._handle, follower, taken)

    def _handle(self, reaction: Reaction, taken: Iterable[Taken]) -> None:
        """All together: they are recorded by as few commits as may be."""
        asked: list[Ask] = []
        for _, recorded, answers in taken:
            by, fact_id = reaction.actor(recorded.tenant), recorded.fact_id
            correlation = recorded.envelope.correlation or recorded.envelope.command_id
            for number, each in enumerate(answers):
                if not isinstance(each, Deadline):
                    key = reaction.key(fact_id, number)
                    trace = recorded.envelope.trace
                    asked.append(Ask(each, by, key, correlation, fact_id, trace=trace))
        for request, outcome in zip(asked, self.handler.handle_all(asked), strict=True):
            if isinstance(outcome, Refusal):
                reason = f"{type(request.command).__name__} refused: {type(outcome).__name__}"
                raise Refused(reason) from outcome
            if isinstance(outcome, Exception):
                raise outcome


def _deadlines(reaction: Reaction, taken: Taken) -> list[Due]:
    _, recorded, asked = taken
    return [
        Due(
            key=reaction.key(recorded.fact_id, number),
            tenant=recorded.tenant,
            at=each.at,
            command=type(each.command).__name__,
            body=each.command.model_dump(mode="json"),
            causation=recorded.fact_id,
            correlation=recorded.envelope.correlation or recorded.envelope.command_id,
        )
        for number, each in enumerate(asked)
        if isinstance(each, Deadline)
    ]


class ReactionSink(PostgresSink):
    engine = ENGINE

    def __init__(self, ledger: Ledger, handler: Handler) -> None:
        super().__init__(ledger)
        self.handler = handler

    async def enlist(self, ledger: str, reactions: Sequence[Reaction]) -> None:
        """New reactions start now: had they to wait for a first record, it would be behind them already."""
        async with self.unit() as unit:
            for reaction in reactions:
                if not reaction.from_start:
                    places = [
                        (topic_of(ledger, context), partition)
                        for context in sorted(reaction.contexts)
                        for partition in range(PARTITIONS)
                    ]
                    await unit.begin_at_head(reaction, places)

    @asynccontextmanager
    async def unit(self, *, careful: bool = False) -> AsyncIterator[ReactionUnit]:
        async with self.ledger.transaction() as conn:
            unit = ReactionUnit(conn, self.engine, careful=careful)
            unit.handler, unit.ledger = self.handler, self.ledger
            yield unit
