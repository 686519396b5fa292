"""What payments does about orders and returns that were settled at the till: it puts them on record."""

from __future__ import annotations

from uuid import UUID, uuid5

from commands.handling import Command
from commands.payments import RecordPayment
from domain.facts import Recorded
from domain.ordering import GoodsReturned, OrderPlaced
from domain.values import PaymentId, Permission
from streams.reactions import Deadline, Reaction


def react(recorded: Recorded) -> list[Command | Deadline]:
    match recorded.event:
        case OrderPlaced(settled=True) as order:
            return [_record("payment", order.order_id, order.document.currency, order.exact_micro)]
        case GoodsReturned() as back:
            return [_record("refund", back.return_id, back.document.currency, back.exact_micro)]
        case _:
            return []


def _record(kind: str, paper: UUID, currency: str, exact_micro: int) -> RecordPayment:
    """An order and a return may bear the same number, and so the same id: the kind tells them apart."""
    return RecordPayment(
        payment_id=PaymentId(uuid5(paper, kind)), paper=paper, currency=currency, exact_micro=exact_micro
    )


REACTION = Reaction(
    "payments",
    (OrderPlaced, GoodsReturned),
    frozenset({Permission.PAYMENT_RECORD}),
    react,
    from_start=True,
)
