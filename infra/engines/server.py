"""What the embedded servers share: a tethered process on a loopback port that says when it answers."""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from infra.engines.tether import tethered

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768 and up): a client that keeps dialling a dead port inside that range may
# be given the very port as its own, connect to itself, and so keep the server from coming back.
PORTS = range(15000, 32000)
POLL_S = 0.01
LOG_TAIL_CHARS = 2_000


class EngineFault(RuntimeError):
    """A server that cannot be started, with what to do about it."""


@dataclass(frozen=True)
class Command:
    """One program to run: `argv` is tethered already."""

    argv: list[str]
    environment: dict[str, str]
    cwd: Path


class Server:
    """One embedded engine. `prepare` once, then the same `command` as often as it has to be run."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    death_signal: ClassVar[signal.Signals] = signal.SIGKILL
    grace_s: ClassVar[float] = 10.0

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory.absolute()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make directory, password and whatever the server needs before its first run. Raises EngineFault."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        require_free(self.port)

    def command(self) -> Command:
        raise NotImplementedError

    def answers(self, pid: int) -> bool:
        """Whether the process `pid` serves requests by now. Never raises, takes at most about a second."""
        raise NotImplementedError

    def setting(self) -> dict[str, str]:
        """The field of Settings that points at this server, and its value."""
        raise NotImplementedError

    def start(self, timeout_s: float = 30.0) -> Self:
        """Run until `stop`, or until the calling process dies; what is left of an earlier run is ended first.

        Raises EngineFault with the end of the log.
        """
        if threading.current_thread() is not threading.main_thread():
            raise EngineFault(f"{self.name}: start it from the main thread; it would die with any other")
        self.stop()
        self.prepare()
        log_path = self.directory / "log"
        with log_path.open("ab") as log:
            self._process = spawn(self.command(), log.fileno())
        deadline_s = time.monotonic() + timeout_s
        while not self.answers(self._process.pid):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                self.stop()
                what = "ended at once" if ended else f"did not answer within {timeout_s:.0f} s"
                raise EngineFault(f"{self.name} {what}; the end of {log_path}:\n{tail(log_path)}")
            time.sleep(POLL_S)
        return self

    def stop(self) -> None:
        """End the process in its own good time, by force after `grace_s`. A second call does nothing."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EngineFault(f"{self.name} has not been started")
        return self._process.pid

    def _tethered(self, argv: list[str], *, user: str | None = None, lock: Path | None = None) -> list[str]:
        return tethered(
            argv,
            parent_pid=os.getpid(),
            user=user,
            death_signal=self.death_signal,
            lock=str(lock) if lock else None,
        )


def spawn(command: Command, log: int) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that Ctrl-C reaches only us and we stop things in our order."""
    return subprocess.Popen(
        command.argv,
        env=command.environment,
        cwd=command.cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


@contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[bool]:
    """Whether `path` could be locked within `wait_s`; unlocked again on leaving."""
    deadline_s = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    yield False
                    return
                time.sleep(POLL_S)
                continue
            yield True
            return


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    for _ in range(100):
        port = secrets.choice(PORTS)
        if is_free(port):
            return port
    raise EngineFault(f"no free port found between {PORTS.start} and {PORTS.stop}; close some servers")


def require_free(port: int) -> None:
    if not is_free(port):
        raise EngineFault(f"port {port} on {LOOPBACK} is in use; stop what uses it or choose another one")


def kept_password(path: Path) -> str:
    """The random password in `path` (mode 0600), made on first use."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(24))
    return path.read_text()


def tail(path: Path) -> str:
    return path.read_text(errors="replace")[-LOG_TAIL_CHARS:]


def is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        # As the servers do themselves: connections left in TIME_WAIT do not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
