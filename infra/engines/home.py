"""Who runs a home and how to reach it: one lock while somebody does, one file that is always whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from infra.engines.server import EngineFault, locked
from infra.settings import PREFIX, Settings

LOCK = "up.lock"
STATE = "up.json"
LOCK_WAIT_S = 1.0  # `running` takes the lock for a moment to see whether it is free


class Addresses(BaseModel, frozen=True):
    """Where things answer; None as long as they do not. Database and ClickHouse URLs carry passwords."""

    api: str | None = None
    postgres_dsn: str | None = Field(default=None, repr=False)
    kafka: str | None = None
    clickhouse: str | None = Field(default=None, repr=False)


class Running(Addresses, frozen=True):
    """What `up.json` says: the supervisor's process id, and that of each child by name."""

    home: Path
    pid: int
    children: dict[str, int] = {}


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """The home, for this process alone. Raises EngineFault naming the process that has it."""
    home = settings.private_home()
    with locked(home / LOCK, wait_s=LOCK_WAIT_S) as mine:
        if not mine:
            other = _read(home)
            raise EngineFault(
                f"{home} is already up as process {other.pid if other else 'unknown'}; "
                f"stop that one, or choose another home with {PREFIX}HOME"
            )
        write(Running(home=home, pid=os.getpid()))
        try:
            yield
        finally:
            (home / STATE).unlink()


def write(running: Running) -> None:
    """Replace `up.json` (0600) in one step."""
    path = running.home / STATE
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(running.model_dump_json(indent=2))
    draft.replace(path)


def running(home: Path) -> Running | None:
    """What runs in `home`, also while it is starting; None when nobody does, whatever a stale file says."""
    if not (home / LOCK).exists():
        return None
    with locked(home / LOCK, wait_s=0) as free:
        return None if free else _read(home)


def environment(running: Running) -> dict[str, str]:
    """The variables that point a Settings at the running engines."""
    values = {
        "HOME": str(running.home),
        "POSTGRES_DSN": running.postgres_dsn,
        "KAFKA": running.kafka,
        "CLICKHOUSE": running.clickhouse,
    }
    return {f"{PREFIX}{name}": value for name, value in values.items() if value}


def _read(home: Path) -> Running | None:
    try:
        return Running.model_validate_json((home / STATE).read_text())
    except (FileNotFoundError, ValidationError):
        return None
