"""Which ledger a tenant belongs to: settings say it, and each ledger knows what they said last.

Facts do not follow a changed assignment. So `settle` looks where they are before it tells the ledgers, and a
ledger that was not told of a tenant serves it nothing: nobody begins a second life by a slip of the settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from commands.handling import Handler
from infra.connection import LogUnavailable
from infra.ledger import CONNECT_S_MAX, DATABASE_FAULTS, connect
from infra.migrate import LOCK, schema_of
from infra.queries import TENANT, Queries, StoreUnavailable
from infra.runtime import Runtime
from infra.settings import Role, Settings

HOME = "SELECT ledger FROM homes WHERE tenant = %s"
TENANTS = """
WITH RECURSIVE t(tenant) AS (
    (SELECT split_part(originator_id, '/', 1) FROM stored_events ORDER BY originator_id LIMIT 1)
  UNION ALL
    SELECT (SELECT split_part(e.originator_id, '/', 1) FROM stored_events e
             WHERE e.originator_id > t.tenant || '0' ORDER BY e.originator_id LIMIT 1)
      FROM t WHERE t.tenant IS NOT NULL
) SELECT tenant FROM t WHERE tenant IS NOT NULL
"""
"""Whoever has facts, by one index probe each: streams are tenant/stream, and 0 is what follows the /."""
WRONG_SHOWN = 10
KNOWN_MAX = 10_000
"""Tenants of which a process remembers that their ledger knows them."""


class TenantElsewhere(Exception):
    """A fault: settings assign this tenant to a ledger that does not know it as its own. Try again later."""


class BadAssignment(ValueError):
    """Facts are elsewhere than the settings say: a line for each tenant or ledger, and what to do."""


def tenants(conn: psycopg.Connection[Any]) -> Iterator[str]:
    """Everybody who has facts in the ledger that the connection stands in."""
    return (str(tenant) for (tenant,) in conn.execute(TENANTS))


def strays(settings: Settings) -> list[tuple[str, str]]:
    """Tenants with facts in a ledger that is not theirs, and which that is. Raises DATABASE_FAULTS."""
    found = []
    for name in settings.ledger_names if settings.ledgers else ():
        ledger = settings.of_ledger(name)
        with _connected(ledger, "worker") as conn:
            found += [(tenant, name) for tenant in tenants(conn) if not ledger.holds(tenant)]
    return found


def settle(settings: Settings) -> None:
    """Tell every ledger which tenants live where, as the settings have it. All ledgers have to be migrated.

    Raises BadAssignment where facts are elsewhere, where a ledger with tenants is no longer named, or where
    another ledger is at its address; then nothing has changed.
    """
    with ExitStack() as opened:
        ledgers = {
            name: opened.enter_context(_connected(settings.of_ledger(name), "owner"))
            for name in settings.ledger_names
        }
        ledgers[settings.ledger].execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        identities = {name: _identity(conn) for name, conn in ledgers.items()}
        wrong = [
            f"tenant {tenant!r} has facts in ledger {name!r}: assign it there,"
            f" not to {settings.ledger_of(tenant)!r}"
            for tenant, name in strays(settings)
        ]
        wrong += [
            f"tenant {tenant!r} lives in ledger {home!r}, which is not named: name it, with its tenants"
            for tenant, home in _told(ledgers.values(), "SELECT tenant, ledger FROM homes")
            if home not in settings.ledger_names
        ]
        wrong += [
            f"ledger {name!r} is not the one that it was, and would begin anew: mend its address"
            for name, identity in _told(ledgers.values(), "SELECT ledger, identity::text FROM ledgers")
            if identities.get(name, identity) != identity
        ]
        if wrong:
            more = [f"... and {len(wrong) - WRONG_SHOWN} more"] if len(wrong) > WRONG_SHOWN else []
            raise BadAssignment("\n".join(["COUNTERFOIL_LEDGERS:", *wrong[:WRONG_SHOWN], *more]))
        homes = {tenant: name for name, each in settings.ledgers.items() for tenant in each.tenants}
        for conn in ledgers.values():
            conn.execute("DELETE FROM homes")
            conn.execute(
                "INSERT INTO homes SELECT * FROM unnest(%s::text[], %s::text[])",
                (list(homes), list(homes.values())),
            )
            conn.execute("DELETE FROM ledgers")
            conn.execute(
                "INSERT INTO ledgers SELECT * FROM unnest(%s::text[], %s::uuid[])",
                (list(identities), list(identities.values())),
            )


def _connected(settings: Settings, role: Role) -> psycopg.Connection[Any]:
    options = f"-c search_path={schema_of(settings)}"
    return psycopg.connect(settings.role_dsn(role), connect_timeout=CONNECT_S_MAX, options=options)


def _identity(ledger: psycopg.Connection[Any]) -> str:
    row = ledger.execute("SELECT identity::text FROM head").fetchone()
    assert row is not None
    return str(row[0])


def _told(ledgers: Iterable[psycopg.Connection[Any]], query: LiteralString) -> list[tuple[str, str]]:
    """What they were told before."""
    return sorted({row for conn in ledgers for row in conn.execute(query)})


# ── serving ───────────────────────────────────────────────────────────────────────────────────────


async def require_home(conn: psycopg.AsyncConnection[Any], settings: Settings, tenant: str) -> None:
    """The ledger that the connection stands in knows the tenant as its own. Raises TenantElsewhere."""
    async with conn.transaction():
        await conn.execute(TENANT, (tenant,))
        row = await (await conn.execute(HOME, (tenant,))).fetchone()
    default = settings.ledger not in settings.ledgers
    if (row is None and not default) or (row is not None and row[0] != settings.ledger):
        known = "it knows nothing of it" if row is None else f"it lives in {row[0]!r}"
        raise TenantElsewhere(
            f"ledger {settings.ledger!r} is assigned {tenant!r}, and {known}:"
            " mend COUNTERFOIL_LEDGERS, then run `counterfoil migrate`"
        )


async def at_home(runtime: Runtime, tenant: str) -> Runtime:
    """The tenant's ledger, for whoever does not keep it open. Raises TenantElsewhere, LogUnavailable."""
    mine = runtime.of_tenant(tenant)
    try:
        async with await connect(mine.settings.role_dsn("app"), mine.schema) as conn:
            await require_home(conn, mine.settings, tenant)
    except DATABASE_FAULTS as lost:
        raise LogUnavailable(f"the log's database does not answer: {lost}") from lost
    return mine


