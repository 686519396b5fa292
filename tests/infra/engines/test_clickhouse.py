"""The embedded ClickHouse: the stock clients cannot tell it from a server, as far as we use one."""

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import clickhouse_connect
import psutil
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from infra.engines.clickhouse import CONNECTIONS, QUERY_LIMITS, EmbeddedClickHouse
from infra.engines.server import EngineFault

COLUMNS = {
    "position": "Int64",
    "huge": "Int128",
    "price": "Decimal(38, 6)",
    "at": "DateTime('UTC')",
    "precise": "DateTime64(6, 'UTC')",
    "name": "String",
    "country": "LowCardinality(String)",
    "note": "Nullable(String)",
    "id": "UUID",
    "token": "UInt64",
    "tags": "Array(String)",
}
AT = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
PRECISE = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ID = UUID("0190c1a2-0000-7000-8000-000000000001")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    server = EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse")).start()
    yield server
    server.stop()


@pytest.fixture
def client(engine: EmbeddedClickHouse) -> Iterator[Any]:
    client = clickhouse_connect.get_client(dsn=engine.url, tz_mode="aware")
    client.command("DROP TABLE IF EXISTS facts")
    yield client
    client.close()


def test_an_insert_of_several_blocks_arrives_whole(client: Any) -> None:
    """The client compresses each block by itself; a reader of only the first loses acknowledged rows."""
    _create(client, COLUMNS)
    rows = [_row(n) for n in range(40_000)]
    client.insert("facts", rows, column_names=list(COLUMNS))
    assert client.command("SELECT count() FROM facts") == len(rows)


def test_every_type_we_use_comes_back_as_it_went_in(client: Any) -> None:
    _create(client, COLUMNS)
    rows = [_row(n) for n in range(3)]
    client.insert("facts", rows, column_names=list(COLUMNS))
    stored = client.query("SELECT * FROM facts ORDER BY position").result_rows
    assert [tuple(row) for row in stored] == [tuple(row) for row in rows]


def test_a_block_whose_first_byte_is_a_line_break_is_not_taken_for_the_query(client: Any) -> None:
    _create(client, {f"c{n}": "Int64" for n in range(10)})  # ten columns: a native block begins with 0x0a
    client.insert("facts", [[n] * 10 for n in range(10)])
    assert client.command("SELECT sum(c9) FROM facts") == 45


def test_a_replaced_row_is_read_once_with_final(client: Any) -> None:
    client.command(
        "CREATE TABLE facts (position Int64, version Int64) "
        "ENGINE = ReplacingMergeTree(version) ORDER BY position"
    )
    for version in range(3):
        client.insert("facts", [[n, version] for n in range(100)])
    assert client.query("SELECT count(), min(version) FROM facts FINAL").result_rows == [(100, 2)]


def test_parameters_are_bound_by_the_server_and_by_the_client(client: Any) -> None:
    nasty = "O'Brien \\ {x:Int64}\n\t"
    by_server = client.query("SELECT {x:Int64} + 1, {s:String}", parameters={"x": 41, "s": nasty})
    by_client = client.query("SELECT %(x)s + 1, %(s)s", parameters={"x": 41, "s": nasty})
    assert by_server.result_rows == by_client.result_rows == [(42, nasty)]


def test_arrow_goes_in_and_comes_out(client: Any) -> None:
    _create(client, {"position": "Int64", "name": "String"})
    table = pa.table({"position": [1, 2], "name": ["a", "b"]})
    client.insert_arrow("facts", table)
    assert client.query_arrow("SELECT * FROM facts ORDER BY position").to_pydict() == {
        "position": [1, 2],
        "name": ["a", "b"],
    }


def test_large_results_can_be_streamed_by_block(client: Any) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        sizes = [len(block) for block in stream]
    assert sum(sizes) == 300_000
    assert len(sizes) > 1


def test_a_setting_lasts_for_its_query_and_the_limits_come_back(client: Any) -> None:
    asked = "SELECT getSetting('max_threads')"
    assert client.command(asked, settings={"max_threads": 1}) == 1
    for _ in range(CONNECTIONS * 2):
        assert client.command(asked) == QUERY_LIMITS["max_threads"]


