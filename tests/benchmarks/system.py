"""A system to measure: started, fed, asked how far it is, emptied, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from infra.analytics import ClickHouse
from infra.engines.footprint import pss_bytes, tree
from infra.engines.home import Running, environment, running
from infra.engines.tether import tethered
from infra.readmodel import past, physical
from infra.runtime import Runtime
from infra.settings import PREFIX, Settings
from infra.sinks import Follower
from projections.registry import PROJECTIONS, projections_in
from projections.rows import Engine, Table
from streams.projector import Projecting
from streams.registry import REACTIONS
from tests.benchmarks.figure import Wrong

UP_S_MAX = 120.0
STOP_S_MAX = 30.0
QUIET_S_MAX = 900.0
LOOK_S = 0.02
EVERYTHING = ("api", "relay", "worker", "deadlines")
BEHIND = """
    SELECT h.position, h.position - r.through,
           (SELECT coalesce(sum(greatest(p.last_position - coalesce(c.position, 0), 0)), 0)
              FROM unnest(%s::text[], %s::text[]) f(name, context)
              JOIN relay_head p ON split_part(p.topic, '.', 3) = f.context
              LEFT JOIN checkpoints c ON (c.engine, c.name, c.topic, c.partition)
                                       = (%s, f.name, p.topic, p.partition)),
           (SELECT count(*) FROM parked)
      FROM head h, relay r"""
FOLLOWERS: dict[str, Sequence[Follower]] = {
    "postgres": [Projecting(projection) for projection in projections_in(Engine.POSTGRES)],
    "clickhouse": [Projecting(projection) for projection in projections_in(Engine.CLICKHOUSE)],
    "reaction": REACTIONS,
}


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def clean_environment() -> dict[str, str]:
    """Without anybody's own installation, and without what makes Python compile all anew in each process."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name != "PYTHONDONTWRITEBYTECODE"
    }


