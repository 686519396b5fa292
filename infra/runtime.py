"""The composition root: the only place that knows every concrete thing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from uuid import uuid4

import uvloop

from commands.handling import Actor, Handler
from domain.values import Permission
from infra.analytics import ClickHouse
from infra.eventstore import PostgresLog
from infra.ledger import Ledger
from infra.limits import Limit, Shared
from infra.migrate import schema_of
from infra.queries import Queries
from infra.sealing import Sealer
from infra.settings import BadSetting, Role, Settings

GARBAGE_OBJECTS = 1_000_000
"""Made and not freed before cycles are looked for: more than a batch of facts is."""


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    """32 hex digits that nobody else has, for whatever has no name yet."""
    return uuid4().hex


@dataclass(frozen=True)
class Runtime:
    """Everything a role needs of one ledger, made when first asked for."""

    settings: Settings
    clock: Callable[[], datetime] = field(default=now)

    def of_ledger(self, name: str) -> Runtime:
        """The same installation's, of another ledger. Raises BadSetting."""
        return replace(self, settings=self.settings.of_ledger(name))

    def of_tenant(self, tenant: str) -> Runtime:
        """The ledger that the settings assign the tenant to."""
        return self.of_ledger(self.settings.ledger_of(tenant))

    @property
    def schema(self) -> str:
        return schema_of(self.settings)

    @property
    def kafka(self) -> str:
        if self.settings.kafka is None:
            raise BadSetting("COUNTERFOIL_KAFKA is not set: give host:port, or use `counterfoil up`")
        return self.settings.kafka

    @cached_property
    def sealer(self) -> Sealer:
        return Sealer(self.settings.sealing_key())

    @cached_property
    def shared_counts(self) -> Shared | None:
        """Where all processes count together. Raises BadSetting."""
        return Shared(self.settings.redis) if self.settings.redis else None

    @contextlib.asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        """While requests are counted."""
        if self.shared_counts is None:
            yield
            return
        await self.shared_counts.open()
        try:
            yield
        finally:
            await self.shared_counts.close()

    def limit(self, name: str, amount: int) -> Limit | None:
        """So many a minute; none for 0. Raises BadSetting."""
        return Limit(name, amount, self.shared_counts) if amount else None

    def log(self, role: Role = "app") -> PostgresLog:
        return PostgresLog(self.settings.role_dsn(role), self.schema, self.settings.sealing_key())

    def handler(self, role: Role = "app") -> Handler:
        return Handler(self.log(role), self.clock)

    def ledger(self) -> Ledger:
        """A connection of its own, in the worker's role."""
        return Ledger(self.settings.role_dsn("worker"), self.schema)

    def clickhouse(self) -> ClickHouse:
        if self.settings.clickhouse is None:
            raise BadSetting("COUNTERFOIL_CLICKHOUSE is not set: give an http URL, or use `counterfoil up`")
        return ClickHouse(self.settings.clickhouse, self.schema)

    def queries(self) -> Queries:
        """An async context; answers in the app's role."""
        settings = self.settings
        return Queries(
            settings.role_dsn("app"), self.schema, settings.ledger, self.clickhouse, settings.kafka
        )


def operator(tenant: str, name: str = "operator") -> Actor:
    """Whoever holds the installation's own secret may do everything, for any tenant."""
    return Actor(tenant, name, frozenset(Permission))


def collect_less_garbage() -> None:
    """Facts and rows hold no cycles, and are freed without it: by default a third of a worker's time is spent
    on looking for some among them. Call it when what stays is there."""
    gc.set_threshold(GARBAGE_OBJECTS)
    gc.freeze()


def run_role(name: str, main: Callable[[Runtime], Awaitable[None]]) -> None:
    """Run one role of the system as this process, until SIGTERM or SIGINT: for the ledger that the first
    argument names, the default one without."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s")

    collect_less_garbage()
    logging.getLogger("kafka").setLevel(logging.WARNING)  # it tells of every attempt, nine a second

    async def until_told() -> None:
        settings = Settings()
        runtime = Runtime(settings.of_ledger(sys.argv[1] if len(sys.argv) > 1 else settings.ledger))
        task = asyncio.ensure_future(main(runtime))
        loop = asyncio.get_running_loop()
        for told in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(told, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    uvloop.run(until_told())
