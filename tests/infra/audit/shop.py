"""A small shop whose books are whole, for audits to look at and for tests to spoil."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

from commands.capacity import AdjustStock, HoldPlaces, OpenPool, ReleaseHold
from commands.catalog import ListOffer
from commands.handling import Actor, Command, Handler
from commands.ordering import PlaceOrder, ReturnGoods
from domain.capacity import PlacesHeld
from domain.values import AdjustmentId, HoldId, OrderId, Permission, ReturnId, Sealed
from infra.analytics import ClickHouse
from infra.runtime import Runtime
from infra.settings import Settings
from streams.projector import Projector
from tests.spec import T0, document, line
from tests.streams.line import Line

SPACE = UUID("5b0b2f0e-3d0e-4c36-9a39-5f9b6f1f2a10")
KEPT = ("sale_lines_v1", "progress")


class Shop(Line):
    """The line of one ledger, and the audits' view of it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.clickhouse is not None
        self.runtime = Runtime(settings)
        self.ticks = 0
        super().__init__(settings, self.runtime.clickhouse())

    def close(self) -> None:
        assert self.clickhouse is not None
        self.clickhouse.close()
        super().close()

    def clock(self) -> Handler:
        self.ticks += 1
        return Handler(self.log, lambda: T0 + timedelta(seconds=self.ticks))

    def ask(self, command: Command, key: str, tenant: str = "acme") -> object:
        by = Actor(tenant, "ana", frozenset(Permission))
        return self.clock().handle(command, by=by, key=key).facts

    def order(self, number: str, tenant: str = "acme", lines: int = 3) -> UUID:
        order_id = uuid5(SPACE, f"{tenant}/{number}")
        goods = tuple(line(f"c{nth % 4}", 1 + nth, "2.55") for nth in range(lines))
        contact = Sealed(subject="person-1", box="c2VhbGVk")
        paper = document(number)
        command = PlaceOrder(
            order_id=OrderId(order_id), document=paper, lines=goods, settled=False, contact=contact
        )
        self.ask(command, f"order-{number}", tenant)
        return order_id

    def trade(self) -> None:
        """Two tenants; every kind of row there is, put, replaced, deleted and added to."""
        for tenant in ("acme", "other"):
            for code in ("c0", "c1", "c2", "c3"):
                self.ask(ListOffer(offer=code, title=f"thing {code}"), f"list-{code}", tenant)
            for number in range(6):
                self.order(f"{number}", tenant)
        self.ask(OpenPool(pool="hall", capacity=10), "hall")
        for nth in range(3):
            self.ask(HoldPlaces(pool="hall", quantity=2, ttl_s=600), f"hold-{nth}")
        self.ask(ReleaseHold(pool="hall", hold_id=self.holds()[0]), "release")
        back = ReturnGoods(
            return_id=ReturnId(uuid5(SPACE, "back")),
            document=document("C1"),
            lines=(line("c1", -2, "2.55"), line("POST", -1, "1.00", charge=True)),
        )
        self.ask(back, "back")
        lost = AdjustStock(
            adjustment_id=AdjustmentId(uuid5(SPACE, "lost")),
            document=document("9"),
            lines=(line("c2", -1, "0"),),
        )
        self.ask(lost, "lost")

    def holds(self) -> list[HoldId]:
        events = [fact.recorded().event for fact in self.stored() if fact.name == PlacesHeld.name]
        return [event.hold_id for event in events if isinstance(event, PlacesHeld)]

    async def catch_up(self) -> None:
        """Publish everything, and bring both engines up to it."""
        every = self.runs()
        for kind in ("postgres", "clickhouse"):
            async with self.projecting(kind) as projector:
                await projector.take(every)
        self.publish(every)

    async def feed(self, *projectors: Projector) -> None:
        """The same, for projectors that go on."""
        every = self.runs(10)
        for projector in projectors:
            await projector.take(every)
        self.publish(every)

    def run(self, statement: str) -> int:
        """As the database's administrator, whom no wall stops; how many rows it changed."""
        return self.conn.execute(statement.encode()).rowcount

    def tables(self) -> set[str]:
        """Of all read models, in both engines."""
        assert self.clickhouse is not None
        rows = self.conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (self.schema,))
        found = {name for (name,) in rows}
        _, there = self.clickhouse.query("SELECT name FROM system.tables WHERE database = currentDatabase()")
        return {name for name in found | {row[0] for row in there} if "_v" in name}


def keep(clickhouse: ClickHouse) -> None:
    for table in KEPT:
        clickhouse.command(f"CREATE TABLE kept_{table} AS {table}")
        clickhouse.command(f"INSERT INTO kept_{table} SELECT * FROM {table}")


def put_back(clickhouse: ClickHouse) -> None:
    """ClickHouse as it was when it was kept: it is not copied with the database."""
    _, rows = clickhouse.query("SELECT name FROM system.tables WHERE database = currentDatabase()")
    for (name,) in rows:
        if name.startswith("sale_lines_v") and name != "sale_lines_v1":
            clickhouse.command(f"DROP TABLE {name}")
    clickhouse.define()
    for table in KEPT:
        clickhouse.command(f"TRUNCATE TABLE {table}")
        clickhouse.command(f"INSERT INTO {table} SELECT * FROM kept_{table}")
