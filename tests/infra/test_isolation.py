"""The second wall: the database itself shows no tenant another's rows, whatever a query forgets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from commands.capacity import OpenPool
from commands.handling import Actor, Handler
from domain.facts import Envelope
from domain.values import Permission
from infra.eventstore import PostgresLog
from infra.groupcommit import APPEND, Asked, Batch, Ticket
from infra.settings import Role
from tests.ledgers import InPostgres, connected
from tests.spec import T0

TENANTS = ("acme", "other")
ROWS = {"acme": 2, "other": 3}
ROLES = ("counterfoil_owner", "counterfoil_app", "counterfoil_worker")
TENANT_COLUMNS = ("tenant", "originator_id", "stream")
"""By one of these a row says whose it is."""
Conn = psycopg.Connection[Any]


@pytest.fixture
def peopled(stored: InPostgres) -> InPostgres:
    """Two tenants, whose every pool has the same name."""
    mine = Handler(stored.open(), lambda: T0)
    for tenant in TENANTS:
        for number in range(ROWS[tenant]):
            by = Actor(tenant, "ana", frozenset(Permission))
            mine.handle(OpenPool(pool=f"p{number}"), by=by, key=f"k{number}")
    return stored


@pytest.fixture
def app(peopled: InPostgres) -> Iterator[Conn]:
    with connected(peopled.settings.role_dsn("app"), peopled.schema) as conn:
        yield conn


@pytest.fixture
def worker(peopled: InPostgres) -> Iterator[Conn]:
    with connected(peopled.settings.role_dsn("worker"), peopled.schema) as conn:
        yield conn


def count(conn: Conn, table: str) -> int:
    row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    assert row is not None
    return int(row[0])


def become(conn: Conn, tenant: str) -> None:
    conn.execute("SELECT set_config('counterfoil.tenant', %s, false)", (tenant,))


# ── what can be seen ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("table", ["stored_events", "commands", "facts"])
def test_without_a_tenant_nothing_exists(app: Conn, table: str) -> None:
    assert count(app, table) == 0


@pytest.mark.parametrize("table", ["stored_events", "commands", "facts"])
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_sees_its_own_rows_and_no_others(app: Conn, table: str, tenant: str) -> None:
    become(app, tenant)
    assert count(app, table) == ROWS[tenant]


@pytest.mark.parametrize("tenant", ["", "acm", "acme2", "acme/", "acme/pool-p0", "%", "a%", "ACME", "nobody"])
def test_no_name_that_is_nearly_a_tenants_sees_anything(app: Conn, tenant: str) -> None:
    become(app, tenant)
    assert [count(app, table) for table in ("stored_events", "commands", "facts")] == [0, 0, 0]


def test_the_rows_seen_are_the_tenants_own_by_content(app: Conn) -> None:
    become(app, "other")
    tenants = app.execute("SELECT DISTINCT tenant FROM facts").fetchall()
    keys = app.execute("SELECT DISTINCT tenant FROM commands").fetchall()
    assert tenants == keys == [("other",)]


def test_a_worker_sees_all_tenants_because_it_projects_for_all(worker: Conn) -> None:
    assert [count(worker, table) for table in ("stored_events", "commands", "facts")] == [5, 5, 5]


def appending(conn: Conn, tenant: str, reads: dict[str, int], *written: str) -> tuple[Any, ...]:
    """The first row that the append function answers a command of this tenant with, called by hand."""
    facts = [(stream, "n", b"x") for stream in written]
    batch = Batch()
    batch.take(Asked(tenant, "a", "new", b"", "c", 0, True, reads, facts, (), Ticket()))
    return APPEND.rows(conn, batch.arguments(1, stamped=True))[0]


def test_a_tenant_with_a_slash_is_turned_away_because_it_would_be_anothers_stream(app: Conn) -> None:
    for tenant in ("acme/pool", ""):
        with pytest.raises(psycopg.errors.CheckViolation):
            appending(app, tenant, {f"{tenant}/s": 0}, f"{tenant}/s")


def test_a_pooled_connection_does_not_bleed_the_tenant_of_the_last_call(peopled: InPostgres) -> None:
    log = peopled.open()
    calls = (
        lambda: log.read("acme", {"pool-p0": 0}),
        lambda: log.recorded("acme", 1, 9),
        lambda: log.spent(Envelope("acme", "ana", "k0")),
    )
    for call in calls:
        assert call()
        assert count(log.connection.open(), "stored_events") == 0
        assert count(log.connection.open(), "commands") == 0
    assert [fact.tenant for fact in log.recorded("other", 1, 9)] == ["other"] * 3


def test_a_tenant_set_by_a_read_lasts_no_longer_than_its_transaction(app: Conn) -> None:
    with app.transaction():
        app.execute("SELECT * FROM read_streams('acme', '{pool-p0}', '{0}')")
        assert count(app, "stored_events") == 2
    assert count(app, "stored_events") == 0


def test_a_read_for_one_tenant_cannot_be_led_to_another_by_a_streams_name(peopled: InPostgres) -> None:
    log: PostgresLog = peopled.open()
    for stream in ("../other/pool-p2", "other/pool-p2", "/other/pool-p2"):
        assert log.read("acme", {stream: 0}) == []


# ── what can be done ──────────────────────────────────────────────────────────────────────────────

WRITES = (
    "INSERT INTO stored_events VALUES ('acme/pool-x', 1, 'n', '', 99)",
    "UPDATE stored_events SET topic = 'n'",
    "DELETE FROM stored_events",
    "TRUNCATE stored_events",
    "INSERT INTO commands VALUES ('acme', 'a', 'k', '', 'c', 1, 0)",
    "UPDATE commands SET digest = ''",
    "DELETE FROM commands",
    "TRUNCATE commands",
    "UPDATE head SET position = 0",
    "DELETE FROM head",
    "SELECT position FROM head FOR UPDATE",
    "UPDATE migrations SET digest = ''",
    "ALTER TABLE stored_events DISABLE ROW LEVEL SECURITY",
    "DROP POLICY app_own_tenant ON stored_events",
    "CREATE POLICY mine ON stored_events USING (true)",
    "ALTER FUNCTION append SECURITY INVOKER",
    "DROP FUNCTION append",
    "INSERT INTO state_snapshots VALUES ('acme/pool-x', 'n', '', 1, 1, 1, 0, '', '')",
    "UPDATE state_snapshots SET state = ''",
    "DELETE FROM state_snapshots",
    "CREATE TABLE mine (a int)",
    "SET ROLE counterfoil_owner",
)


@pytest.mark.parametrize("statement", WRITES)
@pytest.mark.parametrize("role", ["app", "worker"])
def test_no_running_role_can_write_the_log_but_through_its_function(
    peopled: InPostgres, role: Role, statement: str
) -> None:
    with connected(peopled.settings.role_dsn(role), peopled.schema) as conn:
        become(conn, "acme")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(statement.encode())


def test_the_append_function_takes_the_tenant_as_an_argument_and_asks_no_more(app: Conn) -> None:
    """On record, because it is the limit of this wall: it is for reading. Who writes for whom is decided
    by the handler, which takes the tenant from the actor and from nowhere else."""
    become(app, "acme")
    assert appending(app, "other", {"other/s": 0}, "other/s")[0] == "all"
    assert count(app, "stored_events") == ROWS["acme"]


def test_what_the_append_function_answers_is_about_the_tenant_it_was_asked_for(app: Conn) -> None:
    """The other tenant's pool-p2 is no conflict, and is not shown."""
    outcome, *_, newer = appending(app, "acme", {"acme/pool-p2": 0})
    assert (outcome, newer) == ("all", None)


