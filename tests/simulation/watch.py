"""Looks on while it happens: what is published is what the log holds, and only by whom and when it may be."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import cast

from infra.ledger import Place
from infra.mapper import StoredFact
from infra.places import place_of
from infra.queries import Desk, Standing
from projections.registry import projections_in
from projections.rows import Engine
from streams.registry import REACTIONS
from streams.topics import unpack
from tests.simulation.blocks import Blocks
from tests.simulation.broker import Broker
from tests.simulation.process import Process
from tests.simulation.roles import LEDGER
from tests.simulation.server import Backend, Server


class Watch:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.found: list[tuple[str, str]] = []
        """(invariant, what was seen): the first one is what the run is judged by."""
        self.places: defaultdict[Place, list[int]] = defaultdict(list)
        self.indexed = 0
        self.published: set[int] = set()
        self.holder: Process | None = None
        server.committing = self.committing

    def forget(self) -> None:
        """The ledger is another one from here on."""
        self.places.clear()
        self.published.clear()
        self.published.update(range(1, self.server.database.tables["relay"][()][0] + 1))
        self.indexed = 0

    # ── the relay ─────────────────────────────────────────────────────────────────────────────────────────

    def record(self, topic: str, partition: int, record: bytes) -> None:
        """A record is about to be kept: it holds all of its partition's facts in (after, last], as stored."""
        run = unpack(topic, partition, record)
        stored = self.server.database.tables["stored_events"]
        self._index()
        for fact in run.facts:
            if stored.get((fact.position,)) != tuple(fact[1:]):
                self.found.append(("I4 nothing is read that the log does not hold", f"{fact}"))
        told = [fact.position for fact in run.facts]
        held = [at for at in self.places[run.place] if run.after < at <= run.last]
        if told != held:
            self.found.append(
                ("I3 no follower skips", f"{run.place} in ({run.after}, {run.last}]: {told}, {held}")
            )
        self.published.update(told)

    def _index(self) -> None:
        stored = self.server.database.tables["stored_events"]
        while (row := stored.get((self.indexed + 1,))) is not None:
            self.indexed += 1
            self.places[place_of(LEDGER, StoredFact(self.indexed, *row))].append(self.indexed)

    def committing(self, backend: Backend) -> None:
        """A transaction is about to commit: what the relay says has to be so."""
        said = backend.session.written.get(("relay", ()))
        if said is None:
            return
        before = self.server.database.tables["relay"][()]
        if said[2] != before[2]:
            self.holder = backend.client
        elif backend.client is not self.holder:
            self.found.append(("I15 a deposed relay says nothing", f"{backend.client} said {said}"))
        early = [at for at in range(before[0] + 1, said[0] + 1) if at not in self.published]
        if early:
            self.found.append(("I3 what is said to be published is", f"{early[:3]} of {said[0]}"))

    # ── what a reader is told ─────────────────────────────────────────────────────────────────────────────

    def standing(self, engine: Engine, blocks: Blocks) -> Standing:
        """What the API's watches see at this instant."""
        tables = self.server.database.tables
        (position, _, epoch), (through, *_) = tables["head"][()], tables["relay"][()]
        parked = Counter((key[0], key[1], key[2].split("/")[0]) for key in tables["parked"])
        heads = cast(dict[Place, int], dict(tables["relay_head"]))
        versions = cast(dict[tuple[str, str], int], dict(tables["projections"]))
        checkpoints = cast(dict[tuple[str, str, int, str, int], int], dict(tables["checkpoints"]))
        desk = Desk(position, epoch, through, True, heads, versions, checkpoints, dict(parked))
        if engine is Engine.POSTGRES:
            marks = {key[1:]: at for key, at in checkpoints.items() if key[0] == engine.value}
        else:
            rows = blocks.tables["progress"]
            marks = {(name, v, topic, n): row["position"] for (name, v, topic, n), row in rows.items()}
        return Standing(desk, engine, marks)

    # ── how far everybody is ──────────────────────────────────────────────────────────────────────────────

    def missing(self, broker: Broker, blocks: Blocks) -> str:
        """What is still to come; empty when all have caught up."""
        tables = self.server.database.tables
        (position, _, _), (through, *_) = tables["head"][()], tables["relay"][()]
        if through != position:
            return f"the relay is at {through} of {position}"
        for place, last in tables["relay_head"].items():
            for engine, name in _followers(place[0].split(".")[2]):
                mark = tables["checkpoints"].get((engine, name, 1, *place), 0)
                if engine == "clickhouse":
                    row = blocks.tables["progress"].get((name, 1, *place))
                    mark = min(mark, 0 if row is None else row["position"])
                if mark < last:
                    return f"{engine} {name} is at {mark} of {last} in {place}"
        for name in ("parked", "due"):
            if tables[name]:
                return f"{len(tables[name])} {name}: {next(iter(tables[name].items()))}"
        return ""


def _followers(context: str) -> list[tuple[str, str]]:
    found = [
        (engine.value, projection.name)
        for engine in Engine
        for projection in projections_in(engine)
        if context in projection.contexts
    ]
    return found + [("reaction", each.name) for each in REACTIONS if context in each.contexts]