def test_a_query_says_what_it_wrote(client: Any) -> None:
    _create(client, {"position": "Int64"})
    assert client.insert("facts", [[n] for n in range(1234)]).written_rows == 1234


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELECT * FROM no_such_table", 60),
        ("SELEKT 1", 62),
        ("SELECT no_such_column FROM system.one", 47),
        ("SELECT {x:Int64}", 456),
        ("SELECT number, throwIf(number = 300000) FROM numbers(1000000)", 395),
        ("SELECT uniqExact(number) FROM numbers(100000000)", 241),
        ("SELECT number, toString(number) FROM numbers(50000000)", 396),
    ],
)
def test_an_error_carries_clickhouses_own_code_and_the_engine_lives_on(
    client: Any, query: str, code: int
) -> None:
    with pytest.raises(DatabaseError, match=rf"(?s)\b{code}\b"):
        client.query(query)
    assert client.command("SELECT 1") == 1


def test_a_failed_insert_leaves_nothing_and_a_wrong_table_is_named(client: Any) -> None:
    _create(client, {"position": "Int64"})
    with pytest.raises(DatabaseError, match="60"):
        client.raw_insert("no_such_table", ["position"], b"1\n", fmt="CSV")
    with pytest.raises(DatabaseError):
        client.raw_insert("facts", ["position"], b"1\nnot a number\n", fmt="CSV")
    assert client.command("SELECT count() FROM facts") == 0


@pytest.mark.parametrize("password", ["guess", ""])
def test_nobody_enters_without_the_password(engine: EmbeddedClickHouse, password: str) -> None:
    with pytest.raises(ClickHouseError, match="Authentication failed"):
        clickhouse_connect.get_client(host="127.0.0.1", port=engine.port, password=password)


def test_it_listens_on_loopback_only_and_hides_its_password_from_the_process_list(
    engine: EmbeddedClickHouse,
) -> None:
    process = psutil.Process(engine.pid)
    assert {each.laddr.ip for each in process.net_connections() if each.status == "LISTEN"} == {"127.0.0.1"}
    password = (engine.directory / "password").read_text()
    assert not any(password in argument for argument in process.cmdline())


def test_the_async_client_works_with_more_queries_than_connections(engine: EmbeddedClickHouse) -> None:
    async def ask() -> list[int]:
        client = await clickhouse_connect.get_async_client(dsn=engine.url)
        try:
            await client.command("CREATE OR REPLACE TABLE later (n Int64) ENGINE = MergeTree ORDER BY n")
            await client.insert("later", [[n] for n in range(100)])
            answers = await asyncio.gather(
                *(client.query(f"SELECT sum(n) + {i} FROM later") for i in range(12))
            )
            return [int(answer.result_rows[0][0]) for answer in answers]
        finally:
            await client.close()

    assert asyncio.run(ask()) == [4950 + i for i in range(12)]


def test_acknowledged_blocks_survive_kill_9_on_the_same_port(tmp_path: Path) -> None:
    server = EmbeddedClickHouse(tmp_path / "clickhouse").start()
    client = clickhouse_connect.get_client(dsn=server.url)
    _create(client, {"position": "Int64"})
    client.insert("facts", [[n] for n in range(5000)])
    os.kill(server.pid, signal.SIGKILL)
    server.start()
    try:
        assert client.command("SELECT count() FROM facts") == 5000
    finally:
        client.close()
        server.stop()
    assert list((server.directory / "inbox").iterdir()) == []


def test_a_busy_port_is_named(engine: EmbeddedClickHouse, tmp_path: Path) -> None:
    with pytest.raises(EngineFault, match=f"port {engine.port} .* in use; stop what uses it"):
        EmbeddedClickHouse(tmp_path / "clickhouse", engine.port).start()


def _create(client: Any, columns: dict[str, str]) -> None:
    listed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    client.command(f"CREATE TABLE facts ({listed}) ENGINE = MergeTree ORDER BY {next(iter(columns))}")


def _row(n: int) -> list[Any]:
    price = Decimal("12345678901234567890.123456") + n
    note = None if n % 2 else "first\nsecond"
    return [n, -(2**100) + n, price, AT, PRECISE, f"Zoë {n}", "DE", note, ID, 2**64 - 1 - n, ["a", "b"][:n]]
