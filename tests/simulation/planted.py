"""Bugs made on purpose, one at a time: a simulation that does not catch them proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import streams.app
import streams.projector
from commands import handling, memory, ordering, payments
from commands.log import Append, Pending
from domain.capacity import Hold, HoldUnknown, Pool
from domain.values import Money, minor_digits
from infra import analytics, readmodel
from infra.eventstore import LogTicket, PostgresLog
from infra.sinks import Follower, Held, Taken, Wanted
from streams import deadlines
from streams.projector import Projector
from streams.reactions import ReactionSink, ReactionUnit
from tests.simulation import sql, sql_motion
from tests.simulation.broker import Publisher
from tests.simulation.database import Session
from tests.simulation.sql import FOUND, Result
from tests.simulation.sql_log import Appending
from tests.simulation.world import World
from tests.streams.broken import MarksFirst, nothing

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Bug:
    """`breaks`: the invariants by which it may be found out. `first`: the seed with which its test begins."""

    name: str
    says: str
    patches: Callable[[World], Sequence[Patch]]
    breaks: frozenset[str]
    first: int

    @contextmanager
    def __call__(self, world: World) -> Iterator[None]:
        with ExitStack() as stack:
            FOUND.clear()
            stack.callback(FOUND.clear)
            for owner, name, wrong in self.patches(world):
                stack.enter_context(patch.object(owner, name, wrong))
            yield


BUGS: dict[str, Bug] = {}


def bug(name: str, *breaks: str, first: int = 1) -> Callable[[Callable[[World], Sequence[Patch]]], Bug]:
    def plant(patches: Callable[[World], Sequence[Patch]]) -> Bug:
        BUGS[name] = Bug(name, (patches.__doc__ or "").strip(), patches, frozenset(breaks), first)
        return BUGS[name]

    return plant


# ── the log ───────────────────────────────────────────────────────────────────────────────────────────────


@bug("positions-from-a-sequence", "I3")
def positions(world: World) -> Sequence[Patch]:
    """Positions are given out before the commit, as by a sequence: a commit may overtake another."""
    last = [0]

    def lock_streams(self: Appending) -> None:
        for stream in sorted(self.streams):
            self.session.lock(("stream", stream))
        last[0] = max(last[0], self.session.get("head", ())[0])

    def next_position(self: Appending) -> int:
        last[0] += 1
        return last[0]

    def move_head(self: Appending) -> None:
        if self.recorded:
            self.session.written["head", ()] = (last[0], self.recorded_us, self.epoch_now)

    return [
        (Appending, "lock_head", lock_streams),
        (Appending, "next_position", next_position),
        (Appending, "move_head", move_head),
    ]


@bug("keys-not-looked-up", "I1")
def keys(world: World) -> Sequence[Patch]:
    """A retry is carried out again: nobody looks whether its key was spent."""

    def spend(self: Appending, nth: int, first: int) -> None:
        key = (self.tenants[nth], self.actors[nth], self.keys[nth])
        self.session.put("commands", key, (self.digests[nth], "", first, self.fact_counts[nth]))

    return [(Appending, "spent", lambda self, nth: None), (Appending, "spend", spend)]


@bug("keys-without-a-digest", "I1")
def digests(world: World) -> Sequence[Patch]:
    """Another request under a spent key gets the first one's answer."""
    return [(handling.Command, "digest", lambda self: b"")]


