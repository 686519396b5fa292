"""A ledger copied while transactions are open, and brought back elsewhere: what survives is a prefix of what
was delivered, in the order it had, and history goes on from there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from commands.capacity import OpenPool
from commands.handling import Handler
from infra.engines.postgres import find_bindir
from infra.migrate import admin_dsn
from infra.settings import Settings
from tests.infra.proofs.schedules import Schedule, schedules
from tests.infra.proofs.stage import Stage, ThroughTheFunction, connections
from tests.infra.proofs.test_order import KEPT_UP, go, staged
from tests.ledgers import InPostgres
from tests.spec import ANA, T0, TENANT

TABLES = ("stored_events", "commands", "head")
EPOCH = 2
"""Of whatever was brought back."""
RAISE_EPOCH = f"UPDATE head SET epoch = {EPOCH}"

Conn = psycopg.Connection[Any]


class Copying:
    """As a dump does it: all tables in one snapshot, whoever writes meanwhile; then the epoch is raised."""

    def __init__(self, taking: Conn, bringing: Conn) -> None:
        self.taking, self.bringing = taking, bringing

    def copy(self) -> None:
        self.taking.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for table in map(sql.Identifier, TABLES):
            self.bringing.execute(sql.SQL("DELETE FROM {}").format(table))
            with (
                self.taking.cursor().copy(sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(table)) as out,
                self.bringing.cursor().copy(
                    sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)
                ) as into,
            ):
                for piece in out:
                    into.write(piece)
        self.taking.execute("COMMIT")
        self.bringing.execute(RAISE_EPOCH)


@contextmanager
def copying(source: InPostgres, target: InPostgres) -> Iterator[Copying]:
    with source.admin() as taking, target.admin() as bringing:
        yield Copying(taking, bringing)


def raise_epoch(restored: InPostgres) -> None:
    with restored.admin() as conn:
        conn.execute(RAISE_EPOCH)


async def copied_after(stage: Stage, steps: int, schedule: Schedule, copying: Copying) -> int:
    """Play on to the end of the schedule, with a copy taken on the way; how many facts are in it."""
    for number, step in enumerate(schedule):
        if number == steps:
            survives = len(stage.writers.committed)
            copying.copy()
        await stage.take(step)
    return survives


async def goes_on(
    was: Stage, now: Stage, survives: int, schedule: Schedule, *, heeds_epoch: bool = True
) -> None:
    """The same followers on what was brought back: they go back to its head, if they have been further."""
    now.writers.committed = was.writers.committed[:survives]
    now.writers.begun += 1_000_000  # names that nobody has had
    now.judged = 0
    for before, follower in zip(was.followers, now.followers, strict=True):
        follower.noted = min(before.noted, survives) if heeds_epoch else before.noted
        follower.delivered = {
            position: fact
            for position, fact in before.delivered.items()
            if position <= survives or not heeds_epoch
        }
        await follower.look()
    now.judge()
    await now.play(schedule)


def test_copied_at_any_step_what_survives_is_delivered_in_its_order_and_history_goes_on(
    stored: InPostgres, settings: Settings
) -> None:
    """Every order of up to three writers, copied before each of its steps."""
    target, writing, behind = InPostgres(settings), ThroughTheFunction(EPOCH), 0

    async def story(taking: Copying) -> None:
        nonlocal behind
        async with (
            staged(stored, ThroughTheFunction(), stored.schema) as was,
            staged(target, writing, target.schema) as now,
        ):
            for schedule in chain.from_iterable(schedules(writers, KEPT_UP) for writers in (1, 2, 3)):
                for steps in range(len(schedule)):
                    survives = await copied_after(was, steps, schedule, taking)
                    behind += survives < len(was.writers.committed)
                    await goes_on(was, now, survives, schedule)

    with copying(stored, target) as taking:
        go(story(taking))
    assert behind > 50, "hardly anything was ever lost by a restore"


def test_control_a_follower_that_stays_where_it_was_is_caught(stored: InPostgres, settings: Settings) -> None:
    """Negative control: it has been further than what survives, and misses what comes there now."""
    target = InPostgres(settings)

    async def story(taking: Copying) -> None:
        async with (
            staged(stored, ThroughTheFunction(), stored.schema) as was,
            staged(target, ThroughTheFunction(EPOCH), target.schema) as now,
        ):
            (schedule,) = (each for each in schedules(1, KEPT_UP) if each[-1].act == "commit")
            survives = await copied_after(was, 1, schedule, taking)
            with pytest.raises(AssertionError, match="delivered is not what was committed"):
                await goes_on(was, now, survives, schedule, heeds_epoch=False)
            await now.writers.settle()

    with copying(stored, target) as taking:
        go(story(taking))


def test_who_decided_before_the_restore_records_nothing_after_it(stored: InPostgres) -> None:
    raise_epoch(stored)

    async def story() -> None:
        async with connections(admin_dsn(stored.settings), stored.schema, 1) as (late,):
            with pytest.raises(AssertionError, match="restored"):
                await ThroughTheFunction().append(late, "acme/late", 1)

    go(story())
    with stored.admin() as conn:
        assert conn.execute("SELECT position FROM head").fetchone() == (0,)


# ── by the dump that everybody has ────────────────────────────────────────────────────────────────


def program(name: str) -> str:
    path: Path = find_bindir() / name
    if not path.is_file():
        pytest.skip(f"this PostgreSQL came without {name}")
    return str(path)


@contextmanager
def brought_back(source: InPostgres, dump: bytes) -> Iterator[InPostgres]:
    """In a database of its own, on the same server."""
    name = f"restored_{uuid4().hex}"
    base = admin_dsn(source.settings).rpartition("/")[0]
    with psycopg.connect(f"{base}/postgres", autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            target = InPostgres(source.settings.model_copy(update={"postgres_dsn": f"{base}/{name}"}))
            restoring = [program("psql"), "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={base}/{name}"]
            subprocess.run(restoring, input=dump, check=True, stdout=subprocess.DEVNULL)
            yield target
            target.close()
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def an_open_transaction(stored: InPostgres) -> Iterator[None]:
    """That has appended, and ends too late."""
    with stored.admin() as conn, conn.transaction(force_rollback=True):
        conn.execute("UPDATE head SET position = position + 1")
        conn.execute("INSERT INTO stored_events SELECT 'acme/open', 1, 'n', '', position FROM head")
        yield


def test_a_dump_taken_while_a_transaction_is_open_brings_back_a_prefix_and_sells_on(
    stored: InPostgres,
) -> None:
    first = Handler(stored.open(), lambda: T0).handle(OpenPool(pool="p"), by=ANA, key="before")
    dumping = [program("pg_dump"), f"--schema={stored.schema}", admin_dsn(stored.settings)]
    with an_open_transaction(stored):
        dump = subprocess.run(dumping, check=True, capture_output=True).stdout
    with brought_back(stored, dump) as target:
        raise_epoch(target)
        again = Handler(target.open(), lambda: T0)
        assert again.handle(OpenPool(pool="p"), by=ANA, key="before").facts == first.facts
        later = again.handle(OpenPool(pool="q"), by=ANA, key="after")
        assert [fact.position for fact in later.facts] == [2]
        assert target.open().recorded(TENANT, 1, 9) == (*first.facts, *later.facts)
