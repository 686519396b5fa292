"""Migrations: once each, whoever comes first, and never edited."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from commands.capacity import OpenPool
from commands.handling import Handler
from infra.migrate import MigrationChanged, admin_dsn, migrate, migrations, schema_of
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
