"""A rebuild makes the same tables from the log, never leaves readers without, and survives its death."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from domain.audit import ProjectionRebuilt
from infra.audit import rebuild as module
from infra.audit.build import Building
from infra.audit.findings import AuditBusy
from infra.audit.rebuild import Rebuilt, rebuild, rebuild_all
from infra.audit.verify import verify
from projections.ordering import ORDERS
from projections.registry import PROJECTIONS
from projections.rows import Engine
from tests.infra.audit.shop import Shop

STEPS = (
    *("cleaned", "made", "built", "locked", "caught up", "compared", "about to commit"),
    *("switched", "recorded", "dropped"),
)


def rebuilt(shop: Shop, name: str, **options: Any) -> Rebuilt:
    return asyncio.run(rebuild(shop.runtime, name, reason="a test", grace_s=0, **options))


def whole(shop: Shop) -> None:
    """Everything recorded is taken, and verification finds nothing."""
    asyncio.run(shop.catch_up())
    assert asyncio.run(verify(shop.runtime)).findings == ()


def version(shop: Shop, name: str) -> set[int]:
    rows = shop.conn.execute("SELECT version FROM projections WHERE name = %s", (name,))
    return {number for (number,) in rows}


def expected_tables(shop: Shop) -> set[str]:
    """Of the shown versions, and no other."""
    shown: dict[str, int] = dict(shop.conn.execute("SELECT name, version FROM projections").fetchall())
    found = set()
    for projection in PROJECTIONS:
        for table in projection.tables:
            base = f"{table.name}_v{shown.get(projection.name, 1)}"
            past = {f"{base}_moves" if table.sums else f"{base}_history"}
            found |= {base} | (past if table.engine is Engine.POSTGRES else set())
    return found


@pytest.mark.parametrize("name", [projection.name for projection in PROJECTIONS])
def test_a_rebuilt_projection_is_the_one_it_replaces(shop: Shop, name: str) -> None:
    outcome = rebuilt(shop, name)
    assert (outcome.switched, outcome.version, outcome.rows_differing) == (True, 2, 0)
    assert sum(each.count for each in outcome.past_differences) == 0
    assert version(shop, name) == {2}
    assert shop.tables() - {"kept_sale_lines_v1"} == expected_tables(shop)
    assert json.loads(json.dumps(outcome.as_json()))["ok"] is True
    whole(shop)
    shop.order("after the switch")
    whole(shop)


def test_a_rebuild_is_on_record_with_its_reason(shop: Shop) -> None:
    outcome = rebuilt(shop, "ordering")
    recorded = shop.stored()[-1].recorded()
    assert recorded.tenant == module.TENANT
    assert recorded.envelope.actor == "operator"
    assert recorded.event == ProjectionRebuilt(
        projection="ordering", version=2, rows=outcome.rows, rows_differing=0, reason="a test"
    )


def test_what_cannot_be_rebuilt_is_said_before_anything_is_done(shop: Shop) -> None:
    with pytest.raises(LookupError, match="there are catalog"):
        rebuilt(shop, "ordres")
    with pytest.raises(ValueError, match="say why"):
        asyncio.run(rebuild(shop.runtime, "ordering", reason=" "))

    async def twice() -> None:
        await asyncio.gather(
            rebuild(shop.runtime, "ordering", reason="one", grace_s=1),
            rebuild(shop.runtime, "catalog", reason="two", grace_s=1),
        )

    with pytest.raises(AuditBusy, match="another audit is at work"):
        asyncio.run(twice())


def test_rows_that_differ_stop_a_rebuild_unless_that_is_accepted(shop: Shop) -> None:
    shop.run("UPDATE orders_v1 SET country = 'Atlantis' WHERE tenant = 'acme' AND document = '2'")
    shop.run("DELETE FROM orders_v1 WHERE tenant = 'acme' AND document = '3'")
    before = shop.shown(ORDERS)
    outcome = rebuilt(shop, "ordering")
    assert (outcome.ok, outcome.rows_differing) == (False, 2)
    (orders,) = (each for each in outcome.differences if each.table == "orders")
    assert (orders.missing, orders.added, orders.changed) == (0, 1, 1)
    assert [each["old"]["country"] for each in orders.examples if each["old"]] == ["Atlantis"]
    assert shop.shown(ORDERS) == before
    assert shop.tables() - {"kept_sale_lines_v1"} == expected_tables(shop)

    accepted = rebuilt(shop, "ordering", accept_differences=True)
    assert (accepted.ok, accepted.rows_differing) == (True, 2)
    whole(shop)


def test_lost_and_wrong_rows_of_clickhouse_come_back(shop: Shop) -> None:
    assert shop.clickhouse is not None
    waiting = " SETTINGS mutations_sync = 2"
    shop.clickhouse.command(f"ALTER TABLE sale_lines_v1 DELETE WHERE document = '2'{waiting}")
    shop.clickhouse.command(f"ALTER TABLE sale_lines_v1 UPDATE quantity = 9 WHERE document = '1'{waiting}")
    outcome = rebuilt(shop, "sales", accept_differences=True)
    (lines,) = outcome.differences
    assert (lines.missing, lines.added, lines.changed) == (0, 6, 6)
    whole(shop)


def test_a_spoilt_past_is_mended_and_told(shop: Shop) -> None:
    shop.run("UPDATE offers_v1_history SET title = 'x' WHERE offer = 'c1'")
    shop.run("DELETE FROM offers_v1_history WHERE offer = 'c2'")
    outcome = rebuilt(shop, "catalog")
    assert outcome.switched
    assert [(each.added, each.changed) for each in outcome.past_differences] == [(2, 2)]
    whole(shop)


def test_several_are_rebuilt_side_by_side_and_one_that_dies_stops_no_other(shop: Shop) -> None:
    names = [projection.name for projection in PROJECTIONS]
    together = asyncio.run(rebuild_all(shop.runtime, names, reason="all of them", grace_s=0))
    assert [each.projection for each in together] == names
    assert all(each.ok and not each.rows_differing and not each.leftovers for each in together)
    assert {number for name in names for number in version(shop, name)} == {2}
    begun: list[str] = []

    def die(what: str, done: int, total: int) -> None:
        begun.append(what.split(":")[0])
        if what.startswith("capacity: building"):
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        asyncio.run(rebuild_all(shop.runtime, names, reason="again", grace_s=0, progress=die))
    assert set(begun) == set(names)
    assert [version(shop, name) for name in names] == [{2 if name == "capacity" else 3} for name in names]
    whole(shop)


def test_the_old_version_may_be_kept_until_the_next_rebuild(shop: Shop) -> None:
    assert rebuilt(shop, "ordering", keep=True).leftovers
    assert {"orders_v1", "orders_v2"} <= shop.tables()
    assert not rebuilt(shop, "ordering").leftovers
    assert {name for name in shop.tables() if name.startswith("orders_v")} == {
        "orders_v3",
        "orders_v3_history",
    }


def test_facts_that_only_the_old_version_could_not_take_are_parked_no_more(shop: Shop) -> None:
    fact = next(fact for fact in shop.stored() if fact.name == "ordering.order-placed")
    stream, position = fact.originator_id, fact.position
    shop.run(f"DELETE FROM orders_v1 WHERE position = {position}")
    shop.run(f"DELETE FROM orders_v1_history WHERE position = {position}")
    shop.run(
        "INSERT INTO parked SELECT engine, name,"
        f" '{stream}', {position}, topic, partition, 'once broken' FROM checkpoints"
        " WHERE name = 'ordering' LIMIT 1"
    )
    assert asyncio.run(verify(shop.runtime)).findings == ()
    assert rebuilt(shop, "ordering", accept_differences=True).parked == 0
    assert shop.parked() == []
    whole(shop)


def test_facts_that_cannot_be_taken_are_parked_again(shop: Shop) -> None:
    position = shop.poison("acme/order-x")
    asyncio.run(shop.catch_up())
    parked = [each for each in shop.parked() if each[0] == "ordering"]
    assert rebuilt(shop, "ordering").parked == 1
    assert [each for each in shop.parked() if each[0] == "ordering"] == parked
    assert parked[0][2] == position


# ── while everything moves ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["ordering", "capacity", "sales"])
def test_workers_go_on_throughout_and_readers_always_find_the_shown_version(shop: Shop, name: str) -> None:
    table = {"ordering": "orders", "capacity": "pool_units"}.get(name)
    looked: list[int] = []

    async def work(done: asyncio.Event) -> None:
        number = 0
        async with shop.projecting("postgres") as rows, shop.projecting("clickhouse") as blocks:
            while not done.is_set() or number < 4:
                number += 1
                await asyncio.to_thread(shop.order, f"live-{number}")
                await shop.feed(rows, blocks)

    async def read(done: asyncio.Event) -> None:
        while table is not None and not done.is_set():
            (shown,) = version(shop, name)
            looked.append(shown)
            assert shop.conn.execute(f"SELECT count(*) FROM {table}_v{shown}".encode()).fetchone() != (0,)
            await asyncio.sleep(0.01)

    async def all_at_once() -> Rebuilt:
        done = asyncio.Event()
        others = [asyncio.ensure_future(work(done)), asyncio.ensure_future(read(done))]
        try:
            return await rebuild(shop.runtime, name, reason="while it moves", grace_s=0.5)
        finally:
            done.set()
            await asyncio.gather(*others)

    outcome = asyncio.run(all_at_once())
    assert (outcome.switched, outcome.rows_differing) == (True, 0)
    assert table is None or {1, 2} <= set(looked)
    whole(shop)


def test_workers_that_take_turns_cannot_keep_a_rebuild_waiting(shop: Shop) -> None:
    over = threading.Event()

    def share(nth: int) -> None:
        with psycopg.connect(shop.settings.role_dsn("worker"), autocommit=True) as conn:
            conn.execute(f"SET search_path = {shop.schema}".encode())
            over.wait(nth * 0.05)
            while not over.is_set():
                with conn.transaction():
                    conn.execute("SELECT FROM projections FOR SHARE")
                    time.sleep(0.15)

    workers = [threading.Thread(target=share, args=(nth,)) for nth in range(3)]
    for worker in workers:
        worker.start()
    waited = dict[str, float]()
    try:
        rebuilt(shop, "catalog", step=lambda step: waited.update({step: time.monotonic()}))
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert waited["locked"] - waited["built"] < 5


def test_negative_control_a_version_that_takes_what_the_shown_one_has_not_differs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.order("nobody has taken this yet")
    assert rebuilt(shop, "ordering").rows_differing == 0
    whole(shop)
    shop.order("nor this")
    head = len(shop.stored())
    marks = Building.advance

    async def everything(self: Building, live: dict[str, dict[Any, int]]) -> None:
        await marks(self, {engine: dict.fromkeys(self.places, head) for engine in live})

    monkeypatch.setattr(Building, "advance", everything)
    outcome = rebuilt(shop, "ordering")
    assert (outcome.switched, outcome.rows_differing) == (False, 1)


# ── and when it dies ──────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """Not even an except clause sees it coming."""


def killed_at(step: str) -> Callable[[str], None]:
    def check(done: str) -> None:
        if done == step:
            raise Killed(step)

    return check


@pytest.mark.parametrize(
    ("name", "step"),
    [*(("capacity", step) for step in STEPS), ("sales", "built"), ("sales", "about to commit")],
)
def test_a_rebuild_that_dies_leaves_a_version_that_serves_and_the_next_cleans_up(
    shop: Shop, name: str, step: str
) -> None:
    with pytest.raises(Killed):
        rebuilt(shop, name, step=killed_at(step))
    switched = step in ("switched", "recorded", "dropped")
    assert version(shop, name) <= ({2} if switched else {1})
    shop.order("life goes on")
    asyncio.run(shop.catch_up())
    kinds = {finding.kind for finding in asyncio.run(verify(shop.runtime)).findings}
    assert kinds == ({"rebuild-unrecorded"} if step == "switched" else set())
    assert rebuilt(shop, name).switched
    assert shop.tables() - {"kept_sale_lines_v1"} == expected_tables(shop)
    assert asyncio.run(verify(shop.runtime)).findings == ()


def test_every_step_is_one_that_a_rebuild_can_die_at(shop: Shop) -> None:
    steps: list[str] = []
    rebuilt(shop, "catalog", step=steps.append)
    assert tuple(steps) == STEPS
