"""Bring a database up to this program: roles, schema, plain SQL files once each, read-model tables.

Safe to run from several processes at once: everything happens under one advisory lock, and roles, which
are the whole cluster's, are tried again where another database's migration was at them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from importlib import resources

import psycopg
from psycopg import sql

from infra.readmodel import define
from infra.settings import Role, Settings
from projections.registry import PROJECTIONS

LOCK = 0x436F756E746572
"""Of migrations: any constant will do, as long as it stays."""
ROLES: tuple[Role, ...] = ("owner", "app", "worker")
ROLE_TRIES_MAX = 50
ROLE_PAUSE_S = 0.05
OVERTAKEN = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
    psycopg.errors.InternalError_,  # "tuple concurrently updated", which has no code of its own
)
"""What a role's statement ends with when another database's migration changes that role now."""


class MigrationChanged(RuntimeError):
    """A migration that was applied differs from the file: files are never edited, only added."""


def migrate(settings: Settings) -> None:
    """Create what is missing. Needs the administrative DSN; running roles never see it."""
    with psycopg.connect(admin_dsn(settings), autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        _roles(conn, settings)
        schema = sql.Identifier(schema_of(settings))
        conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION counterfoil_owner").format(schema))
        conn.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO counterfoil_app, counterfoil_worker").format(schema)
        )
        with psycopg.connect(settings.role_dsn("owner")) as owner:
            owner.execute(sql.SQL("SET search_path = {}").format(schema))
            _files(owner, schema_of(settings))
            define(owner, PROJECTIONS)


def schema_of(settings: Settings) -> str:
    """A ledger is a schema."""
    return f"ledger_{settings.ledger}"


def admin_dsn(settings: Settings) -> str:
    return settings.admin_dsn("migrations need an administrative address")


def _roles(conn: psycopg.Connection[tuple[object, ...]], settings: Settings) -> None:
    for role in ROLES:
        for _ in range(ROLE_TRIES_MAX - 1):
            try:
                _role(conn, settings, role)
                break
            except OVERTAKEN:
                time.sleep(ROLE_PAUSE_S)
        else:
            _role(conn, settings, role)


def _role(conn: psycopg.Connection[tuple[object, ...]], settings: Settings, role: Role) -> None:
    name = sql.Identifier(f"counterfoil_{role}")
    known = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (f"counterfoil_{role}",)).fetchone()
    if known is None:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN NOBYPASSRLS NOSUPERUSER").format(name))
    if getattr(settings, f"postgres_{role}_dsn") is None:
        conn.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(settings.role_password(role)))
        )


def _files(owner: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    owner.execute(
        "CREATE TABLE IF NOT EXISTS migrations "
        "(name text PRIMARY KEY, digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = {
        str(name): str(digest) for name, digest in owner.execute("SELECT name, digest FROM migrations")
    }
    for name, text in migrations():
        digest = hashlib.sha256(text.encode()).hexdigest()
        if name in applied:
            if applied[name] != digest:
                raise MigrationChanged(f"{name} in schema {schema}")
            continue
        owner.execute(text.encode())
        owner.execute("INSERT INTO migrations (name, digest) VALUES (%s, %s)", (name, digest))
    # Functions find their ledger's tables whatever the caller's search path is, and nobody else's.
    owner.execute(
        sql.SQL(
            "DO $$ DECLARE f regprocedure; BEGIN "
            "FOR f IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = {}::regnamespace "
            "LOOP EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', f, {}); END LOOP; END $$"
        ).format(sql.Literal(schema), sql.Literal(schema))
    )


def migrations() -> Iterable[tuple[str, str]]:
    """The files of infra/migrations, by name."""
    folder = resources.files("infra").joinpath("migrations")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            yield file.name, file.read_text()
