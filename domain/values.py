"""Value objects every context shares: money, exact amounts, ids, permissions, sealed fields."""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from typing import Annotated, NewType, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

OrderId = NewType("OrderId", UUID)
ReturnId = NewType("ReturnId", UUID)
AdjustmentId = NewType("AdjustmentId", UUID)
PaymentId = NewType("PaymentId", UUID)
HoldId = NewType("HoldId", UUID)

Code = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f/]+$")]
"""A code as its owner writes it, letter case and spaces kept; it becomes part of a stream's name."""
Text = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]

MICRO_PER_UNIT = 1_000_000
MICRO_DIGITS = 6
MICRO = Decimal("0.000001")
MICRO_MAX = 2**62 // MICRO_PER_UNIT * MICRO_PER_UNIT
"""Fits a signed 64-bit column with room for one sign and one addition; no rounding leads past whole units."""
Micro = Annotated[int, Field(ge=-MICRO_MAX, le=MICRO_MAX)]
"""An exact amount in millionths of the currency's unit: 2.55 GBP is 2_550_000."""

EXACT = Context(prec=40, traps=[InvalidOperation, Inexact])
"""Refuses to lose a digit: the default context rounds to 28 without a word."""

# ISO 4217 (list of 2026-01-01): every code not named here has two digits.
_MINOR_DIGITS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_DIGITS = {code: digits for digits, codes in _MINOR_DIGITS.items() for code in codes.split()}


class Permission(StrEnum):
    """What an actor may be allowed to do; checked by `commands.handling`, whatever door was used."""

    OFFER_LIST = "offer.list"
    POOL_OPEN = "pool.open"
    PLACES_HOLD = "places.hold"
    STOCK_ADJUST = "stock.adjust"
    ORDER_PLACE = "order.place"
    GOODS_RETURN = "goods.return"
    PAYMENT_RECORD = "payment.record"
    DEBT_ADJUST = "debt.adjust"
    AUDIT = "audit"


class Value(BaseModel):
    """Immutable, strict and closed: an unknown field or a wrong type is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Money(Value):
    """An amount in the currency's minor unit: 1250 EUR is twelve euros fifty."""

    minor: int
    currency: Currency

    def plus(self, other: Money) -> Self:
        """Add; a different currency is a bug of the caller, not a refusal."""
        if self.currency != other.currency:
            raise ValueError(f"cannot combine {self.currency} with {other.currency}")
        return self.model_copy(update={"minor": self.minor + other.minor})

    def allocate(self, weights: list[int]) -> list[Money]:
        """Split by weights without losing a unit; the earliest parts take what does not divide."""
        if not weights or min(weights) < 0 or sum(weights) == 0:
            raise ValueError("weights must be non-negative and not all zero")
        whole = sum(weights)
        sign = -1 if self.minor < 0 else 1
        shares = [abs(self.minor) * weight // whole for weight in weights]
        left = abs(self.minor) - sum(shares)
        for index, weight in enumerate(weights):
            if left and weight:
                shares[index] += 1
                left -= 1
        return [Money(minor=sign * share, currency=self.currency) for share in shares]


class Sealed(Value):
    """A personal field as it is stored: encrypted under its subject's key, opened only at a query's edge.

    No rule and no total may read it. `box` is base64 of a deterministic authenticated cipher, so
    the same command sealed twice has the same digest. `infra.sealing` seals and opens.
    """

    subject: Text
    box: Text


def micro_of(text: str) -> int:
    """Read decimal text exactly: "2.55" is 2_550_000. More than six decimals is a ValueError."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal number: {text[:40]!r}") from None
    if not amount.is_finite():
        raise ValueError(f"not a finite number: {text[:40]!r}")
    try:
        whole: int = int(amount.quantize(MICRO, context=EXACT).scaleb(MICRO_DIGITS, context=EXACT))
    except Inexact:
        raise ValueError(f"more than {MICRO_DIGITS} decimals: {text[:40]!r}") from None
    except InvalidOperation:
        whole = MICRO_MAX + 1
    if abs(whole) > MICRO_MAX:
        raise ValueError(f"too large an amount: {text[:40]!r}")
    return whole


def decimal_text(micro: int, digits_min: int = 3) -> str:
    """Write an exact amount as decimal text with at least `digits_min` decimals and none lost."""
    sign = "-" if micro < 0 else ""
    whole, rest = divmod(abs(micro), MICRO_PER_UNIT)
    decimals = f"{rest:0{MICRO_DIGITS}d}".rstrip("0").ljust(digits_min, "0")
    return f"{sign}{whole}.{decimals}"


def minor_digits(currency: str) -> int:
    """How many decimals the currency's minor unit has (ISO 4217)."""
    return MINOR_DIGITS.get(currency, 2)


def rounded(micro: int, currency: str) -> Money:
    """The exact amount in whole minor units, halves away from zero: once per total, never per line."""
    step: int = 10 ** (MICRO_DIGITS - minor_digits(currency))
    minor = (abs(micro) + step // 2) // step
    return Money(minor=-minor if micro < 0 else minor, currency=currency)


def micro_of_money(money: Money) -> int:
    """The money's value in millionths of the currency's unit, exact."""
    step: int = 10 ** (MICRO_DIGITS - minor_digits(money.currency))
    return money.minor * step
