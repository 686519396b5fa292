"""Tenants and their ledgers: served from where their facts are, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from commands.capacity import OpenPool
from commands.handling import Actor, Handler
from domain.values import Permission
from infra.migrate import admin_dsn, migrate, schema_of
from infra.runtime import Runtime
from infra.settings import LedgerSettings, Settings
from infra.tenancy import BadAssignment, Ledgers, TenantElsewhere, at_home, settle, strays, tenants
from tests.ledgers import InPostgres, connected
from tests.spec import T0


def assigned(settings: Settings, **ledgers: list[str]) -> Settings:
    """The same installation with these further ledgers."""
    named = {name: LedgerSettings(tenants=frozenset(mine)) for name, mine in ledgers.items()}
    return settings.model_copy(update={"ledgers": named})


def record(settings: Settings, tenant: str, ledger: str | None = None) -> None:
    """A fact of this tenant, in the ledger that the settings assign it or in another one."""
    within = InPostgres(settings.of_ledger(ledger or settings.ledger_of(tenant)))
    by = Actor(tenant, "ana", frozenset(Permission))
    Handler(within.open(), lambda: T0).handle(OpenPool(pool="p"), by=by, key="k")
    within.close()


def refusal(settings: Settings, tenant: str) -> str:
    with pytest.raises(TenantElsewhere) as refused:
        asyncio.run(at_home(Runtime(settings), tenant))
    return str(refused.value)


@pytest.fixture
def two(settings: Settings) -> Settings:
    """A default ledger, and one named eu with two tenants."""
    nowhere = settings.model_copy(update={"clickhouse": "http://nobody:nothing@127.0.0.1:1/x"})
    made = assigned(nowhere, eu=["acme", "bolt"])
    migrate(made.of_ledger("eu"))
    settle(made)
    return made


@pytest.mark.parametrize("named", [["acme", "acme-x", "acme0", "acmf", "a", "zz"], [], ["solo"]])
def test_tenants_are_found_without_reading_their_facts(stored: InPostgres, named: list[str]) -> None:
    """Names that sort around the / after a tenant's name are the ones that a skipping scan could miss."""
    mine = Handler(stored.open(), lambda: T0)
    for tenant in named:
        for pool in ("a", "zzz"):
            mine.handle(OpenPool(pool=pool), by=Actor(tenant, "ana", frozenset(Permission)), key=pool)
    with stored.admin() as conn:
        assert sorted(tenants(conn)) == sorted(named)


def test_each_tenant_is_served_from_its_own_ledger(two: Settings) -> None:
    async def served() -> dict[str, str]:
        async with Ledgers(Runtime(two)) as ledgers:
            found = {}
            for tenant in ("acme", "bolt", "anybody"):
                found[tenant] = (await ledgers.of(tenant)).queries.ledger
            assert set(ledgers.open) == {"0", "eu"}
            return found

    assert asyncio.run(served()) == {"acme": "eu", "bolt": "eu", "anybody": "0"}


def test_a_ledger_is_opened_when_first_asked_for(two: Settings) -> None:
    async def opened() -> list[list[str]]:
        async with Ledgers(Runtime(two)) as ledgers:
            told = [list(ledgers.open)]
            await asyncio.gather(*(ledgers.of(tenant) for tenant in ("acme", "bolt")))
            return [*told, list(ledgers.open)]

    assert asyncio.run(opened()) == [["0"], ["0", "eu"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "tenant 'acme' lives in ledger 'eu', which is not named"),
        ({"eu": ["bolt"]}, "tenant 'acme' has facts in ledger 'eu': assign it there, not to '0'"),
        (
            {"eu": ["acme", "bolt", "kept"]},
            "tenant 'kept' has facts in ledger '0': assign it there, not to 'eu'",
        ),
    ],
)
def test_an_assignment_away_from_the_facts_is_refused_and_changes_nothing(
    two: Settings, change: dict[str, list[str]], says: str
) -> None:
    record(two, "acme")
    record(two, "kept")
    with pytest.raises(BadAssignment) as refused:
        settle(assigned(two, **change))
    assert says in str(refused.value)
    for tenant in ("acme", "kept"):
        asyncio.run(at_home(Runtime(two), tenant))


def test_another_ledger_at_the_address_is_not_taken_for_the_one_that_was_there(two: Settings) -> None:
    """A wrong address, or a schema that was dropped and made anew: its tenants would find an empty shop."""
    record(two, "acme")
    settle(two)
    with connected(admin_dsn(two), "public") as conn:
        conn.execute("DROP SCHEMA ledger_eu CASCADE")
    migrate(two.of_ledger("eu"))
    with pytest.raises(BadAssignment, match="ledger 'eu' is not the one that it was, and would begin anew"):
        settle(two)
    assert "it knows nothing of it" in refusal(two, "acme")


def test_an_assignment_that_the_ledgers_were_not_told_of_serves_nobody(two: Settings) -> None:
    """Whoever starts an API with changed settings, and no `migrate`, is refused at the first request."""
    record(two, "acme")
    record(two, "kept")
    assert "lives in 'eu'" in refusal(assigned(two), "acme")
    assert "lives in 'eu'" in refusal(assigned(two, eu=["bolt"]), "acme")
    assert "it knows nothing of it" in refusal(assigned(two, eu=["kept"]), "kept")


def test_a_tenant_without_facts_may_be_assigned_anew(two: Settings) -> None:
    changed = assigned(two, eu=["acme", "cole"])
    settle(changed)
    assert asyncio.run(at_home(Runtime(changed), "cole")).settings.ledger == "eu"
    assert asyncio.run(at_home(Runtime(changed), "bolt")).settings.ledger == "0"
    assert "it knows nothing of it" in refusal(two, "bolt"), "also to a process with the settings of before"
    assert "lives in 'eu'" in refusal(two, "cole")


def test_facts_of_a_stranger_are_found(two: Settings) -> None:
    record(two, "acme")
    assert strays(two) == []
    record(two, "acme", ledger="0")
    record(two, "cole", ledger="eu")
    record(two, "_ledger", ledger="eu")
    assert strays(two) == [("acme", "0"), ("cole", "eu")]


def test_a_tenant_sees_its_own_home_and_no_others(two: Settings) -> None:
    with connected(two.role_dsn("app"), schema_of(two)) as conn:
        assert conn.execute("SELECT * FROM homes").fetchall() == []
        conn.execute("SELECT set_config('counterfoil.tenant', 'acme', false)")
        assert conn.execute("SELECT * FROM homes").fetchall() == [("acme", "eu")]
