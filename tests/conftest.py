"""Engines for the whole suite: started once, really, and never mocked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql

from infra.engines.postgres import EmbeddedPostgres
from infra.migrate import migrate
from infra.settings import Settings
from tests.ledgers import InMemory, InPostgres, Ledger
from tests.redis_server import redis_server as redis_server  # a fixture

# A property fails because it is false, never because the machine was busy.
hypothesis_settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="of the chaos tests' chance; a failed run prints its own")
    parser.addoption("--year", action="store_true", help="the chaos tests' file is the whole year")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A migrated database that each test gets a copy of."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), postgres_dsn=postgres.dsn)
    migrate(settings)
    return settings


@pytest.fixture
def settings(template: Settings) -> Iterator[Settings]:
    """Settings of a migrated database of this test's own. Takes a second: `stored` is nearly free."""
    with copied(template) as settings:
        yield settings


@pytest.fixture(scope="session")
def shared(template: Settings) -> Iterator[Settings]:
    """A migrated database for all tests that leave it as they found it."""
    with copied(template) as settings:
        yield settings


@contextmanager
def copied(template: Settings) -> Iterator[Settings]:
    name = f"test_{uuid4().hex}"
    assert template.postgres_dsn is not None
    base, _, source = template.postgres_dsn.rpartition("/")
    admin = f"{base}/postgres"
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source))
        )
    yield template.model_copy(update={"postgres_dsn": f"{base}/{name}"})
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def stored(shared: Settings) -> Iterator[InPostgres]:
    """An empty ledger in Postgres."""
    ledger = InPostgres(shared)
    ledger.empty()
    yield ledger
    ledger.close()


@pytest.fixture(params=["memory", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger of each kind: what holds for one has to hold for the other."""
    if request.param == "memory":
        return InMemory()
    in_postgres: InPostgres = request.getfixturevalue("stored")
    return in_postgres
