"""The log's functions, as infra/migrations has them; a test compares them with Postgres, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.simulation.database import Session
from tests.simulation.sql import Result, statement

HEAD = ()
TIME_BYTES = 8


@statement(r"SELECT outcome, last_position, .* FROM append\(")
def append(session: Session, parameters: Sequence[Any]) -> Result:
    return Result(Appending(session, parameters).run())


class Appending:
    """infra/migrations/0003_group_commit.sql, with its names."""

    def __init__(self, session: Session, parameters: Sequence[Any]) -> None:
        self.session = session
        (
            self.epoch,
            self.at_us,
            self.stamped,
            self.tenants,
            self.actors,
            self.keys,
            self.digests,
            self.commands,
            self.spends,
            self.read_counts,
            self.fact_counts,
            self.facts_before,
            self.streams,
            self.versions,
            self.read_streams,
            self.read_versions,
            self.fact_streams,
            self.fact_names,
            self.fact_versions,
            self.topics,
            self.states,
        ) = parameters
        self.base = self.recorded = 0

    def run(self) -> list[tuple[Any, ...]]:
        if any(self.spends):
            self.lock_head()
        self.base, head_us, self.epoch_now = self.session.get("head", HEAD)
        self.recorded_us = max(head_us, self.at_us)
        if self.epoch_now != self.epoch:
            return [("restored", None, self.epoch_now, self.recorded_us, None, None)]
        self.stamp = self.recorded_us.to_bytes(TIME_BYTES, "big", signed=True) if self.stamped else b""
        current = [self.current(*each) for each in zip(self.streams, self.versions, strict=True)]
        if current == list(self.versions) and not any(map(self.spent, range(len(self.keys)))):
            for nth in range(len(self.keys)):
                self.spend(nth, self.base + 1 + self.facts_before[nth])
            self.record(range(len(self.states)))
            self.move_head()
            return [("all", self.base + self.recorded, None, self.recorded_us, None, None)]
        return self.one_by_one(current)

    def lock_head(self) -> None:
        self.session.lock(("head",))

    def next_position(self) -> int:
        return self.base + self.recorded

    def current(self, stream: str, version: int) -> int:
        found = self.session.version_of(stream)
        return max(min(version, 0), -1) if found is None else found

    def spent(self, nth: int) -> Any:
        return self.session.get("commands", (self.tenants[nth], self.actors[nth], self.keys[nth]))

    def spend(self, nth: int, first: int) -> None:
        if self.spends[nth]:
            key = (self.tenants[nth], self.actors[nth], self.keys[nth])
            row = (self.digests[nth], self.commands[nth], first, self.fact_counts[nth])
            self.session.insert("commands", key, row)

    def record(self, facts: range) -> None:
        for fact in facts:
            self.recorded += 1
            state = self.stamp + self.states[fact]
            row = (self.fact_names[fact], self.fact_versions[fact], self.topics[fact], state)
            self.session.insert("stored_events", (self.next_position(),), row)

    def move_head(self) -> None:
        if self.recorded:
            self.session.put("head", HEAD, (self.base + self.recorded, self.recorded_us, self.epoch_now))

    def one_by_one(self, current: list[int]) -> list[tuple[Any, ...]]:
        undone, verdicts = [False] * len(self.streams), []
        reads = facts = 0
        for nth in range(len(self.keys)):
            mine = range(facts, facts + self.fact_counts[nth])
            read = [
                (self.read_streams[r] - 1, self.read_versions[r])
                for r in range(reads, reads + self.read_counts[nth])
            ]
            spent = self.spent(nth)
            behind = [(stream, version) for stream, version in read if current[stream] != version]
            if spent is not None:
                digest, _, first, count = spent
                verdict: tuple[Any, ...] = ("spent", first + count - 1, count, self.recorded_us, digest, None)
            elif any(undone[stream] for stream, _ in read):
                verdict = ("undone", None, None, self.recorded_us, None, None)
            elif behind:
                newer = self.newer(self.tenants[nth], behind) if self.stamped else None
                verdict = ("stale", None, None, self.recorded_us, None, newer)
            else:
                self.spend(nth, self.base + self.recorded + 1)
                self.record(mine)
                for fact in mine:
                    current[self.fact_streams[fact] - 1] = self.fact_versions[fact]
                verdict = (
                    "appended", self.base + self.recorded, len(mine), self.recorded_us, None, None,
                )  # fmt: skip
            if verdict[0] != "appended":
                for fact in mine:
                    undone[self.fact_streams[fact] - 1] = True
            verdicts.append(verdict)
            reads += self.read_counts[nth]
            facts += self.fact_counts[nth]
        self.move_head()
        return verdicts

    def newer(self, tenant: str, behind: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
        return sorted(
            (self.streams[stream][len(tenant) + 1 :], row[1], position, row[2], row[3])
            for stream, version in behind
            for position, row in self.session.facts_of(self.streams[stream], version)
        )


@statement(r"SELECT stream, version, pos, topic, state FROM read_states\(")
def read_states(session: Session, parameters: Sequence[Any]) -> Result:
    """infra/migrations/0005_snapshots.sql. There are no snapshots: no stream here is long enough for one."""
    tenant, streams, after, *_ = parameters
    epoch = session.get("head", HEAD)[2]
    facts = sorted(
        (stream, row[1], position, row[2], row[3])
        for stream, version in zip(streams, after, strict=True)
        for position, row in session.facts_of(f"{tenant}/{stream}", version)
    )
    return Result([("", epoch, 0, "", b""), *facts])


@statement(r"SELECT stream, version, pos, topic, state FROM read_recorded\(")
def read_recorded(session: Session, parameters: Sequence[Any]) -> Result:
    tenant, first, count = parameters
    found = [
        (position, session.get("stored_events", (position,))) for position in range(first, first + count)
    ]
    return Result(
        [
            (row[0][len(tenant) + 1 :], row[1], position, row[2], row[3])
            for position, row in found
            if row is not None and row[0].startswith(f"{tenant}/")
        ]
    )


@statement(r"SELECT spent_digest, last_position, fact_count FROM spent_key\(")
def spent_key(session: Session, parameters: Sequence[Any]) -> Result:
    row = session.get("commands", tuple(parameters))
    return Result([(None, None, None) if row is None else (row[0], row[2] + row[3] - 1, row[3])])


@statement(r"SELECT pg_advisory_lock\(key\)")
def take(session: Session, parameters: Sequence[Any]) -> Result:
    for key in parameters[0]:
        session.lock_advisory(("advisory", key))
    return Result([("",)] * len(parameters[0]))


@statement(r"SELECT pg_advisory_unlock_all")
def give_back(session: Session, parameters: Sequence[Any]) -> Result:
    session.unlock_advisory()
    return Result([("",)])


@statement(r"SELECT set_config\('synchronous_commit', 'off', true\), pg_notify")
def notify(session: Session, parameters: Sequence[Any]) -> Result:
    """Nobody listens here: the relay looks."""
    return Result([("off", "")])
