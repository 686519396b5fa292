"""The projector: records in any order, twice or not at all, become rows exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from domain.facts import Recorded
from domain.registry import EVENTS
from infra.ledger import Ledger, Place
from infra.mapper import StoredFact
from infra.sinks import Follower, Held, Reached, Refused, Sink, Taken, Unit, Wanted
from projections.rows import Projection
from streams.topics import Lately, Run, context_of, partition_of

HEAL_POSITIONS_MAX = 20_000
"""Of one partition, read from the log in one commit; a longer gap takes several."""
HEAL_LOOKS_BUSY = 5
"""While records keep coming, one that is late by fewer looks waits its turn in a busy worker."""
DRAIN_MAX = 500
AHEAD_FACTS = 100
"""Decoded in one go; then whoever waits for a store has a look."""
SHARED_BYTES_MIN = 512
"""A shorter fact is no paper: few follow it, and it is decoded as fast as it is found."""
SHARED_BYTES_MAX = 8 * 1024 * 1024
"""Of stored facts kept decoded, where they take about ten times as much."""
BEHIND = "behind a parked fact of its stream"

log = logging.getLogger("counterfoil.projector")


Gap = tuple[int, int]
"""Positions in (after, through]."""
Read = dict[StoredFact, Recorded]
"""Facts that are decoded already."""


class Projecting:
    """A projection as a follower."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.name, self.names, self.contexts = projection.name, projection.names, projection.contexts

    def take(self, recorded: Recorded) -> Sequence[Any]:
        return self.projection.project(recorded)


class Decoding:
    """Facts decoded once for all projectors of a process, as long as they are not too far from each other."""

    def __init__(self) -> None:
        self.lately: Lately[StoredFact, Recorded] = Lately(
            StoredFact.recorded, lambda fact: len(fact.state), SHARED_BYTES_MAX
        )

    def recorded(self, fact: StoredFact) -> Recorded:
        """Raises Unreadable."""
        return fact.recorded() if len(fact.state) < SHARED_BYTES_MIN else self.lately.of(fact)


@dataclass(slots=True)
class Counted:
    """What a projector has done since it started."""

    facts: int = 0
    healed: int = 0
    duplicates: int = 0
    parked: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What is new in a partition."""

    facts: list[StoredFact]
    reached: int
    whole: bool
    """Nothing of what arrived is left for another unit."""
    names: set[str]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a follower's partition."""

    mark: int
    published: int
    late: int
    """Looks in a row that found it behind, and where it had been."""


