"""Read models in Postgres: who may see them, and what their statements do to a table and to its past."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import NaiveDatetime

from domain.facts import Recorded
from domain.values import Value
from infra.ledger import Ledger
from infra.mapper import StoredFact
from infra.migrate import schema_of
from infra.readmodel import PostgresSink, define, definitions, past, physical
from infra.sinks import Refused, Taken
from projections.fold import Fold
from projections.registry import PROJECTIONS
from projections.rows import Add, Big, Delete, Engine, Projection, Put, RowOp, Table
from tests.domain.samples import SAMPLES
from tests.ledgers import InPostgres, connected
from tests.spec import T0, envelope

ID = UUID(int=7)


class EveryRow(Value):
    """A column of every kind, and one that may be empty."""

    number: int
    text: str
    flag: bool
    id: UUID
    at: datetime
    local: NaiveDatetime
    big: Big
    maybe: str | None


class TallyRow(Value):
    name: str
    up: Big = 0
    down: int = 0


EVERY = Table("every", EveryRow, ("number",))
TALLIES = Table("tallies", TallyRow, ("name",), sums=("up", "down"))
PROBE = Projection("probe", (type(SAMPLES[0]),), (EVERY, TALLIES), lambda recorded: [])


def row(number: int, text: str = "x", **other: Any) -> EveryRow:
    filled: dict[str, Any] = {
        "flag": True,
        "id": ID,
        "at": T0,
        "local": datetime(2010, 12, 1, 8, 26, 0, 250),  # noqa: DTZ001 - business time has no zone
        "big": 2**80,
        "maybe": None,
    }
    return EveryRow(number=number, text=text, **(filled | other))


@pytest.fixture
def probed(stored: InPostgres) -> Iterator[InPostgres]:
    """A ledger with the probe's tables beside its own."""
    with connected(stored.settings.role_dsn("owner"), stored.schema) as owner:
        define(owner, [PROBE])
        define(owner, [PROBE])  # what is there is left alone
    yield stored
    with stored.admin() as conn:
        for table in PROBE.tables:
            conn.execute(f"DROP TABLE {physical(table, 1)}, {past(table, 1)}".encode())
        conn.execute("DELETE FROM projections WHERE name = 'probe'")
        conn.execute("DELETE FROM checkpoints")
        conn.execute("DELETE FROM parked")


class Follower:
    name, names, contexts = "probe", frozenset({"catalog.offer-listed"}), frozenset({"catalog"})

    def take(self, recorded: Recorded) -> list[Any]:
        return []


def taken(position: int, *ops: RowOp) -> Taken:
    fact = StoredFact(position, "acme/s", position, "catalog.offer-listed", b"")
    return fact, Recorded(SAMPLES[0], "s", position, position, T0, 0, envelope(f"k{position}")), ops


def write(probed: InPostgres, *batches: list[Taken]) -> None:
    """Each batch in a unit of its own."""

    async def story() -> None:
        ledger = Ledger(probed.settings.role_dsn("worker"), probed.schema)
        try:
            for batch in batches:
                async with PostgresSink(ledger).unit() as unit:
                    await unit.write(Follower(), 1, batch)
        finally:
            await ledger.close()

    asyncio.run(story())


def shown(probed: InPostgres, name: str, order: str = "1, 2") -> list[tuple[Any, ...]]:
    with probed.admin() as conn:
        return conn.execute(f"SELECT * FROM {name} ORDER BY {order}".encode()).fetchall()


def test_every_kind_of_column_comes_back_as_it_went_in(probed: InPostgres) -> None:
    rows = [row(1), row(2, "“ü” \t", flag=False, big=-(2**90), maybe="", at=datetime(1969, 1, 1, tzinfo=UTC))]
    write(probed, [taken(1, *(Put(EVERY, each) for each in rows))])
    fold = Fold()
    fold.add(taken(1)[1], [Put(EVERY, each) for each in rows])
    assert {(each[0], each[1]): each for each in shown(probed, "every_v1")} == fold.rows(EVERY)


def test_a_row_put_and_deleted_again_and_again_has_a_past_without_gaps(probed: InPostgres) -> None:
    one, two = [Put(EVERY, row(1, text)) for text in ("a", "b")]
    gone = Delete(EVERY, (1,))
    write(
        probed,
        [taken(1, one), taken(2, two)],
        [taken(4, gone), taken(6, one), taken(7, gone), taken(9, two)],
        [taken(10, one)],
    )
    told = [(each[2], each[-2], each[-1]) for each in shown(probed, "every_v1_history", "from_position")]
    assert told == [("a", 1, 2), ("b", 2, 4), ("a", 6, 7), ("b", 9, 10), ("a", 10, None)]
    assert [each[2] for each in shown(probed, "every_v1")] == ["a"]


