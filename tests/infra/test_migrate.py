"""Migrations: once each, whoever comes first, and never edited."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from commands.capacity import OpenPool
from commands.handling import Handler
from infra.engines.postgres import EmbeddedPostgres
from infra.migrate import ROLES, MigrationChanged, admin_dsn, migrate, migrations, schema_of
from infra.settings import BadSetting, Settings
from tests.ledgers import InPostgres, connected
from tests.spec import ANA, T0, TENANT


def test_migrating_again_changes_nothing(settings: Settings) -> None:
    ledger = InPostgres(settings)
    Handler(ledger.open(), lambda: T0).handle(OpenPool(pool="p"), by=ANA, key="k")
    with ledger.admin() as conn:
        before = conn.execute("SELECT name, digest, applied_at FROM migrations ORDER BY name").fetchall()
        migrate(settings)
        assert (
            conn.execute("SELECT name, digest, applied_at FROM migrations ORDER BY name").fetchall() == before
        )
    assert [name for name, _, _ in before] == [name for name, _ in migrations()]
    assert len(ledger.open().read(TENANT, {"pool-p": 0})) == 1
    ledger.close()


def test_several_processes_may_migrate_at_once(settings: Settings) -> None:
    other = settings.model_copy(update={"ledger": "raced"})
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate, [other] * 4))
    with connected(admin_dsn(other), schema_of(other)) as conn:
        assert conn.execute("SELECT count(*) FROM migrations").fetchone() == (len(list(migrations())),)
        assert conn.execute("SELECT position FROM head").fetchall() == [(0,)]


def test_databases_of_one_cluster_may_migrate_at_once(tmp_path: Path) -> None:
    """Roles are the cluster's, and the lock is the database's: nobody else keeps them apart."""
    cluster = EmbeddedPostgres(tmp_path / "postgres").start()
    names, together = ("one", "two", "three"), threading.Barrier(3)

    def race(settings: Settings) -> None:
        together.wait(30)
        migrate(settings)

    try:
        base = cluster.dsn.rpartition("/")[0]
        each = [
            Settings(home=tmp_path / "home", postgres_dsn=f"{base}/{name}", kafka=None, clickhouse=None)
            for name in names
        ]
        with psycopg.connect(cluster.dsn, autocommit=True) as conn, ThreadPoolExecutor(3) as threads:
            for _ in range(2):  # roles that are not there yet, then roles that are
                for name in names:
                    conn.execute(f"CREATE DATABASE {name}".encode())
                for _ in range(2):
                    list(threads.map(race, each))
                for settings in each:
                    with connected(settings.role_dsn("worker"), schema_of(settings)) as worker:
                        assert worker.execute("SELECT position FROM head").fetchall() == [(0,)]
                for name in names:
                    conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
                for role in ROLES:
                    conn.execute(f"DROP ROLE counterfoil_{role}".encode())
    finally:
        cluster.stop()


def test_a_second_ledger_is_a_second_schema_and_sees_nothing_of_the_first(settings: Settings) -> None:
    first = InPostgres(settings)
    second = InPostgres(settings.model_copy(update={"ledger": "two"}))
    migrate(second.settings)
    for ledger in (first, second):
        answer = Handler(ledger.open(), lambda: T0).handle(OpenPool(pool="p"), by=ANA, key="k")
        assert (answer.position, answer.replayed) == (1, False)
    assert second.schema == "ledger_two"
    for ledger in (first, second):
        ledger.close()


def test_a_file_that_was_edited_after_it_was_applied_is_said(settings: Settings) -> None:
    ledger = InPostgres(settings)
    with ledger.admin() as conn:
        conn.execute("UPDATE migrations SET digest = 'another' WHERE name = '0001_log.sql'")
    with pytest.raises(MigrationChanged, match=r"0001_log\.sql in schema ledger_0"):
        migrate(settings)


def test_functions_find_their_own_ledger_whatever_the_search_path(stored: InPostgres) -> None:
    Handler(stored.open(), lambda: T0).handle(OpenPool(pool="p"), by=ANA, key="k")
    with connected(stored.settings.role_dsn("app"), "pg_catalog") as conn:
        conn.execute("CREATE TEMP TABLE stored_events (LIKE ledger_0.stored_events)")
        conn.execute("SET search_path = pg_temp, public")
        rows = conn.execute("SELECT pos FROM ledger_0.read_streams('acme', '{pool-p}', '{0}')").fetchall()
    assert rows == [(1,)]


def test_without_an_administrators_address_it_says_what_to_set(settings: Settings) -> None:
    with pytest.raises(BadSetting, match="COUNTERFOIL_POSTGRES_DSN"):
        migrate(settings.model_copy(update={"postgres_dsn": None}))
