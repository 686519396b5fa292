"""The engines a command needs: those of a running `up` of the same home, or its own for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.engines.home import Running, environment, running
from infra.engines.server import EngineFault
from infra.engines.tether import tethered
from infra.runtime import Runtime
from infra.settings import PREFIX, Settings

START_S_MAX = 90.0
STOP_S_MAX = 20.0


@dataclass(frozen=True)
class Stack:
    """A system that answers."""

    runtime: Runtime
    running: Running
    own: bool
    """Started by this command, and stopped with it."""

    @property
    def api(self) -> str:
        assert self.running.api is not None
        return self.running.api


@contextmanager
def stack(settings: Settings, tell: Callable[[str], None] = lambda text: None) -> Iterator[Stack]:
    """Join the system of this home, or start one. Raises EngineFault with what its log said last."""
    found = running(settings.home)
    if found is not None:
        yield _stack(_until_up(settings.home, None), own=False)
        return
    tell("starting the engines")
    started = time.monotonic()
    settings.private_home()
    log = settings.home / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(
                [sys.executable, "-m", "api.cli", "up", "--quiet"],
                parent_pid=os.getpid(),
                death_signal=signal.SIGINT,
            ),
            env=os.environ | {f"{PREFIX}HOME": str(settings.home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the command; it stops the system itself
        )
    try:
        up = _until_up(settings.home, process, log)
        tell(f"the system is up after {time.monotonic() - started:.1f} s")
        yield _stack(up, own=True)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_up(home: Path, process: subprocess.Popen[bytes] | None, log: Path | None = None) -> Running:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        found = running(home)
        if found is not None and found.api is not None:
            return found
        if process is not None and process.poll() is not None:
            said = log.read_text(errors="replace")[-2_000:] if log else ""
            raise EngineFault(f"the system did not start:\n{said}")
        time.sleep(0.05)
    raise EngineFault(f"the system of {home} was not up after {START_S_MAX:.0f} s; see {home / 'logs'}")


def joined(settings: Settings) -> Settings:
    """With the engines of a system that runs in this home; as they are where none does."""
    found = running(settings.home)
    return settings if found is None else _pointed(_until_up(settings.home, None))


def _stack(up: Running, *, own: bool) -> Stack:
    return Stack(Runtime(_pointed(up)), up, own)


def _pointed(up: Running) -> Settings:
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment(up).items()}
    return Settings(**given)