def test_only_what_a_fact_left_behind_is_past(probed: InPostgres) -> None:
    """Put twice, put and deleted, deleted and put: by one fact, at one position."""
    ops: list[RowOp] = [
        Put(EVERY, row(1, "never")),
        Put(EVERY, row(2, "never")),
        Put(EVERY, row(3, "never")),
        Put(EVERY, row(1, "kept")),
        Delete(EVERY, (2,)),
        Delete(EVERY, (3,)),
        Put(EVERY, row(3, "kept")),
    ]
    write(probed, [taken(5, *ops), taken(6, Put(EVERY, row(2, "late")))])
    assert [(each[1], each[2], each[-2], each[-1]) for each in shown(probed, "every_v1_history")] == [
        (1, "kept", 5, None),
        (2, "late", 6, None),
        (3, "kept", 5, None),
    ]


def test_sums_keep_a_move_for_each_fact_that_moved_them(probed: InPostgres) -> None:
    add = Add(TALLIES, ("x",), {"up": 2**70})
    write(
        probed, [taken(1, add, Add(TALLIES, ("x",), {"up": 1, "down": -3})), taken(2, add)], [taken(3, add)]
    )
    assert shown(probed, "tallies_v1") == [("acme", "x", 3 * 2**70 + 1, -3)]
    assert shown(probed, "tallies_v1_moves", "from_position") == [
        ("acme", "x", 2**70 + 1, -3, 1),
        ("acme", "x", 2**70, 0, 2),
        ("acme", "x", 2**70, 0, 3),
    ]


def test_what_the_database_cannot_hold_is_refused_and_leaves_nothing(probed: InPostgres) -> None:
    for op in (
        Put(EVERY, row(2**63)),
        Put(EVERY, row(1, "nul \x00")),
        Add(TALLIES, ("x",), {"down": 2**64}),
    ):
        with pytest.raises(Refused):
            write(probed, [taken(1, Put(EVERY, row(5))), taken(2, op)])
    assert shown(probed, "every_v1") == []
    assert shown(probed, "every_v1_history") == []


def test_a_careful_unit_survives_a_refusal(probed: InPostgres) -> None:
    async def story() -> None:
        ledger = Ledger(probed.settings.role_dsn("worker"), probed.schema)
        async with PostgresSink(ledger).unit(careful=True) as unit:
            with pytest.raises(Refused):
                await unit.write(Follower(), 1, [taken(1, Put(EVERY, row(5)), Put(EVERY, row(2**63)))])
            await unit.write(Follower(), 1, [taken(2, Put(EVERY, row(6)))])
        await ledger.close()

    asyncio.run(story())
    assert [each[1] for each in shown(probed, "every_v1")] == [6]


def test_the_app_reads_its_own_tenants_rows_and_writes_none(probed: InPostgres) -> None:
    write(probed, [taken(1, Put(EVERY, row(1)), Add(TALLIES, ("x",), {"up": 1}))])
    with connected(probed.settings.role_dsn("app"), probed.schema) as app:
        for name in ("every_v1", "every_v1_history", "tallies_v1", "tallies_v1_moves"):
            count = f"SELECT count(*) FROM {name}".encode()
            app.execute("SELECT set_config('counterfoil.tenant', '', false)")
            assert app.execute(count).fetchone() == (0,)
            app.execute("SELECT set_config('counterfoil.tenant', 'zeta', false)")
            assert app.execute(count).fetchone() == (0,)
            app.execute("SELECT set_config('counterfoil.tenant', 'acme', false)")
            assert app.execute(count).fetchone() == (1,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(f"DELETE FROM {name}".encode())


@pytest.mark.parametrize(
    "table", [t for p in PROJECTIONS for t in p.tables_in(Engine.POSTGRES)], ids=lambda table: table.name
)
def test_every_table_and_its_past_stand_behind_the_wall(stored: InPostgres, table: Table) -> None:
    assert all(name in " ".join(definitions(table, 1)) for name in (physical(table, 1), past(table, 1)))
    with stored.admin() as conn:
        for name in (physical(table, 1), past(table, 1)):
            assert conn.execute(
                "SELECT relrowsecurity, relforcerowsecurity FROM pg_class c JOIN pg_namespace n"
                " ON n.oid = relnamespace WHERE relname = %s AND nspname = %s",
                (name, schema_of(stored.settings)),
            ).fetchone() == (True, True)
