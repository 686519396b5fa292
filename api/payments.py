"""Payments over HTTP: write a debt off, see the balance of every account."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, Field

from api.dependencies import ALLOWED, AskedOnce, Fresh, answered, commanded
from api.papers import PAPER_EXAMPLE, RECEIPT_EXAMPLE, PaperBody, PaperReceipt
from api.retail.importer import Paper, paper_id
from commands.payments import AdjustBadDebt
from domain.catalog import AmountTooLarge
from domain.payments import BadDebtAdjusted, PaymentExists, payment_stream
from domain.values import PaymentId, decimal_text
from projections.payments import BALANCE_LIST

commands = APIRouter(tags=["payments"], dependencies=ALLOWED)
queries = APIRouter(tags=["payments"], dependencies=ALLOWED)

DEBT_BODY: dict[str, Any] = {
    **PAPER_EXAMPLE,
    "document": "A563186",
    "customer": None,
    "lines": [
        {
            "code": "B",
            "title": "Adjust bad debt",
            "quantity": 1,
            "unit_price": "-11062.06",
            "charge": True,
        }
    ],
}


class BalanceView(BaseModel):
    currency: str
    account: str
    amount: str = Field(description="Decimal text, exact; above zero: debit, below: credit.")


class Balances(BaseModel):
    items: list[BalanceView]


@commands.post(
    "/bad-debts",
    status_code=201,
    responses=commanded(
        {**RECEIPT_EXAMPLE, "document": "A563186", "exact": "-11062.060"},
        PaymentExists,
        AmountTooLarge,
        again=PaperReceipt,
    ),
)
async def adjust_bad_debt(
    body: Annotated[PaperBody, Body(examples=[DEBT_BODY])], asked: AskedOnce
) -> PaperReceipt:
    """Record a paper that writes a debt off, or back on."""
    number = body.number(asked.key)
    payment_id = PaymentId(paper_id(asked.by.tenant, number, Paper.DEBT))
    command = AdjustBadDebt(payment_id=payment_id, document=body.written_on(number), lines=body.all_lines())
    fact, position = await asked.paper(command, payment_stream(payment_id))
    assert isinstance(fact.event, BadDebtAdjusted)
    return PaperReceipt(
        id=payment_id,
        document=fact.event.document.number,
        exact=decimal_text(fact.event.exact_micro),
        version=fact.version,
        position=position,
    )


@queries.get(
    "/balances",
    response_model=Balances,
    responses=answered({"items": [{"currency": "GBP", "account": "cash", "amount": "746723.610"}]}),
)
async def balances(fresh: Fresh) -> Response:
    """The balance of every account; those of one currency sum to zero."""
    told = await fresh.queries.run(BALANCE_LIST, fresh.tenant, **fresh.how())
    items = [
        BalanceView(currency=row.currency, account=row.account, amount=decimal_text(row.amount_micro))
        for row in told.rows[0]
    ]
    return fresh.answer(told, Balances(items=items))
