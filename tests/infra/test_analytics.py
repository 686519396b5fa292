"""Read models in ClickHouse: blocks that may come twice, and faults told apart from refusals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import NaiveDatetime

from domain.facts import Recorded
from domain.values import Value
from infra.analytics import AnalyticsUnavailable, ClickHouse, ClickHouseSink, definition, physical
from infra.engines.clickhouse import EmbeddedClickHouse
from infra.ledger import Ledger
from infra.mapper import StoredFact
from infra.sinks import Refused, Taken
from projections.fold import Fold
from projections.rows import Big, Engine, Projection, Put, Table
from tests.domain.samples import SAMPLES
from tests.e2e.chaos.judge import shown_in_clickhouse
from tests.ledgers import InPostgres
from tests.spec import T0, envelope


class EveryRow(Value):
    number: int
    text: str
    flag: bool
    id: UUID
    at: datetime
    local: NaiveDatetime
    big: Big
    maybe: str | None


EVERY = Table("every", EveryRow, ("number",), engine=Engine.CLICKHOUSE)
PROBE = Projection("probe", (type(SAMPLES[0]),), (EVERY,), lambda recorded: [])


def row(number: int, **other: Any) -> EveryRow:
    filled: dict[str, Any] = {
        "text": "x",
        "flag": True,
        "id": UUID(int=7),
        "at": T0,
        "local": datetime(2010, 12, 1, 8, 26, 0, 250),  # noqa: DTZ001 - business time has no zone
        "big": 2**80,
        "maybe": None,
    }
    return EveryRow(number=number, **(filled | other))


class Follower:
    name, names, contexts = "probe", frozenset({"catalog.offer-listed"}), frozenset({"catalog"})

    def take(self, recorded: Recorded) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    server = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def clickhouse(server: EmbeddedClickHouse) -> Iterator[ClickHouse]:
    clickhouse = ClickHouse(server.url, "ledger_probe")
    clickhouse.define([PROBE])
    clickhouse.define([PROBE])  # what is there is left alone
    yield clickhouse
    for table in (physical(EVERY, 1), "progress"):
        clickhouse.command(f"DROP TABLE {table}")
    clickhouse.close()


def taken(position: int, *rows: EveryRow) -> Taken:
    fact = StoredFact(position, "acme/s", position, "catalog.offer-listed", b"")
    recorded = Recorded(SAMPLES[0], "s", position, position, T0, 0, envelope(f"k{position}"))
    return fact, recorded, [Put(EVERY, each) for each in rows]


def write(clickhouse: ClickHouse, stored: InPostgres, *batches: list[Taken]) -> None:
    async def story() -> None:
        ledger = Ledger(stored.settings.role_dsn("worker"), stored.schema)
        try:
            for batch in batches:
                async with ClickHouseSink(clickhouse, ledger).unit() as unit:
                    await unit.write(Follower(), 1, batch)
        finally:
            await ledger.close()

    asyncio.run(story())


def test_every_kind_of_column_comes_back_as_it_went_in(clickhouse: ClickHouse, stored: InPostgres) -> None:
    rows = [
        row(1),
        row(2, text="“ü” \t\n", flag=False, big=-(2**90), maybe="", at=datetime(1971, 1, 1, tzinfo=UTC)),
    ]
    write(clickhouse, stored, [taken(1, *rows)])
    fold = Fold()
    fold.add(taken(1)[1], [Put(EVERY, each) for each in rows])
    assert shown_in_clickhouse(clickhouse, EVERY) == fold.rows(EVERY)


def test_a_block_that_comes_twice_is_there_once(clickhouse: ClickHouse, stored: InPostgres) -> None:
    block = [taken(1, row(1), row(2)), taken(2, row(3))]
    write(clickhouse, stored, block, block, block[1:])
    assert [key[1] for key in sorted(shown_in_clickhouse(clickhouse, EVERY))] == [1, 2, 3]


def test_of_a_row_put_twice_the_later_position_is_shown_whichever_came_last(
    clickhouse: ClickHouse, stored: InPostgres
) -> None:
    late, early = [taken(9, row(1, text="late"))], [taken(3, row(1, text="early"))]
    write(clickhouse, stored, late, early)
    assert [each[2] for each in shown_in_clickhouse(clickhouse, EVERY).values()] == ["late"]


@pytest.mark.parametrize("impossible", [{"number": 2**63}, {"number": -(2**70)}, {"big": 2**130}])
def test_what_no_column_can_hold_is_refused(
    clickhouse: ClickHouse, stored: InPostgres, impossible: dict[str, int]
) -> None:
    filled: dict[str, Any] = {"number": 1} | impossible
    with pytest.raises(Refused):
        write(clickhouse, stored, [taken(1, row(**filled))])
    assert shown_in_clickhouse(clickhouse, EVERY) == {}


@pytest.mark.parametrize(
    ("change", "impossible"),
    [
        ("ADD CONSTRAINT positive CHECK number > 0", {"number": -1}),
        ("ADD COLUMN parsed Int8 MATERIALIZED toInt8(text)", {"text": "six"}),
        ("ADD COLUMN day Date MATERIALIZED toDate(concat('2011-01-0', text))", {"text": "six"}),
        ("ADD COLUMN price Decimal32(2) MATERIALIZED toDecimal32(number, 2)", {"number": 2**62}),
        ("ADD COLUMN kind Enum8('6' = 1) MATERIALIZED text", {"text": "six"}),
    ],
)
def test_what_the_server_itself_will_not_take_is_refused(
    clickhouse: ClickHouse, stored: InPostgres, change: str, impossible: dict[str, Any]
) -> None:
    clickhouse.command(f"ALTER TABLE {physical(EVERY, 1)} {change}")
    filled: dict[str, Any] = {"number": 1, "text": "6"}
    with pytest.raises(Refused):
        write(clickhouse, stored, [taken(1, row(**(filled | impossible)))])
    write(clickhouse, stored, [taken(2, row(**filled))])
    assert [key[1] for key in shown_in_clickhouse(clickhouse, EVERY)] == [1]


def test_what_the_server_will_not_take_at_the_moment_is_a_fault(
    clickhouse: ClickHouse, stored: InPostgres
) -> None:
    table = physical(EVERY, 1)
    clickhouse.command(f"SYSTEM STOP MERGES {table}")
    write(clickhouse, stored, [taken(1, row(1))], [taken(2, row(2))])
    clickhouse.command(
        f"ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1"
    )
    with pytest.raises(AnalyticsUnavailable, match="TOO_MANY_PARTS"):
        write(clickhouse, stored, [taken(3, row(3))])
    clickhouse.command(f"DETACH TABLE {table}")
    with pytest.raises(AnalyticsUnavailable, match="UNKNOWN_TABLE"):
        write(clickhouse, stored, [taken(3, row(3))])
    clickhouse.command(f"ATTACH TABLE {table}")


def test_a_server_that_is_gone_is_a_fault_and_what_it_acknowledged_is_there_when_it_is_back(
    tmp_path: Path, stored: InPostgres
) -> None:
    server = EmbeddedClickHouse(tmp_path)
    server.start()
    clickhouse = ClickHouse(server.url, "ledger_probe")
    try:
        clickhouse.define([PROBE])
        write(clickhouse, stored, [taken(1, row(1))])
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(AnalyticsUnavailable):
            write(clickhouse, stored, [taken(2, row(2))])
        server.start()
        write(clickhouse, stored, [taken(2, row(2))])
        assert len(shown_in_clickhouse(clickhouse, EVERY)) == 2
    finally:
        clickhouse.close()
        server.stop()


def test_a_tables_key_is_its_order_and_its_identity() -> None:
    assert definition(EVERY, 3) == (
        "CREATE TABLE IF NOT EXISTS every_v3 (tenant String, number Int64, text String, flag Bool, id UUID,"
        " at DateTime64(6, 'UTC'), local DateTime64(6, 'UTC'), big Int128, maybe Nullable(String),"
        " from_position UInt64) ENGINE = ReplacingMergeTree(from_position) ORDER BY (tenant, number)"
    )
