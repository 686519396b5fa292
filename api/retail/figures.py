"""The figures of a shop's report, added up from the facts alone: what both read models must agree with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from domain.capacity import AdjustmentRecorded
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.payments import BadDebtAdjusted
from domain.values import decimal_text

TOP_CUSTOMERS = 10
UNIT_CODES = ("84077",)
"""The code whose net units others have published."""


@dataclass(slots=True)
class Figures:
    """Sums over every paper that has lines: orders, returns, stock and bad-debt adjustments.

    Money is exact, in millionths of `currency`; papers in another one are passed over. Months are those of
    business time, the line's own where it has one. Units have no currency: all papers count.
    """

    currency: str
    codes: tuple[str, ...] = UNIT_CODES
    """Whose net units are counted."""
    lines: int = 0
    orders: int = 0
    returns: int = 0
    net_micro: int = 0
    month_micro: Counter[str] = field(default_factory=Counter)
    country_micro: Counter[str] = field(default_factory=Counter)
    customer_micro: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)

    def take(self, recorded: Recorded) -> None:
        """Add one fact; those without lines say nothing here."""
        match recorded.event:
            case OrderPlaced() | GoodsReturned() | AdjustmentRecorded() | BadDebtAdjusted() as paper:
                self._take(paper)

    def _take(self, paper: OrderPlaced | GoodsReturned | AdjustmentRecorded | BadDebtAdjusted) -> None:
        document = paper.document
        for line in paper.lines:
            if line.code in self.codes and not line.charge and not isinstance(paper, BadDebtAdjusted):
                self.units[line.code] += line.quantity  # goods alone have units: what no pool moved has none
        if document.currency != self.currency:
            return
        net_micro = 0
        for line in paper.lines:
            amount_micro = line.quantity * line.unit_price_micro
            net_micro += amount_micro
            self.month_micro[(line.placed_at or document.placed_at).isoformat()[:7]] += amount_micro
        self.lines += len(paper.lines)
        self.orders += isinstance(paper, OrderPlaced)
        self.returns += isinstance(paper, GoodsReturned)
        self.net_micro += net_micro
        self.country_micro[document.country] += net_micro
        if document.customer is not None:
            self.customer_micro[document.customer] += net_micro

    def as_json(self) -> dict[str, Any]:
        """Amounts as decimal text; months ascending, countries and customers by net revenue, then by name."""
        return {
            "lines": self.lines,
            "orders": self.orders,
            "returns": self.returns,
            "net_revenue": decimal_text(self.net_micro),
            "by_month": {month: decimal_text(micro) for month, micro in sorted(self.month_micro.items())},
            "by_country": _ranked(self.country_micro),
            "top_customers": dict(list(_ranked(self.customer_micro).items())[:TOP_CUSTOMERS]),
            "net_units": {code: self.units[code] for code in self.codes},
        }


def fold_log(facts: Iterable[Recorded], *, currency: str, codes: tuple[str, ...] = UNIT_CODES) -> Figures:
    """The figures of a whole log, or of as much of it as is given."""
    figures = Figures(currency, codes)
    for recorded in facts:
        figures.take(recorded)
    return figures


def _ranked(amounts_micro: Counter[str]) -> dict[str, str]:
    ranking = sorted(amounts_micro.items(), key=lambda entry: (-entry[1], entry[0]))
    return {name: decimal_text(micro) for name, micro in ranking}
