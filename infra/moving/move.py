"""Move a ledger to another Postgres: close it, copy it whole, open it there in a new epoch, retire the old.

Until it is closed, the old ledger is the truth; while it is closed, nobody writes; the new one is empty or
whole, for its copy is one transaction. A move that dies is run again, or called off before it arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from infra.audit.findings import Progress, no_progress
from infra.migrate import ROLES, migrate
from infra.moving.copying import Copied, copy, is_empty
from infra.moving.standing import (
    Conn,
    MoveRefused,
    Standing,
    begin,
    close,
    opened,
    reopen,
    require_migrated,
    retire,
    standing,
    unguard,
)
from infra.settings import Settings, postgres_url

QUIET_S = 1.0
"""How long nothing may be recorded before a ledger is closed without being asked twice."""

Step = Callable[[str], None]
"""Told of each step that is done; what it raises stops the move there."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move came to."""

    ledger: str
    to: str
    """Without the password."""
    position: int
    epoch: int
    """The new one: positions of before are refused by name."""
    rows: dict[str, int]
    """By table; empty where the copy had been made by a move that was then killed."""
    left_behind: tuple[str, ...]
    closed_s: float
    """How long nobody could write, up to the end of the move."""

    def as_json(self) -> dict[str, Any]:
        return {"ok": True, **asdict(self)}


def move(
    settings: Settings,
    to: str,
    *,
    under_load: bool = False,
    progress: Progress = no_progress,
    step: Step = lambda name: None,
) -> Moved:
    """`settings` are the ledger's own, `to` the administrative address of the other Postgres.

    Raises MoveRefused, and then the old ledger is open if it was before; psycopg's OperationalError when a
    database does not answer, and then it may be closed: run the move again.
    """
    there = at(settings, to)
    with closing(opened(settings)) as old:
        require_migrated(old)
        migrate(there)
        step("migrated")
        with closing(opened(there)) as new:
            source = standing(old)
            copied, began = None, time.monotonic()
            if not standing(new).arrived_from(source):
                _require_possible(source, standing(new), new)
                if source.closed is None:
                    if not under_load:
                        _require_quiet(old, source)
                    began = time.monotonic()
                    _close(old, new)
                step("closed")
                copied = _carry(old, new, progress, step)
                step("opened")
            retire(old)
            step("retired")
            here = standing(new)
    return Moved(
        ledger=settings.ledger,
        to=told(to),
        position=here.position,
        epoch=here.epoch,
        rows=copied.rows if copied else {},
        left_behind=copied.left_behind if copied else (),
        closed_s=round(time.monotonic() - began, 2),
    )


def cancel(settings: Settings, to: str) -> None:
    """Call off a move that has not arrived: the old ledger is open again. Raises MoveRefused."""
    with closing(opened(settings)) as old:
        require_migrated(old)
        source = standing(old)
        if source.closed != "moving":
            raise MoveRefused(f"nothing to call off: the ledger is {source.closed or 'open'}")
        with closing(opened(at(settings, to))) as new:  # alone with it: no copy is on its way there
            require_migrated(new)
            target = standing(new)
            if target.move != source.move:
                raise MoveRefused("that is not where it moves to: give the address that the move was given")
            if target.closed is None:
                raise MoveRefused("it has arrived there: run the move again, which ends it")
            reopen(old)


def at(settings: Settings, to: str) -> Settings:
    """The ledger's settings when it is there: roles and passwords that follow from the address."""
    try:
        roles = {f"postgres_{role}_dsn": None for role in ROLES}
        return settings.model_copy(update={"postgres_dsn": postgres_url(to), **roles})
    except ValueError as bad:
        raise MoveRefused(f"--to: {bad}") from None


def told(dsn: str) -> str:
    """An address that may be shown."""
    url = urlsplit(dsn)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))


def _require_possible(source: Standing, target: Standing, new: Conn) -> None:
    if source.closed == "moved":
        raise MoveRefused("this ledger has moved already, and not there: mend the settings")
    if source.closed == "moving" and target.move != source.move:
        raise MoveRefused("it is on its way elsewhere, and may have arrived: end that move, or call it off")
    if not is_empty(new):
        raise MoveRefused("a ledger of this name is there already, with facts: it is not overwritten")


def _require_quiet(old: Conn, before: Standing) -> None:
    time.sleep(QUIET_S)
    if came := standing(old).position - before.position:
        raise MoveRefused(
            f"{came} facts came within {QUIET_S:.0f} s: stop whoever writes, or say --under-load,"
            " and they get 503 until they find the new address"
        )


def _close(old: Conn, new: Conn) -> None:
    """The new one first: whoever calls the move off has to show that he knows where it went."""
    name = uuid4()
    close(new, name)
    close(old, name)


def _carry(old: Conn, new: Conn, progress: Progress, step: Step) -> Copied:
    try:
        with old.transaction(), new.transaction():
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            unguard(new)
            copied = copy(old, new, progress)
            begin(new)
            step("copied")
    except MoveRefused:
        reopen(old)
        raise
    return copied
