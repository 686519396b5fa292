"""Revenue, from every paper that has lines: sums in Postgres, the lines themselves in ClickHouse.

Both engines answer the same questions in the same shape; amounts are exact, in millionths.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from pydantic import NaiveDatetime

from domain.capacity import AdjustmentRecorded
from domain.catalog import Document, Line
from domain.facts import Event, Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted
from domain.values import Value
from projections.rows import Add, Big, Engine, Projection, Put, Query, RowOp, Table

PAPERS: dict[type[Event], str] = {
    OrderPlaced: "order",
    GoodsReturned: "return",
    AdjustmentRecorded: "stock",
    BadDebtAdjusted: "debt",
}


class TotalsRow(Value):
    currency: str
    line_count: Big = 0
    orders: Big = 0
    returns: Big = 0
    net_micro: Big = 0


class MonthRow(Value):
    currency: str
    month: str
    line_count: Big = 0
    net_micro: Big = 0


class CountryRow(Value):
    currency: str
    country: str
    line_count: Big = 0
    net_micro: Big = 0


class CustomerRow(Value):
    currency: str
    customer: str
    line_count: Big = 0
    net_micro: Big = 0


class UnitsRow(Value):
    code: str
    net_units: int


class SaleLineRow(NamedTuple):
    """Plain, because there is one for every line ever sold; its values come from a fact that was checked."""

    position: int
    line: int
    kind: str
    document: str
    code: str
    title: str
    quantity: int
    unit_price_micro: int
    amount_micro: int
    currency: str
    charge: bool
    customer: str | None
    country: str
    placed_at: NaiveDatetime


LINE_SUMS = ("line_count", "net_micro")
TOTALS = Table("revenue", TotalsRow, ("currency",), sums=("line_count", "orders", "returns", "net_micro"))
BY_MONTH = Table("revenue_by_month", MonthRow, ("currency", "month"), sums=LINE_SUMS)
BY_COUNTRY = Table("revenue_by_country", CountryRow, ("currency", "country"), sums=LINE_SUMS)
BY_CUSTOMER = Table("revenue_by_customer", CustomerRow, ("currency", "customer"), sums=LINE_SUMS)
SALE_LINES = Table("sale_lines", SaleLineRow, ("position", "line"), engine=Engine.CLICKHOUSE)


def project(recorded: Recorded) -> list[RowOp]:
    event = recorded.event
    match event:
        case OrderPlaced() | GoodsReturned() | AdjustmentRecorded() | BadDebtAdjusted():
            return _sums(PAPERS[type(event)], event.document, event.lines)
        case _:
            return []


def project_lines(recorded: Recorded) -> list[RowOp]:
    event = recorded.event
    match event:
        case OrderPlaced() | GoodsReturned() | AdjustmentRecorded() | BadDebtAdjusted():
            return _rows(recorded.position, PAPERS[type(event)], event.document, event.lines)
        case _:
            return []


def _sums(kind: str, document: Document, lines: tuple[Line, ...]) -> list[RowOp]:
    net_micro = 0
    months: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    """Amounts by year and month."""
    for line in lines:
        amount_micro = line.amount_micro
        net_micro += amount_micro
        at = line.placed_at or document.placed_at
        months[at.year, at.month].append(amount_micro)
    currency = document.currency
    whole = {"line_count": len(lines), "net_micro": net_micro}
    ops: list[RowOp] = [
        Add(TOTALS, (currency,), {**whole, "orders": int(kind == "order"), "returns": int(kind == "return")}),
        Add(BY_COUNTRY, (currency, document.country), whole),
    ]
    if document.customer is not None:
        ops.append(Add(BY_CUSTOMER, (currency, document.customer), whole))
    for (year, month), amounts in months.items():
        moved = {"line_count": len(amounts), "net_micro": sum(amounts)}
        ops.append(Add(BY_MONTH, (currency, f"{year:04}-{month:02}"), moved))
    return ops


def _rows(position: int, kind: str, document: Document, lines: tuple[Line, ...]) -> list[RowOp]:
    return [
        Put(
            SALE_LINES,
            SaleLineRow(
                position,
                number,
                kind,
                document.number,
                line.code,
                line.title,
                line.quantity,
                line.unit_price_micro,
                line.amount_micro,
                document.currency,
                line.charge,
                document.customer,
                document.country,
                line.placed_at or document.placed_at,
            ),
        )
        for number, line in enumerate(lines)
    ]


PROJECTION = Projection("analytics", tuple(PAPERS), (TOTALS, BY_MONTH, BY_COUNTRY, BY_CUSTOMER), project)
SALES = Projection("sales", tuple(PAPERS), (SALE_LINES,), project_lines)

# ── the questions, once for each engine ───────────────────────────────────────────────────────────
# Sums in ClickHouse go by Decimal64: they become Decimal(38), where a sum of Int64 would wrap around without
# a word, and the embedded build has no Int128 arithmetic.

REVENUE: dict[Engine, Query] = {
    Engine.POSTGRES: Query(
        TotalsRow,
        (("analytics", TOTALS),),
        "SELECT * FROM {revenue} WHERE currency = %(currency)s",
    ),
    Engine.CLICKHOUSE: Query(
        TotalsRow,
        (("sales", SALE_LINES),),
        "SELECT any(s.currency) AS currency, count() AS line_count,"
        " uniqExactIf(position, kind = 'order') AS orders,"
        " uniqExactIf(position, kind = 'return') AS returns,"
        " sum(toDecimal64(amount_micro, 0)) AS net_micro"
        " FROM {sale_lines} s WHERE s.currency = %(currency)s HAVING count() > 0",
    ),
}
REVENUE_BY_MONTH: dict[Engine, Query] = {
    Engine.POSTGRES: Query(
        MonthRow,
        (("analytics", BY_MONTH),),
        "SELECT * FROM {revenue_by_month} WHERE currency = %(currency)s ORDER BY month",
    ),
    Engine.CLICKHOUSE: Query(
        MonthRow,
        (("sales", SALE_LINES),),
        "SELECT any(s.currency) AS currency, formatDateTime(placed_at, '%%Y-%%m') AS month,"
        " count() AS line_count, sum(toDecimal64(amount_micro, 0)) AS net_micro"
        " FROM {sale_lines} s WHERE s.currency = %(currency)s GROUP BY month ORDER BY month",
    ),
}
REVENUE_BY_COUNTRY: dict[Engine, Query] = {
    Engine.POSTGRES: Query(
        CountryRow,
        (("analytics", BY_COUNTRY),),
        "SELECT * FROM {revenue_by_country} WHERE currency = %(currency)s ORDER BY net_micro DESC, country",
    ),
    Engine.CLICKHOUSE: Query(
        CountryRow,
        (("sales", SALE_LINES),),
        "SELECT any(s.currency) AS currency, country, count() AS line_count,"
        " sum(toDecimal64(amount_micro, 0)) AS net_micro"
        " FROM {sale_lines} s WHERE s.currency = %(currency)s"
        " GROUP BY country ORDER BY net_micro DESC, country",
    ),
}
TOP_CUSTOMERS: dict[Engine, Query] = {
    Engine.POSTGRES: Query(
        CustomerRow,
        (("analytics", BY_CUSTOMER),),
        "SELECT * FROM {revenue_by_customer} WHERE currency = %(currency)s"
        " ORDER BY net_micro DESC, customer LIMIT %(limit)s",
    ),
    Engine.CLICKHOUSE: Query(
        CustomerRow,
        (("sales", SALE_LINES),),
        "SELECT any(s.currency) AS currency, assumeNotNull(s.customer) AS customer, count() AS line_count,"
        " sum(toDecimal64(amount_micro, 0)) AS net_micro"
        " FROM {sale_lines} s WHERE s.currency = %(currency)s AND isNotNull(s.customer)"
        " GROUP BY customer ORDER BY net_micro DESC, customer LIMIT %(limit)s",
    ),
}
# Of what moves places: neither charges nor debts do, and the pools of `capacity` know nothing of them.
NET_UNITS_IN_CLICKHOUSE = Query(
    UnitsRow,
    (("sales", SALE_LINES),),
    "SELECT code, sum(toInt64(quantity)) AS net_units FROM {sale_lines}"
    " WHERE code IN %(codes)s AND NOT charge AND kind != 'debt' GROUP BY code ORDER BY code",
)