@dataclass(frozen=True, slots=True)
class Served:
    """One ledger, open."""

    runtime: Runtime
    handler: Handler
    queries: Queries


class Ledgers:
    """An installation's ledgers, each opened when first asked for; an async context that closes them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.open: dict[str, Served] = {}
        self.opening = asyncio.Lock()
        self.closing = AsyncExitStack()
        self.known: set[str] = set()

    async def __aenter__(self) -> Ledgers:
        await self.named(self.runtime.settings.ledger)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.closing.aclose()

    async def named(self, name: str) -> Served:
        async with self.opening:
            if name not in self.open:
                runtime = self.runtime.of_ledger(name)
                queries = await self.closing.enter_async_context(runtime.queries())
                log = runtime.log()
                self.closing.callback(log.close)
                self.open[name] = Served(runtime, Handler(log, runtime.clock), queries)
            return self.open[name]

    async def of(self, tenant: str) -> Served:
        """The tenant's own. Raises TenantElsewhere, StoreUnavailable."""
        served = await self.named(self.runtime.settings.ledger_of(tenant))
        if tenant not in self.known:
            await served.queries.epoch()  # at once where the database is known to be away
            try:
                async with served.queries.pool.connection() as conn:
                    await require_home(conn, served.runtime.settings, tenant)
            except DATABASE_FAULTS as lost:
                raise StoreUnavailable("postgres") from lost
            if len(self.known) >= KNOWN_MAX:
                self.known.clear()
            self.known.add(tenant)
        return served

    async def every(self) -> list[Served]:
        """The default ledger first."""
        return [await self.named(name) for name in self.runtime.settings.ledger_names]
