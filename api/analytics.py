"""Reports over HTTP: the same question to either engine, the same figures from both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from api.dependencies import ALLOWED, LIMIT_MAX, Fresh, answered
from api.retail.figures import TOP_CUSTOMERS as TOP_CUSTOMERS_SHOWN
from api.retail.figures import UNIT_CODES
from domain.values import Code, Currency, decimal_text
from infra.queries import Told
from projections import rows
from projections.analytics import (
    NET_UNITS_IN_CLICKHOUSE,
    REVENUE,
    REVENUE_BY_COUNTRY,
    REVENUE_BY_MONTH,
    TOP_CUSTOMERS,
)
from projections.capacity import NET_UNITS
from projections.rows import Engine

queries = APIRouter(tags=["reports"], dependencies=ALLOWED)

UNIT_CODES_MAX = 50
By = Literal["total", "month", "country", "customer"]
QUERIES: dict[By, dict[Engine, rows.Query]] = {
    "total": REVENUE,
    "month": REVENUE_BY_MONTH,
    "country": REVENUE_BY_COUNTRY,
    "customer": TOP_CUSTOMERS,
}
UNITS = {Engine.POSTGRES: NET_UNITS, Engine.CLICKHOUSE: NET_UNITS_IN_CLICKHOUSE}

InEngine = Annotated[Engine, Query(description="Which read model answers.")]
InCurrency = Annotated[Currency, Query(description="Papers in another one are passed over.")]


class RevenueItem(BaseModel):
    name: str = Field(description="The month, the country or the customer; the currency for the total.")
    lines: int
    net_revenue: str = Field(description="Decimal text, exact.")


class Revenue(BaseModel):
    by: str
    currency: str
    engine: str
    items: list[RevenueItem]


class RetailReport(BaseModel):
    lines: int
    orders: int
    returns: int
    net_revenue: str = Field(description="All amounts are exact decimal text.")
    by_month: dict[str, str] = Field(description="Months of business time, ascending.")
    by_country: dict[str, str] = Field(description="Highest first.")
    top_customers: dict[str, str] = Field(description="Highest first.")
    net_units: dict[str, int]


@queries.get(
    "/reports/revenue",
    response_model=Revenue,
    responses=answered(
        {
            "by": "month",
            "currency": "GBP",
            "engine": "clickhouse",
            "items": [{"name": "2010-12", "lines": 42481, "net_revenue": "748957.020"}],
        }
    ),
)
async def revenue(
    fresh: Fresh,
    by: Annotated[By, Query()] = "month",
    engine: InEngine = Engine.POSTGRES,
    currency: InCurrency = "GBP",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Of customers.")] = TOP_CUSTOMERS_SHOWN,
) -> Response:
    """Revenue by month, by country, of the best customers, or in all."""
    told = await fresh.queries.run(
        QUERIES[by][engine], fresh.tenant, {"currency": currency, "limit": limit}, **fresh.how()
    )
    name = "currency" if by == "total" else by
    items = [
        RevenueItem(name=getattr(row, name), lines=row.line_count, net_revenue=decimal_text(row.net_micro))
        for row in told.rows[0]
    ]
    return fresh.answer(told, Revenue(by=by, currency=currency, engine=engine, items=items))


@queries.get(
    "/reports/retail",
    response_model=RetailReport,
    responses=answered(
        {
            "lines": 541909,
            "orders": 20725,
            "returns": 3836,
            "net_revenue": "9747747.934",
            "by_month": {"2010-12": "748957.020"},
            "by_country": {"United Kingdom": "8187806.364"},
            "top_customers": {"14646": "279489.020"},
            "net_units": {"84077": 53847},
        }
    ),
)
async def retail(
    fresh: Fresh,
    engine: InEngine = Engine.POSTGRES,
    currency: InCurrency = "GBP",
    units: Annotated[
        list[Code], Query(max_length=UNIT_CODES_MAX, description="Codes whose net units are told.")
    ] = list(UNIT_CODES),  # noqa: B006  never changed
) -> Response:
    """A shop's whole report, all of it from one state of the read model."""
    told = await fresh.queries.run_all(
        [*(each[engine] for each in QUERIES.values()), UNITS[engine]],
        fresh.tenant,
        {"currency": currency, "limit": TOP_CUSTOMERS_SHOWN, "codes": units},
        **fresh.how(),
    )
    return fresh.answer(told, _report(told, units))


def _report(told: Told, codes: list[str]) -> RetailReport:
    totals, months, countries, customers, units = told.rows
    total = totals[0] if totals else None
    sold = {row.code: row.net_units for row in units}
    return RetailReport(
        lines=total.line_count if total else 0,
        orders=total.orders if total else 0,
        returns=total.returns if total else 0,
        net_revenue=decimal_text(total.net_micro if total else 0),
        by_month=_amounts(months, "month"),
        by_country=_amounts(countries, "country"),
        top_customers=_amounts(customers, "customer"),
        net_units={code: sold.get(code, 0) for code in codes},
    )


def _amounts(found: list[Any], name: str) -> dict[str, str]:
    return {getattr(row, name): decimal_text(row.net_micro) for row in found}