class Projector:
    """Takes runs of facts into one sink, for all followers that share it.

    A run says which positions it stands for. One that begins after a follower's mark has left a
    gap, which is read from the log first; one that ends before it is a duplicate. Marks commit with
    the rows, so a crash anywhere repeats work and never an effect.
    """

    def __init__(
        self,
        ledger: str,
        log: Ledger,
        sink: Sink,
        followers: Sequence[Follower],
        decoding: Decoding | None = None,
    ) -> None:
        self.ledger, self.log, self.sink, self.followers = ledger, log, sink, followers
        self.decoding = decoding or Decoding()
        self.contexts = frozenset(context for follower in followers for context in follower.contexts)
        self.counted = Counted()
        self.turn = asyncio.Lock()
        self.looked: dict[tuple[str, str, int], Look] = {}
        self.fed = False
        """Since the last look at the tails, were there records?"""

    async def read(self, arrived: Sequence[Run]) -> Read:
        """Decode what followers will ask for, while a store is busy with the runs before; what cannot be read
        is left for `take` to find."""
        names = frozenset[str]().union(*(follower.names for follower in self.followers))
        decoded: Read = {}
        facts = [fact for run in arrived for fact in run.facts if fact.name in names]
        for first in range(0, len(facts), AHEAD_FACTS):
            for fact in facts[first : first + AHEAD_FACTS]:
                try:
                    decoded[fact] = self.decoding.recorded(fact)
                except Exception:  # noqa: BLE001  whatever it is, `take` meets it again
                    continue
            await asyncio.sleep(0)
        return decoded

    async def take(self, arrived: Sequence[Run], decoded: Read | None = None) -> None:
        """Apply what is new in these runs. Raises the sink's faults with nothing half done."""
        self.fed = True
        try:
            await self._take(arrived, decoded or {})
        finally:
            self.fed = True  # a look may have come in between

    async def _take(self, arrived: Sequence[Run], decoded: Read) -> None:
        by_place: dict[Place, list[Run]] = {}
        for run in arrived:
            by_place.setdefault(run.place, []).append(run)
        async with self.turn:
            while by_place:
                try:
                    by_place = await self._commit(by_place, decoded, careful=False)
                except Refused:  # find out which fact it is, one half at a time
                    by_place = await self._commit(by_place, decoded, careful=True)

    async def _commit(
        self, by_place: dict[Place, list[Run]], decoded: Read, *, careful: bool
    ) -> dict[Place, list[Run]]:
        """One unit; returns the runs that a long gap left for the next one."""
        unfinished: dict[Place, list[Run]] = {}
        counted = Counted()
        wanted: list[Wanted] = [
            (follower, mine)
            for follower in self.followers
            if (mine := [place for place in sorted(by_place) if context_of(place[0]) in follower.contexts])
        ]
        if not wanted:
            return {}
        async with self.sink.unit(careful=careful) as unit:
            held = await unit.hold(wanted)
            marks = _least(held)
            missed = await self._missed({place: _gaps(by_place[place], marks[place]) for place in marks})
            collected: dict[Place, Collected] = {}
            for place, mark in marks.items():
                collected[place] = _collect(by_place[place], mark, missed[place], counted)
                if not collected[place].whole:
                    unfinished[place] = by_place[place]
            moved: list[Reached] = []
            for follower, _ in wanted:
                standing = held[follower.name]
                await self._follow(unit, follower, standing, collected, decoded, counted, careful=careful)
                ahead = {
                    place: collected[place].reached
                    for place, mark in standing.marks.items()
                    if collected[place].reached > mark
                }
                if ahead:
                    moved.append((follower, standing.version, ahead))
            if moved:
                await unit.mark(moved)
        for name in ("facts", "healed", "duplicates", "parked"):
            setattr(self.counted, name, getattr(self.counted, name) + getattr(counted, name))
        return unfinished

    async def _missed(self, gaps: dict[Place, list[Gap]]) -> dict[Place, list[StoredFact]]:
        """What lies in these gaps, in order: each part of the log is read once for all partitions."""
        found: dict[Place, list[StoredFact]] = {place: [] for place in gaps}
        for topic in sorted({topic for (topic, _), its in gaps.items() if its}):
            for after, through in _merged(
                gap for place, its in gaps.items() if place[0] == topic for gap in its
            ):
                for fact in await self.log.facts_of(context_of(topic), after, through):
                    place = topic, partition_of(fact.originator_id)
                    if any(low < fact.position <= high for low, high in gaps.get(place, ())):
                        found[place].append(fact)
        return found

    async def _follow(
        self,
        unit: Unit,
        follower: Follower,
        standing: Held,
        collected: dict[Place, Collected],
        decoded: Read,
        counted: Counted,
        *,
        careful: bool,
    ) -> None:
        """Hand a follower what is new to it; what it cannot take is parked, with all behind it."""
        taken: list[Taken] = []
        aside: list[tuple[Place, StoredFact, str]] = []
        for place, mark in standing.marks.items():
            # The rest is not its business; a name nobody knows is everybody's.
            concerning = {
                name for name in collected[place].names if name in follower.names or name not in EVENTS
            }
            for fact in collected[place].facts if concerning else ():
                if fact.position <= mark or fact.name not in concerning:
                    continue
                if fact.originator_id in standing.parked:
                    aside.append((place, fact, BEHIND))
                    continue
                try:
                    recorded = decoded.get(fact) or self.decoding.recorded(fact)
                    taken.append((fact, recorded, follower.take(recorded)))
                except Exception as broken:  # noqa: BLE001  whatever a fact breaks, it breaks for its stream alone
                    standing.parked.add(fact.originator_id)
                    aside.append((place, fact, f"{type(broken).__name__}: {broken}"))
        taken.sort(key=lambda each: each[0].position)
        if taken and not careful:
            await unit.write(follower, standing.version, taken)
        elif taken:
            place_of = {fact.position: place for place in standing.marks for fact in collected[place].facts}
            for fact, reason in await self._write(unit, follower, standing.version, taken, standing.parked):
                aside.append((place_of[fact.position], fact, reason))
        for place, fact, reason in aside:
            log.warning("parked %s %d for %s: %s", fact.originator_id, fact.position, follower.name, reason)
            await unit.park(follower, place, [(fact, reason)])
        counted.facts += len(taken)
        counted.parked += len(aside)

    async def _write(
        self, unit: Unit, follower: Follower, version: int, taken: list[Taken], parked: set[str]
    ) -> list[tuple[StoredFact, str]]:
        """Apply all at once, or, when the store refuses one, in halves down to it; returns the refused."""
        if not taken:
            return []
        try:
            await unit.write(follower, version, taken)
        except Refused as refused:
            if len(taken) == 1:
                parked.add(taken[0][0].originator_id)
                return [(taken[0][0], refused.reason)]
            half = len(taken) // 2
            out = await self._write(unit, follower, version, taken[:half], parked)
            rest = [each for each in taken[half:] if each[0].originator_id not in parked]
            behind = [each[0] for each in taken[half:] if each[0].originator_id in parked]
            out += [(fact, BEHIND) for fact in behind]
            return out + await self._write(unit, follower, version, rest, parked)
        return []

    # ── what nobody sends ─────────────────────────────────────────────────────────────────────────

    async def heal_tails(self) -> int:
        """Read from the log what was published and never arrived; call it about once a second.

        A partition counts as stuck when its mark has not moved since the last look, and was behind the
        relay's already then; while records keep coming, only after some more looks, because a busy worker
        is late without having lost anything. Returns how many were.
        """
        async with self.turn:  # the sink's connection is not to be looked through in the middle of a unit
            looks, self.fed = HEAL_LOOKS_BUSY if self.fed else 1, False
            _, _, heads = await self.log.relayed()
            standing = await self.sink.standing(self.followers)
        stuck: dict[Place, int] = {}
        for follower in self.followers:
            for (topic, partition), last in heads.items():
                if context_of(topic) not in follower.contexts or not topic.startswith(
                    f"counterfoil.{self.ledger}."
                ):
                    continue
                where = (follower.name, topic, partition)
                mark = standing.get(where, 0)
                before = self.looked.get(where, Look(mark, 0, 0))
                late = before.late + 1 if before.mark == mark < before.published else 0
                if late >= looks:
                    stuck[topic, partition] = last
                self.looked[where] = Look(mark, last, late)
        if stuck:
            log.info("healing %d partitions from the log", len(stuck))
            await self._take([Run(*place, last, last, ()) for place, last in sorted(stuck.items())], {})
        return len(stuck)

    async def drain(self) -> int:
        """Try parked facts again, oldest first, each stream up to the first that still fails; returns how
        many were taken."""
        drained = 0
        for follower in self.followers:
            failing: set[str] = set()
            after: int | None = 0
            while after is not None:
                async with self.turn, self.sink.unit(careful=True) as unit:
                    after, taken = await self._drain(unit, follower, after, failing)
                drained += taken
        return drained

    async def _drain(
        self, unit: Unit, follower: Follower, after: int, failing: set[str]
    ) -> tuple[int | None, int]:
        """One page of parked facts, past `after`: where the next one begins, and how many were taken."""
        waiting = await unit.parked_facts(follower, after, DRAIN_MAX)
        if not waiting:
            return None, 0
        facts = {fact.position: fact for fact in await self.log.facts_at([w[1] for w in waiting])}
        places = sorted({(topic, partition) for _, _, topic, partition in waiting})
        version = (await unit.hold([(follower, places)]))[follower.name].version
        drained = 0
        for stream, position, _, _ in waiting:
            if stream in failing:
                continue
            fact = facts[position]
            try:
                recorded = fact.recorded()
                asked = follower.take(recorded) if fact.name in follower.names else ()
            except Exception:  # noqa: BLE001  still broken: it stays parked, and so does its stream
                failing.add(stream)
                continue
            try:
                if asked:
                    await unit.write(follower, version, [(fact, recorded, asked)])
            except Refused:
                failing.add(stream)
                continue
            await unit.unpark(follower, [fact])
            drained += 1
        return waiting[-1][1], drained


