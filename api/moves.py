"""The admin's command that moves a ledger to another Postgres, and calls that off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from api.audits import Json, out, steps
from api.stack import joined
from infra.ledger import DATABASE_FAULTS
from infra.moving.move import Moved, cancel, told
from infra.moving.move import move as move_ledger
from infra.moving.standing import MoveRefused
from infra.settings import Settings


class MoveInterrupted(Exception):
    """A database went away; what the ledger is now is said by the next attempt."""


EXPECTED = (MoveInterrupted, MoveRefused)
app = typer.Typer(help="Ledgers as a whole.", no_args_is_help=True)


@app.callback()
def ledgers() -> None:
    """Ledgers as a whole."""


@app.command()
def move(
    name: Annotated[str, typer.Argument(help="The ledger.")],
    to: Annotated[
        str,
        typer.Option(
            envvar="COUNTERFOIL_MOVE_TO",
            help="The other Postgres: an administrator's address, postgresql://user:password@host:5432/database.",
        ),
    ],
    under_load: Annotated[
        bool, typer.Option("--under-load", help="Although somebody writes: they get 503 from now on.")
    ] = False,
    call_off: Annotated[
        bool, typer.Option("--cancel", help="Call off a move that has not arrived; the ledger opens again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Move a ledger to another Postgres: closed here, copied, compared, opened there in its next epoch.

    Run it again if it was interrupted. See docs/ledgers.md.

    Example: counterfoil ledger move eu --to postgresql://postgres:password@eu.internal:5432/counterfoil
    """
    settings = joined(Settings())
    ledger = settings.of_ledger(name)
    if call_off:
        with _interruptible():
            cancel(ledger, to)
        if as_json:
            print(json.dumps({"ok": True, "ledger": name}))  # noqa: T201
        else:
            out.print(f"called off: ledger {name} is open where it was", highlight=False)
        return
    with _interruptible(), steps() as tell:
        moved = move_ledger(ledger, to, under_load=under_load, progress=tell)
    if as_json:
        print(json.dumps(moved.as_json()))  # noqa: T201
    else:
        _tell(moved, settings)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except DATABASE_FAULTS as lost:
        raise MoveInterrupted(f"{lost}; the ledger may be closed: run this again, or add --cancel") from lost


def _tell(moved: Moved, settings: Settings) -> None:
    facts = f"{moved.position:,} positions, {sum(moved.rows.values()):,} rows compared"
    out.print(f"ledger {moved.ledger} is at {moved.to}, in epoch {moved.epoch}: {facts}", highlight=False)
    for table in moved.left_behind:
        out.print(f"left behind: {table}, which no part of this program reads", highlight=False)
    out.print("now, for every process of the installation:", highlight=False)
    if moved.ledger in settings.ledgers:
        out.print(
            f'  COUNTERFOIL_LEDGERS: "postgres_dsn" of "{moved.ledger}" is {moved.to}, with user and'
            " password; no other address of it stays",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    else:
        out.print(
            f"  COUNTERFOIL_POSTGRES_DSN is {moved.to}, with user and password; further ledgers that stay"
            f' get "postgres_dsn", which is {told(settings.postgres_dsn or "the old address")}',
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    out.print("then start it, and run `counterfoil verify`", highlight=False)
