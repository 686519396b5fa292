"""What has to hold after anything: nothing acknowledged is lost, nothing is done twice, all stores agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from api.retail.figures import Figures
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted, PaymentRecorded
from infra.analytics import ClickHouse
from infra.mapper import StoredFact
from infra.readmodel import past, physical
from projections.fold import Fold, Key, Row
from projections.registry import PROJECTIONS
from projections.rows import Engine, Kind, Table
from tests.e2e.chaos.loader import CURRENCY
from tests.e2e.chaos.system import System

PUBLISHED = Path(__file__).parents[2] / "data" / "retail_online_uci" / "published.json"
PAGE = 5_000


def facts(conn: psycopg.Connection[Any]) -> Iterator[Recorded]:
    after = 0
    while True:
        rows = conn.execute(
            "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
            " WHERE notification_id > %s ORDER BY notification_id LIMIT %s",
            (after, PAGE),
            binary=True,
        ).fetchall()
        if not rows:
            return
        for row in rows:
            yield StoredFact(*row).recorded()
        after = rows[-1][0]


def judge(made: System, published: str | None = "december") -> dict[str, Any]:  # noqa: C901  one invariant after the other
    """Every invariant at once; returns what was found, for the report."""
    with made.database() as conn:
        fold, figures = Fold(), Figures(CURRENCY)
        versions, paid, papers, numbers = Counter[str](), Counter[Any](), set[Any](), Counter[str]()
        position = postings_micro = 0
        for recorded in facts(conn):
            position += 1
            assert recorded.position == position, f"a gap in the log before {recorded.position}"
            stream = f"{recorded.tenant}/{recorded.stream}"
            versions[stream] += 1
            assert recorded.version == versions[stream], f"{stream} has a gap before {recorded.version}"
            for projection in PROJECTIONS:
                if recorded.event.name in projection.names:
                    fold.add(recorded, projection.project(recorded))
            figures.take(recorded)
            match recorded.event:
                case OrderPlaced() as order:
                    papers.add(order.order_id)
                    numbers[f"order {order.document.number}"] += 1
                case GoodsReturned() as back:
                    papers.add(back.return_id)
                    numbers[f"return {back.document.number}"] += 1
                case PaymentRecorded() as payment:
                    paid[payment.paper] += 1
                    postings_micro += sum(posting.amount_micro for posting in payment.postings)
                case BadDebtAdjusted() as debt:
                    numbers[f"debt {debt.document.number}"] += 1
                    postings_micro += sum(posting.amount_micro for posting in debt.postings)

        row = conn.execute("SELECT position FROM head").fetchone()
        assert row == (position,), f"head says {row}, the log has {position}"
        assert all(count == 1 for count in numbers.values()), "a paper is recorded twice"
        assert set(paid) == papers, f"{len(papers - set(paid))} papers have no payment"
        assert all(count == 1 for count in paid.values()), "a payment is recorded twice"
        assert postings_micro == 0, "postings do not sum to zero"

        acknowledged = sum(_acknowledged(notes, conn) for notes in (made.acknowledged, made.called))
        parked = conn.execute("SELECT engine, name, stream, reason FROM parked LIMIT 5").fetchall()
        assert not parked, parked
        for projection in PROJECTIONS:
            for table in projection.tables_in(Engine.POSTGRES):
                agree(table, fold.rows(table), shown_in_postgres(conn, table))
                agree(table, fold.rows(table), told_by_the_past(conn, table))
    clickhouse = made.clickhouse()
    for projection in PROJECTIONS:
        for table in projection.tables_in(Engine.CLICKHOUSE):
            agree(table, fold.rows(table), shown_in_clickhouse(clickhouse, table))
    found = figures.as_json()
    for name, value in _published(published).items() if published else ():
        assert found[name] == value, f"{name}: {found[name]}, published {value}"
    return {
        "facts": position,
        "acknowledged": acknowledged,
        "lines": found["lines"],
        "net_revenue": found["net_revenue"],
    }


def _published(part: str) -> dict[str, Any]:
    stated = json.loads(PUBLISHED.read_text())
    names = ("lines", "orders", "returns", "net_revenue")
    if part == "december":
        return {name: stated["december_2010"]["values"][name] for name in names}
    return {name: stated["figures"][name]["value"] for name in names}


def _acknowledged(notes: Path, conn: psycopg.Connection[Any]) -> int:
    """Every answer that was given stands in the log as it was given. A torn last line was never given."""
    if not notes.exists():
        return 0
    given = [line.split("\t") for line in notes.read_text().splitlines() if line.count("\t") == 2]
    held = {
        (tenant, key): first + count - 1
        for tenant, key, first, count in conn.execute(
            "SELECT tenant, key, first_position, facts FROM commands WHERE actor = 'operator'"
        )
    }
    for tenant, key, position in given:
        found = held.get((tenant, key))
        assert found == int(position), f"{tenant} {key}: acknowledged at {position}, found at {found}"
    return len({(tenant, key) for tenant, key, _ in given})


# ── tables as they are ────────────────────────────────────────────────────────────────────────────


def agree(table: Table, expected: dict[Key, Row], found: dict[Key, Row]) -> None:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [key for key in expected.keys() & found.keys() if expected[key] != found[key]]
    told = (
        f"{table.name}: {len(missing)} rows missing, {len(extra)} too many, {len(other)} different;"
        f" e.g. {[*missing, *extra][:2]} {[(expected[key], found[key]) for key in other[:2]]}"
    )
    assert not missing, told
    assert not extra, told
    assert not other, told


def keyed(table: Table, rows: list[tuple[Any, ...]]) -> dict[Key, Row]:
    names = [column.name for column in table.columns]
    at = [names.index(name) for name in table.whole_key]
    kinds = [column.kind for column in table.columns]
    whole = [tuple(map(_value, kinds, row)) for row in rows]
    keyed = {tuple(row[n] for n in at): row for row in whole}
    assert len(keyed) == len(rows), f"{table.name} has a key twice"
    return keyed


def _value(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    if kind in ("int", "big"):
        return int(value)
    if kind == "instant":
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    if kind == "local" and isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return value


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def shown_in_postgres(conn: psycopg.Connection[Any], table: Table, version: int = 1) -> dict[Key, Row]:
    query = f"SELECT {_columns(table)} FROM {physical(table, version)}"
    return keyed(table, conn.execute(query.encode()).fetchall())


def told_by_the_past(
    conn: psycopg.Connection[Any], table: Table, as_of: int = 2**62, version: int = 1
) -> dict[Key, Row]:
    """The table at a position, from its history or its moves."""
    if table.sums:
        parts = [
            f'sum("{column.name}")' if column.name in table.sums else f'"{column.name}"'
            for column in table.columns
        ]
        keys = ", ".join(f'"{name}"' for name in table.whole_key)
        query = (
            f"SELECT {', '.join(parts)} FROM {past(table, version)} WHERE from_position <= %s GROUP BY {keys}"
        )
        return keyed(table, conn.execute(query.encode(), (as_of,)).fetchall())
    query = (
        f"SELECT {_columns(table)} FROM {past(table, version)}"
        " WHERE from_position <= %s AND (to_position IS NULL OR to_position > %s)"
    )
    return keyed(table, conn.execute(query.encode(), (as_of, as_of)).fetchall())


def shown_in_clickhouse(clickhouse: ClickHouse, table: Table, version: int = 1) -> dict[Key, Row]:
    columns = ", ".join(column.name for column in table.columns)
    _, rows = clickhouse.query(f"SELECT {columns} FROM {physical(table, version)} FINAL")
    return keyed(table, rows)