@bug("only-what-is-written-is-pinned", "I9", first=5)
def pins(world: World) -> Sequence[Patch]:
    """A boundary forgets the streams it only read."""
    submit = PostgresLog.submit

    def forgetful(self: PostgresLog, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        written = {fact.stream for fact in append.facts}
        kept = {stream: at for stream, at in append.versions.items() if stream in written or not written}
        return submit(self, replace(append, versions=kept), follows)

    return [(PostgresLog, "submit", forgetful)]


@bug("followed-appends-forgotten", "I9", "I2", first=24)
def follows(world: World) -> Sequence[Patch]:
    """An append forgets which others it counts on, and what became of them."""
    submit = PostgresLog.submit

    def forgetful(self: PostgresLog, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        return submit(self, append)

    return [(PostgresLog, "submit", forgetful)]


@bug("memory-survives-a-restore", "I2", "I9", first=10)
def memories(world: World) -> Sequence[Patch]:
    """States that were folded before a restore are believed after it."""
    submit = PostgresLog.submit

    def any_epoch(self: PostgresLog, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        return submit(self, replace(append, epoch=0), follows)

    return [
        (memory.Memory, "enter", lambda self, epoch: setattr(self, "epoch", epoch)),
        (memory.Reading, "forget", lambda self: None),
        (PostgresLog, "submit", any_epoch),
    ]


# ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────


@bug("float-money", "I8")
def floats(world: World) -> Sequence[Patch]:
    """Totals are rounded as floats are."""

    def rounded(micro: int, currency: str) -> Money:
        digits = minor_digits(currency)
        return Money(minor=int(round(micro / 1e6, digits) * 10**digits), currency=currency)

    return [(ordering, "rounded", rounded), (payments, "rounded", rounded)]


@bug("deadlines-of-holds-ignored", "I9", first=2)
def late(world: World) -> Sequence[Patch]:
    """A hold may be confirmed after its deadline."""

    def require_live(self: Pool, hold_id: Any, now: object) -> Hold:
        hold = self.holds.get(hold_id)
        if hold is None:
            raise HoldUnknown(f"hold {hold_id}")
        return hold

    return [(Pool, "require_live", require_live)]


@bug("holds-not-counted", "I9", first=2)
def holds(world: World) -> Sequence[Patch]:
    """What is held is sold as if it were free."""
    return [(Pool, "_live", lambda self, now: 0)]


# ── the relay ─────────────────────────────────────────────────────────────────────────────────────────────


@bug("relay-without-a-fence", "I15", first=3)
def fences(world: World) -> Sequence[Patch]:
    """A relay that was deposed goes on saying how far it is."""
    advance = sql_motion.advance

    def unfenced(session: Session, parameters: Sequence[Any]) -> Result:
        *rest, _ = parameters
        return advance(session, [*rest, session.get("relay", ())[2]])

    known = [(pattern, unfenced if run is advance else run) for pattern, run in sql.KNOWN]
    return [(sql, "KNOWN", known)]


@bug("through-before-publishing", "I3")
def hasty(world: World) -> Sequence[Patch]:
    """The relay says that it has published what it is only about to send."""

    def publish(self: Publisher, records: Sequence[tuple[str, int, bytes]]) -> None:
        for record in records:
            self.broker.loop.call_later(0.05, self.broker.append, *record)

    return [(Publisher, "publish", publish)]


# ── projectors ────────────────────────────────────────────────────────────────────────────────────────────


@bug("marks-before-rows", "I7", "I13", first=3)
def marks_first(world: World) -> Sequence[Patch]:
    """The checkpoint commits before the rows."""
    return [(streams.app, "PostgresSink", lambda ledger: MarksFirst(readmodel.PostgresSink(ledger), nothing))]


@bug("marks-before-blocks", "I7", "I13", first=2)
def progress_first(world: World) -> Sequence[Patch]:
    """ClickHouse's progress is written before its rows."""
    return [
        (streams.app, "ClickHouseSink", lambda *given: MarksFirst(analytics.ClickHouseSink(*given), nothing))
    ]


@bug("duplicates-taken", "I6", "I7", "I13")
def duplicates(world: World) -> Sequence[Patch]:
    """What comes twice is taken twice: nobody looks at the marks."""
    hold = readmodel.PostgresUnit.hold

    async def blind(self: readmodel.PostgresUnit, wanted: Sequence[Wanted]) -> dict[str, Held]:
        held = await hold(self, wanted)
        return {name: replace(each, marks=dict.fromkeys(each.marks, 0)) for name, each in held.items()}

    return [(readmodel.PostgresUnit, "hold", blind)]


@bug("gaps-not-healed", "I6", "I7", "I13")
def gaps(world: World) -> Sequence[Patch]:
    """A record that begins after the mark is taken as if nothing were missing."""
    return [(streams.projector, "_gaps", lambda runs, mark: [])]


@bug("tails-not-healed", "I6", first=6)
def tails(world: World) -> Sequence[Patch]:
    """A lost record that no other follows is never missed."""

    async def heal_nothing(self: Projector) -> int:
        return 0

    return [(Projector, "heal_tails", heal_nothing)]


@bug("parked-streams-overtaken", "I7", "I13", first=4)
def overtaking(world: World) -> Sequence[Patch]:
    """Facts that come after a parked one of their stream are taken at once."""
    hold = readmodel.PostgresUnit.hold

    async def hopeful(self: readmodel.PostgresUnit, wanted: Sequence[Wanted]) -> dict[str, Held]:
        return {name: replace(each, parked=set()) for name, each in (await hold(self, wanted)).items()}

    return [(readmodel.PostgresUnit, "hold", hopeful)]


@bug("tenants-mixed", "I7", "I13")
def mixed(world: World) -> Sequence[Patch]:
    """Rows forget whose they are."""
    put, add = readmodel.PutBatch.add, readmodel.SumBatch.add
    return [
        (readmodel.PutBatch, "add", lambda self, tenant, position, op: put(self, "acme", position, op)),
        (readmodel.SumBatch, "add", lambda self, tenant, position, op: add(self, "acme", position, op)),
    ]


# ── reactions and deadlines ───────────────────────────────────────────────────────────────────────────────


@bug("reactions-after-their-marks", "I6", "I12", first=1)
def reactions(world: World) -> Sequence[Patch]:
    """The checkpoint commits before the commands that it covers are given."""

    class Hasty(ReactionUnit):
        async def write(self, follower: Follower, version: int, taken: Sequence[Taken]) -> None:
            held_back.setdefault(self, []).append((follower, taken))

    held_back: dict[ReactionUnit, list[tuple[Follower, Sequence[Taken]]]] = {}

    class Later(ReactionSink):
        @asynccontextmanager
        async def unit(self, *, careful: bool = False) -> AsyncIterator[ReactionUnit]:
            async with self.ledger.transaction() as conn:
                unit = Hasty(conn, self.engine, careful=careful)
                unit.handler, unit.ledger = self.handler, self.ledger
                yield unit
            for follower, taken in held_back.pop(unit, ()):
                await ReactionUnit.write(unit, follower, 1, taken)

    return [(streams.app, "ReactionSink", Later)]


@bug("agenda-crossed-out-first", "I12", first=4)
def crossed_out(world: World) -> Sequence[Patch]:
    """What is due is crossed out before it is done."""

    async def tick(agenda: deadlines.Agenda, handler: handling.Handler) -> int:
        due = await agenda.due(deadlines.BATCH_MAX)
        if due:
            await agenda.done(due)
            await asyncio.to_thread(deadlines._issue, handler, due)
        return len(due)

    return [(deadlines, "tick", tick)]