# ── what arrived, and what did not ────────────────────────────────────────────────────────────────


def _least(held: dict[str, Held]) -> dict[Place, int]:
    """How far everybody is who follows a partition."""
    least: dict[Place, int] = {}
    for standing in held.values():
        for place, mark in standing.marks.items():
            least[place] = min(mark, least.get(place, mark))
    return least


def _in_order(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.last)


def _gaps(runs: list[Run], mark: int) -> list[Gap]:
    """What these runs of one partition leave out, up to the end of the first that is too long."""
    gaps: list[Gap] = []
    reached = mark
    for run in _in_order(runs):
        if run.after > reached:
            gaps.append((reached, min(run.after, reached + HEAL_POSITIONS_MAX)))
            if gaps[-1][1] < run.after:
                break
        reached = max(reached, run.last)
    return gaps


def _merged(gaps: Iterable[Gap]) -> list[Gap]:
    """Without overlaps."""
    merged: list[Gap] = []
    for after, through in sorted(gaps):
        if merged and after <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(through, merged[-1][1])
        else:
            merged.append((after, through))
    return merged


def _collect(runs: list[Run], mark: int, missed: list[StoredFact], counted: Counted) -> Collected:
    """The partition's facts past the mark, in order, with those that were missed."""
    facts: list[StoredFact] = []
    reached, whole = mark, True
    counted.healed += len(missed)
    for run in _in_order(runs):
        if run.last <= reached:
            counted.duplicates += 1
            continue
        if run.after > reached:
            upto = min(run.after, reached + HEAL_POSITIONS_MAX)
            facts += [fact for fact in missed if reached < fact.position <= upto]
            reached = upto
            if upto < run.after:
                whole = False
                break
        facts += [fact for fact in run.facts if fact.position > reached]
        reached = run.last
    return Collected(facts, reached, whole, {fact.name for fact in facts})
