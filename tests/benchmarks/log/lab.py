"""Where it happens: two servers, a follower, a process a contender; what fails is noted, the rest goes on."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from infra.engines.server import EngineFault
from tests.benchmarks.log import on_message_db
from tests.benchmarks.log.child import Child, Failed
from tests.benchmarks.log.contenders import HERE, PROTEAN, Contender, our_process
from tests.benchmarks.log.peers import Peers
from tests.benchmarks.log.plan import FAST, SLOW, Plan
from tests.benchmarks.log.server import BenchPostgres, NoShim, compiled

LIMIT_S = 30.0
"""What a slice may take beyond three times its length: warm-up, connections, a busy machine."""
FAILURES_MAX = 2
"""Then a contender is left out, on that server."""
FOLLOWER_PAUSE_S = 0.02
"""Between looks at a log with nothing new: the relay's own."""


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@dataclass(eq=False)
class Racing:
    """A contender at work on a database of its own."""

    child: Child
    dsn: str
    database: str


@dataclass(eq=False)
class Lab:
    folder: Path
    peers: Peers
    servers: dict[str, BenchPostgres] = field(default_factory=dict)
    racing: dict[tuple[str, str], Racing] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def rounds(self, plan: Plan, scenario: str) -> Iterator[int]:
        """As many as planned; fewer, but one at least, where the next would end after the scenario's time."""
        until_s = plan.until_s.get(scenario, math.inf)
        for nth in range(plan.rounds):
            began = time.monotonic()
            say(f"{scenario}, round {nth + 1} of {plan.rounds}")
            yield nth
            now = time.monotonic()
            if nth + 1 < plan.rounds and 2 * now - began - self.began > until_s:
                say(f"  no time for more than {nth + 1}")
                return

    def start_servers(self) -> None:
        """The slower one is left out by name where it cannot be had."""
        self.servers[FAST] = BenchPostgres(self.folder / "fast")
        self.servers[FAST].start()
        self.versions["PostgreSQL"] = self.servers[FAST].version()
        try:
            slow = BenchPostgres(self.folder / "slow", compiled(self.folder))
            slow.start()
            if (took_ms := _commit_ms(slow.dsn)) < 1.0:
                slow.stop()
                raise NoShim(f"a commit still takes {took_ms:.2f} ms: the shim has no effect here")
            self.servers[SLOW] = slow
        except (NoShim, EngineFault) as why:
            self.left_out[SLOW] = str(why)
        self.follower = self.process("follower", [sys.executable, "-m", f"{HERE}.follower"])

    def stop(self) -> None:
        for racing in self.racing.values():
            racing.child.close()
        if hasattr(self, "follower"):
            self.follower.close()
        for server in self.servers.values():
            server.stop()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def process(self, name: str, argv: list[str]) -> Child:
        log = self.folder / f"{re.sub('[^a-z0-9]+', '-', name)}-{next(self.numbers)}.out"
        return Child(name, argv, log, {"PYTHONPATH": str(Path.cwd()), "PYTHONWARNINGS": "ignore"})

    def database(self, server: str, what: str) -> tuple[str, str]:
        """(its name, its URL)"""
        name = f"{re.sub('[^a-z0-9]+', '_', what)}_{next(self.numbers)}"
        return name, self.servers[server].database(name)

    @contextmanager
    def our_processes(self, server: str, what: str, processes: int = 1) -> Iterator[tuple[str, list[Child]]]:
        """(URL, processes) on one fresh ledger, which is gone afterwards."""
        name, dsn = self.database(server, what)
        with ExitStack() as opened:
            opened.callback(self.servers[server].drop, name)
            children = []
            for _ in range(processes):
                children.append(self.process(what, our_process(dsn, self.peers, self.home)))
                opened.callback(children[-1].close)
            yield dsn, children

    @contextmanager
    def noting(self, scenario: str, who: str) -> Iterator[None]:
        """A failure inside is noted under these names, and is over."""
        self.loads.append(os.getloadavg()[0])
        try:
            yield
        except (Failed, psycopg.Error, EngineFault) as why:
            self.failures.append({"scenario": scenario, "contender": who, "why": str(why)})
            say(f"  FAILED {scenario}, {who}: {why}")

    @contextmanager
    def followed(self, name: str, dsn: str, query: str, pause_s: float = FOLLOWER_PAUSE_S) -> Iterator[int]:
        """A live follower on that log; the pid of its backend."""
        if not self.follower.alive:
            self.follower = self.process("follower", [sys.executable, "-m", f"{HERE}.follower"])
        backend = self.follower.ask("begin", LIMIT_S, name=name, dsn=dsn, query=query, pause_s=pause_s)
        try:
            yield int(backend["backend"])
        finally:
            self.follower.ask("end", 2 * LIMIT_S, name=name)

    def slice(
        self, scenario: str, server: str, contender: Contender, request: dict[str, Any], seconds: float
    ) -> dict[str, Any] | None:
        """One contender for so long, followed; None if it failed, now or too often before."""
        before = [f for f in self.failures if f["contender"] == contender.name and server in f["scenario"]]
        if contender.name in self.left_out or server not in self.servers or len(before) >= FAILURES_MAX:
            return None
        answer: dict[str, Any] | None = None
        with self.noting(f"{scenario}, {server}", contender.name):
            try:
                racing = self._racing(server, contender)
                with self.followed(racing.database, racing.dsn, contender.tail) as backend:
                    answer = racing.child.ask(
                        limit_s=3 * seconds + LIMIT_S,
                        seconds=seconds,
                        server=self.servers[server].pid,
                        besides=[backend],
                        **request,
                    )
            except Failed:
                self._forget(server, contender)
                raise
        return answer

    def delivered(self, server: str, contender: Contender) -> dict[str, Any] | None:
        """Whether its follower got everything that it committed."""
        racing = self.racing.get((server, contender.name))
        if racing is None:
            return None
        found: dict[str, Any] = {}
        with self.noting(f"delivered, {server}", contender.name):
            query = contender.committed
            found |= self.follower.ask("missing", 4 * LIMIT_S, name=racing.database, query=query)
        return found or None

    def over(self, server: str, contender: Contender) -> None:
        """Its process and its database go."""
        racing = self.racing.get((server, contender.name))
        if racing is not None:
            self._forget(server, contender)
            self.servers[server].drop(racing.database)

    def _forget(self, server: str, contender: Contender) -> None:
        racing = self.racing.pop((server, contender.name), None)
        if racing is not None:
            racing.child.close()

    def _racing(self, server: str, contender: Contender) -> Racing:
        found = self.racing.get((server, contender.name))
        if found is None:
            name, dsn = self.database(server, contender.name)
            if contender.name == PROTEAN:
                on_message_db.install(dsn, self.peers.message_db)
            child = self.process(contender.name, contender.argv(dsn, self.peers, self.home))
            found = self.racing[server, contender.name] = Racing(child, dsn, name)
            self.versions |= {key: str(value) for key, value in child.ready.items() if key != "schema"}
        return found


def _commit_ms(dsn: str, commits: int = 20) -> float:
    """What a commit usually takes; now and then somebody else has flushed its WAL already."""
    took = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS commits (at timestamptz)")
        for _ in range(commits):
            began = time.perf_counter()
            conn.execute("INSERT INTO commits VALUES (now())")
            took.append(time.perf_counter() - began)
        conn.execute("DROP TABLE commits")
    return median(took) * 1e3
