"""The one way a command becomes facts: read, decide, append, and once only."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Protocol
from uuid import UUID, uuid5

from commands.log import Append, Appended, Busy, Log, Outcome, Pending, Spent, Stale, Undone
from commands.memory import Key, Memory, Reading, S, Unloaded, forms
from domain.facts import KEY, Envelope, Event, Recorded
from domain.refusals import Conflict, Forbidden, Invalid, Refusal
from domain.values import Permission, Value

FACTS_MAX = 5_000
"""Facts of one command: the largest invoice of the demo needs 1,115."""
ATTEMPTS_MAX = 200
"""Decisions before a contended command is given up with Busy, a fifth of a second or more later.

Whoever has a turn still races those who have not met a conflict yet: eight writers in full run on one
stream were measured to need 25.
"""
CONFLICTS_MAX = 2
"""Conflicts before a writer takes turns with the others on what they contend for."""
HOT_DECISIONS = 1_000
"""How many decisions after that take turns from the start: they would only meet the same conflicts."""
TURNS_MAX = 32
"""Threads of a handler in which tasks of event loops wait for turns. They are for that alone: whoever has a
turn needs a thread to read in, and must not stand behind those who wait for it."""


class KeyReused(Conflict):
    """This idempotency key was used for a different request."""


class BadKey(Invalid):
    """An idempotency key has 1 to 200 characters and no control characters."""


class NotPermitted(Forbidden):
    """The actor lacks the permission that this command needs."""


class TooManyFacts(Invalid):
    """The command would record more facts than one command may."""


class UnreadStream(Exception):
    """A bug: a decision wrote a stream that its boundary does not hold."""


class Boundary(dict[str, Any]):
    """What a decision may look at, by the names of `decide`'s keyword arguments."""


class Read(Protocol):
    """Hands a command the states it asks for; everything asked for is pinned at its version."""

    def __call__(self, stream: str, state: type[S]) -> S: ...

    def each(self, streams: Iterable[str], state: type[S]) -> dict[str, S]:
        """Many streams in one round trip."""
        ...

    def fresh(self, stream: str, state: type[S]) -> S:
        """A stream that ought to be new: pinned at version 0 without a look; the append knows better."""
        ...

    def claim(self, kind: str, value: str) -> str:
        """The stream that stands for a value which may be used once; a keyed hash, nothing readable."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Now and ids, the same however often the decision is taken again."""

    now: datetime
    command_id: UUID

    def id(self, number: int) -> UUID:
        return uuid5(self.command_id, f"id-{number}")


