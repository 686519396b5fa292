"""A paper as it comes over HTTP: an order, a return, an adjustment. Its id is the one an import gives it."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from commands.handling import FACTS_MAX
from domain.catalog import QUANTITY_MAX, Document, Line
from domain.values import Code, Currency, Money, Text, micro_of

NAME_CHARS_MAX = 200
"""Of a customer and a country: they are keys of read models, and an index entry has 2,704 bytes."""
PRICE_PATTERN = r"^-?[0-9]{1,12}(\.[0-9]{1,6})?$"
LOCAL_PATTERN = r"^(19|2[012])[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]$"


def _local(text: Any) -> datetime:
    if not isinstance(text, str):
        raise ValueError("write it as 2010-12-01T08:26:00")
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007  local to the shop, on purpose
    except ValueError:
        raise ValueError("write a time that exists as 2010-12-01T08:26:00, without a zone") from None
    if not 1900 <= moment.year < 2300:
        raise ValueError("a year from 1900 to 2299")
    return moment


LocalTime = Annotated[
    datetime,
    BeforeValidator(_local),
    WithJsonSchema({"type": "string", "pattern": LOCAL_PATTERN, "examples": ["2010-12-01T08:26:00"]}),
]
"""Business time, local to the shop, without a zone."""
Price = Annotated[
    str,
    Field(pattern=PRICE_PATTERN, description="Exact decimal text, six decimals at most.", examples=["2.55"]),
]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"^[^\x00]*$")]


class Body(BaseModel):
    """A request's body: closed, and strict, so that 3.0 and "3" are not taken for 3."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LineBody(Body):
    code: Code = Field(description="Of the offer, and of its pool.")
    title: Text
    quantity: Annotated[int, Field(ge=-QUANTITY_MAX, le=QUANTITY_MAX)]
    unit_price: Price
    charge: bool = Field(default=False, description="Postage, fees and the like: no pool moves.")

    def line(self) -> Line:
        return Line(
            code=self.code,
            title=self.title,
            quantity=self.quantity,
            unit_price_micro=micro_of(self.unit_price),
            charge=self.charge,
        )


class PaperBody(Body):
    document: Code | None = Field(
        default=None,
        description="The paper's number: it stands for this paper for ever, and its id follows from it."
        " Left out, it follows from the idempotency key.",
    )
    customer: Name | None = None
    country: Name
    currency: Currency
    placed_at: LocalTime
    lines: Annotated[list[LineBody], Field(min_length=1, max_length=FACTS_MAX)]

    def number(self, key: str) -> str:
        if self.document is not None:
            return self.document
        return key if _is_code(key) else hashlib.sha256(key.encode()).hexdigest()[:32]

    def written_on(self, number: str, contact_box: str = "") -> Document:
        content = f"{number}\n{self.model_dump_json(exclude={'document', 'contact'})}\n{contact_box}"
        return Document(
            number=number,
            digest=hashlib.sha256(content.encode()).hexdigest()[:32],
            customer=self.customer,
            country=self.country,
            currency=self.currency,
            placed_at=self.placed_at,
        )

    def all_lines(self) -> tuple[Line, ...]:
        return tuple(line.line() for line in self.lines)


def _is_code(text: str) -> bool:
    return 0 < len(text) <= 64 and "/" not in text


class MoneyView(BaseModel):
    minor: int = Field(description="In the currency's minor unit: 1530 GBP is 15.30.")
    currency: str

    @classmethod
    def of(cls, money: Money) -> MoneyView:
        return cls(minor=money.minor, currency=money.currency)


class PaperReceipt(BaseModel):
    id: UUID
    document: str
    exact: str = Field(description="The sum of the lines as decimal text, nothing rounded.")
    version: int = Field(description="Of the paper's stream.")
    position: str = Field(description="For `Counterfoil-At-Least`.")


PAPER_EXAMPLE: dict[str, Any] = {
    "document": "536365",
    "customer": "17850",
    "country": "United Kingdom",
    "currency": "GBP",
    "placed_at": "2010-12-01T08:26:00",
    "lines": [
        {
            "code": "85123A",
            "title": "WHITE HANGING HEART T-LIGHT HOLDER",
            "quantity": 6,
            "unit_price": "2.55",
        },
        {"code": "POST", "title": "POSTAGE", "quantity": 1, "unit_price": "4.95", "charge": True},
    ],
}
RECEIPT_EXAMPLE: dict[str, Any] = {
    "id": "3b7a0c52-5b8f-5a9b-9a53-0f6b9f1c0d7e",
    "document": "536365",
    "exact": "20.250",
    "version": 1,
    "position": "0.1:8123",
}
