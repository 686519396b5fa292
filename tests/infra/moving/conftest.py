"""Two clusters: the suite's own, and the one that ledgers move to."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from infra.engines.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def other_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("other-postgres"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def elsewhere(other_cluster: EmbeddedPostgres) -> Iterator[str]:
    """An administrator's address of an empty database in the other cluster."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(other_cluster.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{other_cluster.dsn.rpartition('/')[0]}/{name}"
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
