"""Verification finds nothing in whole books, and whatever is wrong in spoilt ones, by its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from infra.audit import verify as module
from infra.audit.findings import AuditBusy, Finding, Verified
from infra.audit.reading import audit_lock
from infra.audit.verify import verify
from tests.infra.audit.shop import Shop


def audited(shop: Shop, tenant: str | None = None) -> Verified:
    return asyncio.run(verify(shop.runtime, tenant=tenant))


def found(shop: Shop, kind: str) -> list[Finding]:
    return [finding for finding in audited(shop).findings if finding.kind == kind]


def test_whole_books_are_found_whole(shop: Shop) -> None:
    verified = audited(shop)
    assert verified.findings == ()
    assert verified.ok
    assert verified.counts["facts"] == verified.head == len(shop.stored())
    assert set(verified.behind.values()) == {0}
    assert len(verified.sampled) == module.SAMPLES
    for table in ("orders_v1", "orders_v1_history", "pool_units_v1_moves", "holds_v1_history"):
        assert verified.rows[f"postgres.{table}"] > 0, table
    assert verified.rows["clickhouse.sale_lines_v1"] == 12 * 3 + 2 + 1
    assert json.loads(json.dumps(verified.as_json()))["ok"] is True


def test_windows_and_samples_may_fall_anywhere(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.audit.reading.PAGE_FACTS", 7)
    monkeypatch.setattr("infra.audit.reading.FETCH_ROWS", 3)
    verified = asyncio.run(verify(shop.runtime, samples=30))
    assert verified.findings == ()
    assert len(verified.sampled) == 30


def test_one_tenant_can_be_verified_alone(shop: Shop) -> None:
    shop.run("UPDATE orders_v1 SET country = 'Nowhere' WHERE tenant = 'other'")
    assert audited(shop, "acme").findings == ()
    assert {finding.kind for finding in audited(shop, "other").findings} == {"row-different"}


def test_what_was_not_taken_yet_is_counted_and_no_finding(shop: Shop) -> None:
    shop.order("late")
    verified = audited(shop)
    assert verified.findings == ()
    assert verified.behind["postgres.ordering"] == 1
    assert verified.behind["clickhouse.sales"] == 1


def test_a_parked_fact_is_told_and_its_rows_are_not_missed(shop: Shop) -> None:
    shop.poison("acme/order-1", name="ordering.order-placed")
    asyncio.run(shop.catch_up())
    verified = audited(shop)
    assert {(fact.projection, fact.stream) for fact in verified.parked} >= {("ordering", "order-1")}
    assert {finding.kind for finding in verified.findings} == {"unreadable", "no-key", "head"}


def test_a_system_in_motion_is_verified_at_one_instant(shop: Shop) -> None:
    async def both() -> list[Verified]:
        results = []
        async with shop.projecting("postgres") as rows, shop.projecting("clickhouse") as blocks:
            trading = asyncio.ensure_future(_trade(shop, lambda: shop.feed(rows, blocks)))
            while not trading.done():
                results.append(await verify(shop.runtime))
                await asyncio.sleep(0)
            await trading
        return results

    results = asyncio.run(both())
    assert [finding for verified in results for finding in verified.findings] == []
    assert len({verified.head for verified in results}) > 1


async def _trade(shop: Shop, feed: Callable[[], object]) -> None:
    for number in range(12):
        await asyncio.to_thread(shop.order, f"moving-{number}")
        await feed()  # type: ignore[misc]


def test_no_verification_while_a_rebuild_is_at_work(shop: Shop) -> None:
    async def at_once() -> None:
        async with audit_lock(shop.settings.role_dsn("worker"), shop.schema, alone=True):
            await verify(shop.runtime)

    with pytest.raises(AuditBusy, match="a rebuild is at work"):
        asyncio.run(at_once())


# ── negative controls: what is spoilt is found and named ──────────────────────────────────────────

ORDER = "(SELECT order_id FROM orders_v1 WHERE tenant = 'acme' ORDER BY position LIMIT 1)"
SPOILT_ROWS = {
    "a row edited by hand": (
        f"UPDATE orders_v1 SET country = 'Atlantis' WHERE order_id = {ORDER}",
        ("row-different", "postgres.orders_v1", "country is 'Atlantis', the log says 'United Kingdom'"),
    ),
    "a row deleted": (
        "DELETE FROM offers_v1 WHERE tenant = 'acme' AND offer = 'c2'",
        ("row-missing", "postgres.offers_v1", "offer=c2"),
    ),
    "a row nobody put": (
        "INSERT INTO offers_v1 SELECT tenant, 'ghost', title, delivery, pool FROM offers_v1 LIMIT 1",
        ("row-extra", "postgres.offers_v1", "offer=ghost"),
    ),
    "an addition made twice": (
        "UPDATE pool_units_v1 SET taken = taken + 3 WHERE tenant = 'acme' AND pool = 'c1'",
        ("row-different", "postgres.pool_units_v1", "pool=c1"),
    ),
    "an addition made twice, and its move": (
        (
            "UPDATE pool_units_v1_moves SET taken = taken * 2 WHERE from_position ="
            " (SELECT max(from_position) FROM pool_units_v1_moves WHERE taken > 0)"
        ),
        ("past-different", "postgres.pool_units_v1_moves", "the log says taken"),
    ),
    "a past edited": (
        f"UPDATE orders_v1_history SET units = units + 1 WHERE order_id = {ORDER}",
        ("row-different", "postgres.orders_v1_history", "units is"),
    ),
    "an end moved": (
        "UPDATE holds_v1_history SET to_position = to_position + 1 WHERE to_position IS NOT NULL",
        ("past-different", "postgres.holds_v1_history", "where the log says otherwise"),
    ),
    "an end forgotten": (
        "UPDATE holds_v1_history SET to_position = NULL",
        ("past-different", "postgres.holds_v1_history", "does not end at"),
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT_ROWS)
def test_a_spoilt_read_model_is_named(shop: Shop, spoilt: str) -> None:
    statement, (kind, where, what) = SPOILT_ROWS[spoilt]
    assert shop.run(statement) > 0
    findings = found(shop, kind)
    assert [finding for finding in findings if finding.where == where and what in finding.what], findings
    assert all(finding.do.startswith("counterfoil rebuild ") for finding in findings)


LAST_TAKEN = "(SELECT max(notification_id) FROM stored_events WHERE topic = 'capacity.places-taken')"
SPOILT_LOG = {
    "a fact deleted": (
        f"DELETE FROM stored_events WHERE notification_id = {LAST_TAKEN}",
        {"position-gap": "is missing from the log"},
    ),
    "the last fact deleted": (
        "DELETE FROM stored_events WHERE notification_id = (SELECT position FROM head)",
        {"position-gap": "is missing from the log"},
    ),
    "two versions swapped": (
        (
            "UPDATE stored_events SET originator_version = CASE originator_version"
            " WHEN 2 THEN 1003 WHEN 3 THEN 1002 END"
            " WHERE originator_id = 'acme/pool-c1' AND originator_version IN (2, 3);"
            "UPDATE stored_events SET originator_version = originator_version - 1000"
            " WHERE originator_version > 1000"
        ),
        {"version-order": "version 3 where version 2 follows"},
    ),
    "a byte that breaks the JSON": (
        (
            f"UPDATE stored_events SET state = set_byte(state, length(state) - 1, 0)"
            f" WHERE notification_id = {LAST_TAKEN}"
        ),
        {"unreadable": "capacity.places-taken"},
    ),
    "a byte that makes another quantity": (
        (
            "UPDATE stored_events SET state = set_byte(state,"
            " position('\"quantity\":'::bytea IN state) + 10, 57)"
            f" WHERE notification_id = {LAST_TAKEN}"
        ),
        {"row-different": "taken is", "past-different": "the log says taken 9"},
    ),
    "a stream renamed": (
        f"UPDATE stored_events SET originator_id = 'acme/pool-c0x' WHERE notification_id = {LAST_TAKEN}",
        {"wrong-stream": "belongs to pool-c", "version-order": "where version 1 follows"},
    ),
    "a name nobody knows": (
        f"UPDATE stored_events SET topic = 'capacity.places-taken-away' WHERE notification_id = {LAST_TAKEN}",
        {"unknown-name": "capacity.places-taken-away"},
    ),
    "a key deleted": (
        "DELETE FROM commands WHERE key = 'order-3' AND tenant = 'acme'",
        {"no-key": "no idempotency key covers this fact"},
    ),
    "a key that says another actor": (
        "UPDATE commands SET actor = 'eve' WHERE key = 'order-3' AND tenant = 'acme'",
        {"wrong-key": "of 'ana', key 'order-3'"},
    ),
    "a key that covers too much": (
        "UPDATE commands SET facts = facts + 1 WHERE key = 'order-3' AND tenant = 'acme'",
        {"key-overlap": "belong to an earlier key too"},
    ),
    "a time put back": (
        "UPDATE stored_events SET state = int8send(1) || substr(state, 9) WHERE notification_id = 20",
        {"time-order": "earlier than that of the fact before"},
    ),
    "a head left behind": (
        "UPDATE head SET position = position - 2",
        {"head": "2 facts stand after", "checkpoint-beyond-head": "after the log's end"},
    ),
    "a relay that forgets": (
        "UPDATE relay_head SET last_position = 1 WHERE topic LIKE '%capacity%'",
        {"relay": "relay_head is 1"},
    ),
    "a relay that runs ahead": (
        "UPDATE relay SET through = through + 5",
        {"relay": "the log ends at"},
    ),
    "a version nobody rebuilt": (
        (
            "ALTER TABLE offers_v1 RENAME TO offers_v2;"
            "ALTER TABLE offers_v1_history RENAME TO offers_v2_history;"
            "UPDATE projections SET version = 2 WHERE name = 'catalog';"
            "UPDATE checkpoints SET version = 2 WHERE name = 'catalog'"
        ),
        {"rebuild-unrecorded": "version 2 is shown"},
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT_LOG)
def test_a_spoilt_log_is_named(shop: Shop, spoilt: str) -> None:
    statement, expected = SPOILT_LOG[spoilt]
    shop.run(statement)
    findings = audited(shop).findings
    for kind, what in expected.items():
        assert any(each.kind == kind and what in each.what for each in findings), findings
    assert all(finding.where and finding.do for finding in findings)


COPY = "INSERT INTO sale_lines_v1 SELECT * REPLACE ({}) FROM sale_lines_v1 LIMIT 1"
SPOILT_BLOCKS = {
    "a row missing": (
        "ALTER TABLE sale_lines_v1 DELETE WHERE line = 1 AND document = '2'",
        ("row-missing", "line=1"),
    ),
    "a wrong row": (
        "ALTER TABLE sale_lines_v1 UPDATE amount_micro = 1 WHERE document = '3'",
        ("row-different", "amount_micro is 1"),
    ),
    "a line nobody sold": (COPY.format("77 AS line"), ("row-extra", "line=77")),
    "a row after the end": (COPY.format("900000 AS position"), ("row-extra", "position=900000")),
}


@pytest.mark.parametrize("spoilt", SPOILT_BLOCKS)
def test_a_spoilt_clickhouse_is_named(shop: Shop, spoilt: str) -> None:
    statement, (kind, what) = SPOILT_BLOCKS[spoilt]
    waiting = " SETTINGS mutations_sync = 2" if statement.startswith("ALTER") else ""
    assert shop.clickhouse is not None
    shop.clickhouse.command(statement + waiting)
    findings = found(shop, kind)
    assert findings
    assert all(finding.where == "clickhouse.sale_lines_v1" for finding in findings)
    assert any(what in finding.what for finding in findings), findings


def test_a_block_that_came_twice_is_no_difference(shop: Shop) -> None:
    assert shop.clickhouse is not None
    shop.clickhouse.command("INSERT INTO sale_lines_v1 SELECT * FROM kept_sale_lines_v1")
    assert audited(shop).findings == ()


def test_a_thousand_wrong_rows_are_counted_and_some_are_told(shop: Shop) -> None:
    shop.run(
        "INSERT INTO offers_v1 SELECT 'acme', 'g' || n, 't', 'goods', 'p' FROM generate_series(1, 1000) n"
    )
    verified = audited(shop)
    assert verified.findings_by_kind == {"row-extra": 1000}
    assert 0 < len(verified.findings) <= 20