class Command(Value):
    """A request named in the imperative; one class holds its inputs, its permission and its rule."""

    permission: ClassVar[Permission]

    def __init_subclass__(cls, *, permission: Permission, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.permission = permission

    def read(self, log: Read) -> Boundary:
        """Ask for every state the decision needs, in steps if need be."""
        raise NotImplementedError

    def decide(self, at: Moment, *_: Any, **states: Any) -> Sequence[Event]:
        """Pure: the facts, or a refusal."""
        raise NotImplementedError

    def digest(self) -> bytes:
        """Of the request's whole content, to tell a retry from another request under the same key."""
        return hashlib.sha256(type(self).__name__.encode() + b"\n" + self.model_dump_json().encode()).digest()


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, for which tenant, and what they may do."""

    tenant: str
    name: str
    permissions: frozenset[Permission]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to: the position to read at least, and its facts as recorded."""

    position: int
    """The last of its facts, or where the log stood when there were none."""
    facts: tuple[Recorded, ...]
    replayed: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A command with who asks for it, and under which key."""

    command: Command
    by: Actor
    key: str
    correlation: UUID | None = None
    causation: UUID | None = None
    request: str | None = None
    trace: str | None = None
    """As in the envelope."""

    def envelope(self) -> Envelope:
        """Raises NotPermitted, BadKey."""
        if self.command.permission not in self.by.permissions:
            raise NotPermitted(f"{self.command.permission} is needed")
        if not KEY.fullmatch(self.key):
            raise BadKey(f"{len(self.key)} characters")
        return Envelope(
            self.by.tenant,
            self.by.name,
            self.key,
            self.correlation,
            self.causation,
            self.request,
            self.trace,
        )


# ── handling ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Turn:
    """Wait for one's turn with these streams before going on, and keep it until the end."""

    tenant: str
    streams: frozenset[str]


Step = Pending | Turn | Callable[[], Any]
"""What a command waits for: an append, a turn, or a call that blocks."""
Steps = Generator[Step, Any, Answer]


class Handler:
    """Decides from memory and believes only the append, one decision after another.

    While an append is on its way the next command is decided already, on what the first will have made true,
    and goes after it: many commands on one stream are recorded together. A refusal is believed only when the
    log confirms, during this very call, that what it rests on still stands.

    `handle` and `handle_all` block, `handling` is for an event loop; one handler may serve both.
    """

    def __init__(self, log: Log, clock: Callable[[], datetime], memory: Memory | None = None) -> None:
        self.log, self.clock = log, clock
        self.memory = Memory() if memory is None else memory
        self.lock = threading.Lock()
        self.waiting = ThreadPoolExecutor(TURNS_MAX, "turn")
        self.hot: dict[tuple[str, str], int] = {}
        """How many more decisions on a stream take turns from the start: it was contended."""

    def handle(
        self,
        command: Command,
        *,
        by: Actor,
        key: str,
        correlation: UUID | None = None,
        causation: UUID | None = None,
    ) -> Answer:
        """Record what `command` decides, once for this key.

        Raises its refusals, BadKey, KeyReused, NotPermitted, TooManyFacts, TooManyStreams; Busy when other
        writers kept getting there first, or too many wait; the log's own faults when it cannot be reached.
        """
        return self._drive(self._settle(Ask(command, by, key, correlation, causation)))

    def handle_all(self, requests: Sequence[Ask]) -> list[Answer | Exception]:
        """Several, decided in order and recorded together as far as may be; each one's answer, or what it
        raised. One does not depend on the others: what follows a refused one is decided without it."""
        self._prefetch(requests)
        answers: list[Answer | Exception] = []
        started: list[tuple[Steps, Step] | Answer | Exception] = []
        for request in requests:
            steps = self._settle(request)
            try:
                step = self._advance(steps, None)
                while callable(step):
                    step = self._advance(steps, step())
                if isinstance(step, Turn):  # alone: whoever holds a turn must not wait behind us
                    answers += map(self._finished, started)
                    started = [self._finished((steps, step))]
                else:
                    started.append((steps, step))
            except StopIteration as done:
                started.append(done.value)
            except Exception as raised:  # noqa: BLE001  it is that command's own answer
                started.append(raised)
        return answers + [self._finished(each) for each in started]

    async def handling(self, request: Ask) -> Answer:
        """`handle`, for an event loop: nothing blocks it."""
        steps = self._settle(request)
        turn: AbstractContextManager[None] | None = None
        try:
            step = self._advance(steps, None)
            while True:
                match step:
                    case Turn():
                        before, turn = turn, None
                        await self._leave(before)
                        turn = await self._enter(self.log.turn(step.tenant, step.streams))
                        result = None
                    case _ if callable(step):
                        result = await asyncio.to_thread(step)
                    case _:
                        result = await step
                step = self._advance(steps, result)
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        finally:
            await self._leave(turn)

    async def _enter(self, turn: AbstractContextManager[None]) -> AbstractContextManager[None]:
        """Wait in a thread; a turn that comes after its task was cancelled is given back."""
        loop = asyncio.get_running_loop()
        entering = loop.run_in_executor(self.waiting, turn.__enter__)
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(
                lambda done: done.exception() or loop.run_in_executor(None, turn.__exit__, None, None, None)
            )
            raise
        return turn

    async def _leave(self, turn: AbstractContextManager[None] | None) -> None:
        """Giving a turn back is a round trip, so it is done in a thread, cancelled or not: one of those that
        nobody waits for turns in."""
        if turn is not None:
            leaving = asyncio.get_running_loop().run_in_executor(None, turn.__exit__, None, None, None)
            await asyncio.shield(leaving)

    def _finished(self, each: tuple[Steps, Step] | Answer | Exception) -> Answer | Exception:
        if not isinstance(each, tuple):
            return each
        try:
            return self._drive(*each)
        except Exception as raised:  # noqa: BLE001  it is that command's own answer
            return raised

    def _drive(self, steps: Steps, step: Step | None = None) -> Answer:
        """Go through a command's steps, from the one it waits for."""
        with ExitStack() as turn:
            try:
                step = self._advance(steps, None) if step is None else step
                while True:
                    match step:
                        case Turn():
                            turn.close()  # kept until settled, or widened: never given back to be taken again
                            turn.enter_context(self.log.turn(step.tenant, step.streams))
                            result = None
                        case _ if callable(step):
                            result = step()
                        case _:
                            result = step.result()
                    step = self._advance(steps, result)
            except StopIteration as done:
                answer: Answer = done.value
                return answer

    def _advance(self, steps: Steps, result: Any) -> Step:
        """Decisions are taken one after another, and submitted in the same order."""
        with self.lock:
            return steps.send(result)

    def _prefetch(self, requests: Sequence[Ask]) -> None:
        """Load what the first step of every boundary needs, in one round trip for each tenant."""
        wanted: dict[str, dict[Key, None]] = {}
        readings: dict[str, Reading] = {}
        with self.lock:
            for request in requests:
                tenant = request.by.tenant
                reading = readings.setdefault(tenant, Reading(self.log, tenant, self.memory))
                reading.begin()
                try:
                    request.command.read(reading)
                except Unloaded as unknown:
                    wanted.setdefault(tenant, {}).update(dict.fromkeys(unknown.keys))
                except Refusal:
                    continue
        for tenant, keys in wanted.items():
            recalled = self.log.recall(tenant, forms(keys))
            with self.lock:
                readings[tenant].load(keys, recalled)

    # ── one command ───────────────────────────────────────────────────────────────────────────────

    def _settle(self, request: Ask) -> Steps:
        envelope, digest = request.envelope(), request.command.digest()
        reading = Reading(self.log, envelope.tenant, self.memory)
        contended: set[str] = set()
        mine: set[str] = set()
        conflicts = 0
        for _ in range(ATTEMPTS_MAX):
            if conflicts >= CONFLICTS_MAX and contended != mine:
                mine = contended.copy()
                yield from self._take_turn(reading, mine)
            refusal: Refusal | None = None
            facts: Sequence[Event] = ()
            now = self.clock()
            try:
                boundary = yield from self._read(request.command, reading)
                if hot := self._hot(reading) - mine:
                    contended |= hot
                    conflicts = max(conflicts, CONFLICTS_MAX)
                    continue
                now = max(self.clock(), reading.latest())
                facts = self._decide(request.command, Moment(now, envelope.command_id), boundary)
            except Refusal as refused:
                refusal = refused
            outcome: Outcome = yield self._submit(request, envelope, digest, reading, facts, now, refusal)
            match outcome:
                case Appended() if refusal is not None:
                    raise refusal
                case Appended():
                    reading.fold(outcome.facts)
                    return Answer(outcome.position, outcome.facts, replayed=False)
                case Spent():
                    return (yield from self._replay(envelope, digest, outcome))
                case Stale() if not outcome.newer:
                    conflicts += 1
                    reading.forget()
                case Stale():
                    conflicts += 1
                    reading.fold(outcome.newer)
                    contended |= {fact.stream for fact in outcome.newer}
                    if conflicts >= CONFLICTS_MAX:
                        self.hot.update({(envelope.tenant, stream): HOT_DECISIONS for stream in contended})
                case Undone():
                    reading.fold(())
        raise Busy(f"{ATTEMPTS_MAX} decisions were overtaken; try again")

    def _take_turn(self, reading: Reading, streams: set[str]) -> Generator[Step, Any, None]:
        yield Turn(reading.tenant, frozenset(streams))
        versions = reading.versions()
        seen = {stream: versions[stream] for stream in streams if stream in versions}
        reading.fold((yield partial(self.log.read, reading.tenant, seen)))

    def _read(self, command: Command, reading: Reading) -> Generator[Step, Any, Boundary]:
        while True:
            reading.begin()
            try:
                return command.read(reading)
            except Unloaded as unknown:
                wanted = forms(unknown.keys)
                reading.load(unknown.keys, (yield partial(self.log.recall, reading.tenant, wanted)))

    def _hot(self, reading: Reading) -> set[str]:
        if not self.hot:
            return set()
        hot = {stream for stream in reading.held if (reading.tenant, stream) in self.hot}
        for stream in hot:
            self.hot[reading.tenant, stream] -= 1
            if not self.hot[reading.tenant, stream]:
                del self.hot[reading.tenant, stream]
        return hot

    def _decide(self, command: Command, at: Moment, boundary: Boundary) -> Sequence[Event]:
        facts = command.decide(at, **boundary)
        if len(facts) > FACTS_MAX:
            raise TooManyFacts(f"{len(facts):,} facts, and a command may record {FACTS_MAX:,}")
        return facts

    def _submit(
        self,
        request: Ask,
        envelope: Envelope,
        digest: bytes,
        reading: Reading,
        facts: Sequence[Event],
        now: datetime,
        refusal: Refusal | None,
    ) -> Pending:
        name, versions = type(request.command).__name__, reading.versions()
        for fact in facts:
            if fact.stream not in versions:
                raise UnreadStream(f"{name} wrote {fact.stream} without reading it")
        append = Append(envelope, digest, name, versions, facts, now, refusal is None, reading.epoch)
        pending = self.log.submit(append, reading.follows())
        reading.expect(pending, facts, now)
        return pending

    def _replay(self, envelope: Envelope, digest: bytes, spent: Spent) -> Generator[Step, Any, Answer]:
        if spent.digest != digest:
            raise KeyReused(f"key {envelope.key}")
        facts = yield partial(
            self.log.recorded, envelope.tenant, spent.position - spent.count + 1, spent.count
        )
        return Answer(spent.position, facts, replayed=True)