def test_nobody_may_call_the_functions_but_the_two_roles(peopled: InPostgres) -> None:
    with peopled.admin() as conn:
        open_to_all = conn.execute(
            "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = %s::regnamespace AND p.prosecdef"
            " AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))",
            (peopled.schema,),
        ).fetchall()
    assert open_to_all == []


# ── the census ────────────────────────────────────────────────────────────────────────────────────


def test_no_role_of_ours_is_above_the_wall(peopled: InPostgres) -> None:
    with peopled.admin() as conn:
        roles = conn.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication"
            " FROM pg_roles WHERE rolname LIKE 'counterfoil%' ORDER BY rolname"
        ).fetchall()
        member_of = conn.execute(
            "SELECT count(*) FROM pg_auth_members WHERE member::regrole::text LIKE 'counterfoil%'"
        ).fetchone()
    assert [name for name, *_ in roles] == sorted(ROLES)
    assert not any(power for _, *powers in roles for power in powers)
    assert member_of == (0,)


def test_every_table_belongs_to_the_owner_and_the_app_can_write_none(peopled: InPostgres) -> None:
    with peopled.admin() as conn:
        owners = conn.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = %s::regnamespace",
            (peopled.schema,),
        ).fetchall()
        writable = conn.execute(
            "SELECT relname FROM pg_class c"
            " WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'v')"
            " AND has_table_privilege('counterfoil_app', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')",
            (peopled.schema,),
        ).fetchall()
    assert owners == [("counterfoil_owner",)]
    assert writable == []