@dataclass(slots=True)
class System:
    home: Path
    process: subprocess.Popen[bytes]
    settings: Settings
    environment: dict[str, str]

    @property
    def running(self) -> Running:
        found = running(self.home)
        if found is None:
            raise Wrong(f"the system ended by itself; see {self.home}/house.log")
        return found

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.settings)

    @property
    def api(self) -> str:
        assert self.running.api is not None
        return self.running.api

    def database(self) -> psycopg.Connection[Any]:
        """The administrator's, standing in the ledger."""
        assert self.settings.postgres_dsn is not None
        return psycopg.connect(
            self.settings.postgres_dsn, autocommit=True, options=f"-c search_path={self.runtime.schema}"
        )

    def clickhouse(self, database: str | None = None) -> ClickHouse:
        assert self.settings.clickhouse is not None
        return ClickHouse(self.settings.clickhouse, database or self.runtime.schema)

    # ── processes ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def child(
        self, *module: str, output: int | None = None, talk: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`python -m MODULE...` in this system's environment; ended with the block."""
        if talk:
            output = subprocess.PIPE
        with (self.home / "logs" / f"{module[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                tethered([sys.executable, "-m", *module], parent_pid=os.getpid()),
                env=self.environment,
                stdin=subprocess.PIPE if talk else None,
                stdout=log if output is None else output,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def told(self, *module: str) -> dict[str, Any]:
        """What such a process, run to its end, printed as JSON."""
        with self.child(*module, output=subprocess.PIPE) as process:
            said, _ = process.communicate()
        if process.returncode:
            log = self.home / "logs" / f"{module[0]}.log"
            raise Wrong(f"{module[0]} ended with {process.returncode}: {log.read_text()[-1_000:]}")
        found: dict[str, Any] = json.loads(said)
        return found

    def memory_mib(self) -> dict[str, int]:
        """PSS of each child and of the supervisor."""
        up = self.running
        found = {name: pss_bytes(tree(pid)) >> 20 for name, pid in up.children.items()}
        return found | {"supervisor": pss_bytes({up.pid}) >> 20}

    def cpu_s(self) -> dict[str, float]:
        """Processor time each child has taken so far, with its own children, those that ended too."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = {}
        for name, pid in self.running.children.items():
            spent = 0
            for each in tree(pid):
                try:
                    fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                spent += sum(int(field) for field in fields[11:15])
            found[name] = round(spent / ticks, 1)
        return found

    # ── how far ───────────────────────────────────────────────────────────────────────────────────

    def until_quiet(self) -> dict[str, float]:
        """Wait until nothing is left to do; when each engine had everything, on the monotonic clock."""
        deadline = time.monotonic() + QUIET_S_MAX
        with self.database() as conn:
            at: dict[str, float] = {}
            head = -1
            while len(at) < len(FOLLOWERS):
                for engine in FOLLOWERS:
                    position, behind = left(conn, engine)
                    if position != head:  # reactions had more to say
                        head = position
                        at.clear()
                    if behind:
                        at.pop(engine, None)
                    else:
                        at.setdefault(engine, time.monotonic())
                if time.monotonic() > deadline:
                    raise Wrong(f"not quiet after {QUIET_S_MAX:.0f} s")
                time.sleep(LOOK_S)
        return at

    # ── read models, as if never built ────────────────────────────────────────────────────────────

    def empty_read_models(self) -> None:
        """Marks at 0 rather than gone: what the relay has to publish anew is told by them."""
        with self.database() as conn:
            for name in tables_of(conn).values():
                conn.execute(f"TRUNCATE {name}".encode())
            blocks = tables_in_clickhouse(conn)
            conn.execute("UPDATE checkpoints SET position = 0 WHERE engine IN ('postgres', 'clickhouse')")
        clickhouse = self.clickhouse()
        for name in blocks.values():
            clickhouse.command(f"TRUNCATE TABLE {name}")
        clickhouse.command("TRUNCATE TABLE progress")
        clickhouse.close()

    def refill_broker(self) -> float:
        """Kill the broker, let a relay of our own fill the next one, and stop it; the seconds that took."""
        with self.database() as conn:
            known, pid = _broker(conn), self.running.children["broker"]
            os.kill(pid, signal.SIGKILL)
            while self.running.children.get("broker", pid) == pid:
                time.sleep(LOOK_S)
            with self.child("streams.relay"):
                began = time.monotonic()
                while _broker(conn) == known:
                    if time.monotonic() - began > QUIET_S_MAX:
                        raise Wrong("the relay did not fill a new broker")
                    time.sleep(LOOK_S)
                return time.monotonic() - began

    def fingerprint(self) -> dict[str, tuple[int, int]]:
        """(rows, a hash that their order does not change) of every table and its past, in both engines."""
        found = {}
        with self.database() as conn:
            blocks = tables_in_clickhouse(conn)
            for name, table in tables_of(conn).items():
                row = conn.execute(
                    f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t".encode()
                ).fetchone()
                assert row is not None
                found[name] = int(row[0]), int(row[1])
        clickhouse = self.clickhouse()
        for name, table in blocks.items():
            _, rows = clickhouse.query(f"SELECT count(), sum(cityHash64(*)) FROM {table} FINAL")
            found[name] = int(rows[0][0]), int(rows[0][1] or 0)
        clickhouse.close()
        return found


Named = dict[str, str]
"""Tables of the versions that are shown, as they are called there, by the names that stay."""


def tables_of(conn: psycopg.Connection[Any]) -> Named:
    """Every read-model table of the ledger in Postgres, and its past."""
    return {
        named(table, 0).replace("_v0", ""): named(table, version)
        for table, version in _shown(conn, Engine.POSTGRES)
        for named in (physical, past)
    }


def tables_in_clickhouse(conn: psycopg.Connection[Any]) -> Named:
    return {
        f"clickhouse.{table.name}": physical(table, version)
        for table, version in _shown(conn, Engine.CLICKHOUSE)
    }


def _shown(conn: psycopg.Connection[Any], engine: Engine) -> list[tuple[Table, int]]:
    rows = conn.execute("SELECT name, version FROM projections WHERE engine = %s", (engine.value,))
    versions = dict(rows.fetchall())
    return [
        (table, versions.get(projection.name, 1))
        for projection in PROJECTIONS
        for table in projection.tables_in(engine)
    ]


def left(conn: psycopg.Connection[Any], engine: str) -> tuple[int, int]:
    """The log's head, and what the relay and an engine's followers still have to do, in positions."""
    wanted = [(follower.name, context) for follower in FOLLOWERS[engine] for context in follower.contexts]
    arguments = ([name for name, _ in wanted], [context for _, context in wanted], engine)
    row = conn.execute(BEHIND, arguments).fetchone()
    assert row is not None
    head, unpublished, behind, parked = row
    if parked:
        raise Wrong(f"{parked} facts are parked")
    return int(head), int(unpublished) + int(behind)


def _broker(conn: psycopg.Connection[Any]) -> str:
    row = conn.execute("SELECT broker FROM relay").fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def system(home: Path, *roles: str) -> Iterator[System]:
    """Engines and these roles, up and answering."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = home / "house.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(
                [sys.executable, "-m", "tests.benchmarks.house", str(home), *roles],
                parent_pid=os.getpid(),
                death_signal=signal.SIGINT,
            ),
            env=clean_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + UP_S_MAX
        while b"up\n" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Wrong(f"the system did not come up: {log.read_text()[-2_000:]}")
            time.sleep(0.05)
        up = running(home)
        assert up is not None
        given = environment(up)
        settings = Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
        yield System(home, process, settings, clean_environment() | given)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
