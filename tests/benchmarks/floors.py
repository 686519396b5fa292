"""The same work with everything left out that can be: what the engines alone would take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import psycopg

from tests.benchmarks.retail import Line
from tests.benchmarks.system import System, tables_in_clickhouse, tables_of

SCHEMA = "bench"
CLICKHOUSE_ROWS_MAX = 100_000
COMMANDS_AT_ONCE = 1_000
LINES = (
    "invoice text, nth bigint, code text, description text, quantity bigint, placed_at text, price numeric,"
    " customer text, country text, PRIMARY KEY (invoice, nth)"
)
FACTS = (  # as infra/migrations/0001_log.sql has them
    'originator_id text COLLATE "C", originator_version bigint, topic text COLLATE "C", state bytea,'
    " notification_id bigint, PRIMARY KEY (originator_id, originator_version)"
)
COMMANDS = "SELECT first_position, facts FROM commands WHERE facts > 0 ORDER BY first_position"
FACTS_OF = (
    "SELECT originator_id, originator_version, topic, state, notification_id FROM stored_events"
    " WHERE notification_id BETWEEN %b AND %b ORDER BY notification_id"
)
INSERT = (
    "INSERT INTO facts SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[], %b::bigint[])"
)


def _schema(system: System) -> psycopg.Connection[Any]:
    conn = system.database()
    conn.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE".encode())
    conn.execute(f"CREATE SCHEMA {SCHEMA}".encode())
    conn.execute(f"SET search_path = {SCHEMA}, {system.runtime.schema}".encode())
    return conn


def copy_lines(system: System, lines: list[Line]) -> float:
    """Seconds for COPY of the lines into a table with a key, then their insert into a ClickHouse table."""
    with _schema(system) as conn:
        conn.execute(f"CREATE TABLE lines ({LINES})".encode())
        block = "".join("\t".join(map(_text, line)) + "\n" for line in lines).encode()
        began = time.monotonic()
        with conn.cursor() as cursor, cursor.copy("COPY lines FROM STDIN") as copy:
            copy.write(block)
        spent = time.monotonic() - began
        conn.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
    system.clickhouse().command(f"CREATE DATABASE IF NOT EXISTS {SCHEMA}")
    clickhouse = system.clickhouse(SCHEMA)
    names = ["invoice", "nth", "code", "description", "quantity", "placed_at", "price", "customer", "country"]
    clickhouse.command("DROP TABLE IF EXISTS lines")
    clickhouse.command(
        "CREATE TABLE lines (invoice String, nth UInt32, code String, description String, quantity Int64,"
        " placed_at String, price String, customer Nullable(String), country String)"
        " ENGINE = MergeTree ORDER BY (invoice, nth)"
    )
    began = time.monotonic()
    for first in range(0, len(lines), CLICKHOUSE_ROWS_MAX):
        clickhouse.insert("lines", names, lines[first : first + CLICKHOUSE_ROWS_MAX])
    spent += time.monotonic() - began
    clickhouse.command("DROP TABLE lines")
    clickhouse.close()
    return spent


def _text(value: object) -> str:
    if value is None:
        return r"\N"
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def insert_facts(system: System) -> float:
    """Seconds for one INSERT and commit for each command of the log, into a table like the log's own."""
    spent = 0.0
    with _schema(system) as conn:
        conn.execute(f"CREATE TABLE facts ({FACTS})".encode())
        conn.execute("CREATE UNIQUE INDEX ON facts (notification_id)")
        conn.prepare_threshold = 0
        for commands in _commands(system):
            began = time.monotonic()
            for columns in commands:
                conn.execute(INSERT, columns, binary=True)
            spent += time.monotonic() - began
        conn.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
    return spent


def _commands(system: System) -> Iterator[list[list[list[Any]]]]:
    """The facts of each command, as columns, some commands at a time."""
    with system.database() as conn:
        wanted = iter(conn.execute(COMMANDS).fetchall())
        while some := list(islice(wanted, COMMANDS_AT_ONCE)):
            first, last = some[0][0], some[-1][0] + some[-1][1] - 1
            facts = iter(conn.execute(FACTS_OF, (first, last), binary=True).fetchall())
            yield [[list(column) for column in zip(*islice(facts, count), strict=True)] for _, count in some]


def copy_read_models(system: System) -> float:
    """Seconds for COPY of every read-model row and its past into tables of the same shape and keys, and for
    ClickHouse's own copy of its tables."""
    spent = 0.0
    with _schema(system) as conn:
        blocks = tables_in_clickhouse(conn)
        for name in tables_of(conn).values():
            conn.execute(f"CREATE TABLE {SCHEMA}.{name} (LIKE {system.runtime.schema}.{name} INCLUDING ALL)")
            with conn.cursor() as cursor:
                with cursor.copy(
                    f"COPY {system.runtime.schema}.{name} TO STDOUT (FORMAT binary)".encode()
                ) as out:
                    binary = [bytes(block) for block in out]
                began = time.monotonic()
                with cursor.copy(f"COPY {SCHEMA}.{name} FROM STDIN (FORMAT binary)".encode()) as into:
                    for block in binary:
                        into.write(block)
                spent += time.monotonic() - began
        conn.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
    clickhouse = system.clickhouse()
    for name in blocks.values():
        clickhouse.command(f"DROP TABLE IF EXISTS bench_{name}")
        clickhouse.command(f"CREATE TABLE bench_{name} AS {name}")
        began = time.monotonic()
        clickhouse.command(f"INSERT INTO bench_{name} SELECT * FROM {name}")
        spent += time.monotonic() - began
        clickhouse.command(f"DROP TABLE bench_{name}")
    clickhouse.close()
    return spent
