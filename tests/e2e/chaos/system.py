"""The system under attack: started, killed, frozen, asked how far it is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from infra.analytics import ClickHouse
from infra.engines.home import Running, environment, running
from infra.engines.server import tail
from infra.engines.tether import tethered
from infra.migrate import schema_of
from infra.settings import Settings

UP_S_MAX = 60.0
QUIET_S_MAX = 90.0
BEHIND = """
    SELECT h.position, h.position - r.through AS relay,
           (SELECT coalesce(sum(greatest(h.last_position - c.position, 0)), 0)
              FROM checkpoints c JOIN relay_head h USING (topic, partition)) AS marks,
           (SELECT count(*) FROM parked) AS parked
      FROM head h, relay r"""


class System:
    """A home, the supervisor that runs it, and whoever else a test adds."""

    def __init__(self, home: Path, supervisor: subprocess.Popen[bytes]) -> None:
        self.home, self.supervisor = home, supervisor
        self.extra: dict[str, subprocess.Popen[bytes]] = {}
        self.acknowledged, self.called = home / "acknowledged", home / "called"

    # ── processes ─────────────────────────────────────────────────────────────────────────────────

    @property
    def running(self) -> Running:
        found = running(self.home)
        assert found is not None, f"the supervisor is gone, see {self.home}/house.log"
        return found

    def pid(self, name: str) -> int | None:
        return self.running.children.get(name)

    def send(self, name: str, number: signal.Signals) -> bool:
        """Whether there was such a child to receive it."""
        pid = self.pid(name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def join(self, name: str, *module: str) -> None:
        """One more process of ours beside those that are kept alive."""
        with (self.home / "logs" / f"{name}.log").open("ab") as log:
            self.extra[name] = subprocess.Popen(
                tethered([sys.executable, "-m", *module], parent_pid=os.getpid()),
                env=os.environ | environment(self.running),
                stdout=log,
                stderr=log,
            )

    def join_ready(self, name: str, *module: str) -> None:
        """A worker, and wait until its group has let it in."""
        log = self.home / "logs" / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        self.join(name, *module)
        deadline = time.monotonic() + UP_S_MAX
        while b"Worker ready" not in log.read_bytes()[before:]:
            assert time.monotonic() < deadline, tail(log)
            time.sleep(0.1)

    def leave(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.extra.pop(name)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # ── stores ────────────────────────────────────────────────────────────────────────────────────

    @property
    def settings(self) -> Settings:
        up = self.running
        return Settings(
            home=self.home, postgres_dsn=up.postgres_dsn, kafka=up.kafka, clickhouse=up.clickhouse
        )

    def database(self) -> psycopg.Connection[Any]:
        """The administrator's, standing in the ledger."""
        settings = self.settings
        assert settings.postgres_dsn is not None
        return psycopg.connect(
            settings.postgres_dsn, autocommit=True, options=f"-c search_path={schema_of(settings)}"
        )

    def clickhouse(self) -> ClickHouse:
        settings = self.settings
        assert settings.clickhouse is not None
        return ClickHouse(settings.clickhouse, schema_of(settings))

    def until_quiet(self) -> float:
        """Wait until every follower has everything, twice in a row: reactions may have more to say."""
        began = time.monotonic()
        before: tuple[int, ...] | None = None
        while True:
            found = self._behind()
            if found is not None and found[1:3] == (0, 0) and found == before:
                return time.monotonic() - began
            before = found
            assert time.monotonic() - began < QUIET_S_MAX, f"(head, relay, marks, parked) = {found}"
            time.sleep(1.0)

    def _behind(self) -> tuple[int, ...] | None:
        with contextlib.suppress(psycopg.OperationalError), self.database() as conn:
            return conn.execute(BEHIND).fetchone()
        return None


@contextmanager
def system(home: Path, **roles: str) -> Iterator[System]:
    """Roles as name=module; a name's underscores are read as dashes."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "house.log"
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            tethered(
                [
                    sys.executable,
                    "-m",
                    "tests.e2e.chaos.house",
                    str(home),
                    *(f"{name.replace('_', '-')}={module}" for name, module in roles.items()),
                ],
                parent_pid=os.getpid(),
                death_signal=signal.SIGINT,
            ),
            stdout=output,
            stderr=output,
        )
    made = System(home, supervisor)
    try:
        deadline = time.monotonic() + UP_S_MAX
        while b"up " not in log.read_bytes():
            assert supervisor.poll() is None, log.read_text()[-2_000:]
            assert time.monotonic() < deadline, "the system did not come up"
            time.sleep(0.05)
        yield made
    finally:
        for name in list(made.extra):
            made.leave(name, signal.SIGKILL)
        supervisor.send_signal(signal.SIGINT)
        try:
            supervisor.wait(30)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()


def load(made: System, file: Path, pause_s: float = 0.0) -> subprocess.Popen[bytes]:
    arguments = [str(made.home), str(file), str(made.acknowledged), str(pause_s)]
    with (made.home / "loader.log").open("ab") as log:
        return subprocess.Popen(
            tethered([sys.executable, "-m", "tests.e2e.chaos.loader", *arguments], parent_pid=os.getpid()),
            stdout=log,
            stderr=log,
        )


@contextmanager
def loading(made: System, file: Path, pause_s: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    """The loader at work; ended with the block if it has not finished."""
    process = load(made, file, pause_s)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Loading:
    """A loader that may be killed too: put up again, it goes on where it was."""

    def __init__(self, made: System, file: Path, pause_s: float) -> None:
        self.made, self.file, self.pause_s = made, file, pause_s
        self.process = load(made, file, pause_s)

    def done(self) -> bool:
        """Whether everything is imported; a loader that fell over is put up again."""
        ended = self.process.poll()
        if ended not in (None, 0):
            self.process = load(self.made, self.file, self.pause_s)
        return ended == 0

    def begin(self) -> None:
        """Wait for its first answer."""
        deadline = time.monotonic() + UP_S_MAX
        while not (self.made.acknowledged.exists() and self.made.acknowledged.stat().st_size):
            assert time.monotonic() < deadline, tail(self.made.home / "loader.log")
            time.sleep(0.05)

    def finish(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not self.done():
            assert time.monotonic() < deadline, tail(self.made.home / "loader.log")
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def persisting(made: System, file: Path, pause_s: float) -> Iterator[Loading]:
    """A loading that is not given up before the block ends."""
    loading = Loading(made, file, pause_s)
    try:
        yield loading
    finally:
        loading.kill()