def unwalled(conn: Conn, schema: str) -> set[str]:
    """Tables that say whose a row is, that the app can read, and that are not behind the wall."""
    found = conn.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p')"
        " AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY (%s))"
        " AND has_any_column_privilege('counterfoil_app', c.oid, 'SELECT')"
        " AND NOT (c.relrowsecurity AND c.relforcerowsecurity)",
        (schema, list(TENANT_COLUMNS)),
    )
    return {str(name) for (name,) in found}


def seen_without_a_tenant(conn: Conn, schema: str) -> set[str]:
    """Views run with their owner's rights unless they say otherwise; these do not say."""
    found = conn.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('v', 'm')"
        " AND has_any_column_privilege('counterfoil_app', c.oid, 'SELECT')"
        " AND NOT coalesce(c.reloptions::text LIKE '%%security_invoker=true%%', false)",
        (schema,),
    )
    return {str(name) for (name,) in found}


def test_every_table_that_says_whose_a_row_is_stands_behind_the_wall(peopled: InPostgres) -> None:
    with peopled.admin() as conn:
        assert unwalled(conn, peopled.schema) == set()
        assert seen_without_a_tenant(conn, peopled.schema) == {"parked_counts"}  # numbers, no streams


def test_what_is_due_is_out_of_the_apps_reach(app: Conn) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(app, "due")


@pytest.mark.parametrize("column", TENANT_COLUMNS)
def test_the_census_notices_a_new_table_without_the_wall(peopled: InPostgres, column: str) -> None:
    """Negative control: with the wall enabled but not forced, and with a view that lends its owner's eyes."""
    with peopled.admin() as conn, conn.transaction(force_rollback=True):
        conn.execute(f"CREATE TABLE leaky ({column} text)".encode())
        conn.execute("GRANT SELECT ON leaky TO counterfoil_app")
        conn.execute("ALTER TABLE leaky ENABLE ROW LEVEL SECURITY")
        conn.execute("CREATE VIEW peephole AS SELECT * FROM commands")
        conn.execute("GRANT SELECT ON peephole TO counterfoil_app")
        assert "leaky" in unwalled(conn, peopled.schema)
        assert seen_without_a_tenant(conn, peopled.schema) == {"parked_counts", "peephole"}


def test_the_proof_notices_a_table_whose_policy_was_opened(peopled: InPostgres, app: Conn) -> None:
    """Negative control: with the policy taken out, the app sees everything, so the tests above look."""
    with peopled.admin() as conn:
        conn.execute("ALTER TABLE commands DISABLE ROW LEVEL SECURITY")
        try:
            assert count(app, "commands") == 5
        finally:
            conn.execute("ALTER TABLE commands ENABLE ROW LEVEL SECURITY")
    assert count(app, "commands") == 0
