"""Money facts: balanced to the millionth, and what rounding moved has an account of its own."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import example
from hypothesis import given as forall
from hypothesis import strategies as st
from pydantic import ValidationError

from commands.payments import AdjustBadDebt, RecordPayment
from domain.catalog import AmountTooLarge
from domain.payments import (
    Account,
    BadDebtAdjusted,
    PaymentExists,
    PaymentRecorded,
    Posting,
    sale_postings,
)
from domain.values import MICRO_MAX, Money, PaymentId, micro_of, rounded
from tests.spec import document, given, line

P1 = PaymentId(UUID(int=1))
PAPER = UUID(int=2)


def pay(exact: str, *, currency: str = "GBP") -> RecordPayment:
    return RecordPayment(payment_id=P1, paper=PAPER, currency=currency, exact_micro=micro_of(exact))


def paid(minor: int, *postings: tuple[Account, str], currency: str = "GBP") -> PaymentRecorded:
    return PaymentRecorded(
        payment_id=P1,
        paper=PAPER,
        amount=Money(minor=minor, currency=currency),
        currency=currency,
        postings=tuple(Posting(account=name, amount_micro=micro_of(amount)) for name, amount in postings),
    )


def test_a_payment_posts_cash_against_sales() -> None:
    given().when(pay("22.08")).then(paid(2208, ("cash", "22.08"), ("sales", "-22.08")))


def test_what_rounding_moved_goes_to_an_account_of_its_own() -> None:
    given().when(pay("22.084")).then(
        paid(2208, ("cash", "22.08"), ("sales", "-22.084"), ("rounding", "0.004"))
    )
    given().when(pay("22.085")).then(
        paid(2209, ("cash", "22.09"), ("sales", "-22.085"), ("rounding", "-0.005"))
    )


def test_money_paid_back_is_a_payment_below_zero() -> None:
    given().when(pay("-5.105")).then(paid(-511, ("cash", "-5.11"), ("sales", "5.105"), ("rounding", "0.005")))


def test_a_payment_of_nothing_is_still_on_record() -> None:
    given().when(pay("0")).then(paid(0, ("cash", "0"), ("sales", "0")))


def test_a_currency_without_minor_units_is_rounded_to_whole_ones() -> None:
    given().when(pay("10.5", currency="JPY")).then(
        paid(11, ("cash", "11"), ("sales", "-10.5"), ("rounding", "-0.5"), currency="JPY")
    )


def test_the_same_payment_again_is_empty_and_another_amount_is_refused() -> None:
    once = given().when(pay("1.00")).then(paid(100, ("cash", "1.00"), ("sales", "-1.00")))
    once.when(pay("1.00")).nothing()
    once.when(pay("1.001")).refused(PaymentExists)


@forall(st.integers(-MICRO_MAX, MICRO_MAX), st.sampled_from(["GBP", "JPY", "KWD", "CLF"]))
@example(MICRO_MAX, "GBP")
def test_postings_always_sum_to_zero(exact_micro: int, currency: str) -> None:
    postings = sale_postings(rounded(exact_micro, currency), exact_micro)
    assert sum(posting.amount_micro for posting in postings) == 0
    given().when(RecordPayment(payment_id=P1, paper=PAPER, currency=currency, exact_micro=exact_micro)).then(
        PaymentRecorded(
            payment_id=P1,
            paper=PAPER,
            amount=rounded(exact_micro, currency),
            currency=currency,
            postings=postings,
        )
    )


def test_postings_that_do_not_sum_to_zero_are_no_fact() -> None:
    with pytest.raises(ValidationError, match="sum to zero"):
        paid(100, ("cash", "1.00"), ("sales", "-0.999999"))


# ── bad debt ──────────────────────────────────────────────────────────────────────────────────────


def write_off(price: str, *, digest: str = "d1") -> AdjustBadDebt:
    return AdjustBadDebt(
        payment_id=P1, document=document("A563185", digest=digest), lines=(line("B", 1, price),)
    )


def written_off(price: str, taken_back: str) -> BadDebtAdjusted:
    return BadDebtAdjusted(
        payment_id=P1,
        document=document("A563185"),
        lines=(line("B", 1, price),),
        exact_micro=micro_of(price),
        currency="GBP",
        postings=(
            Posting(account="receivables", amount_micro=micro_of(price)),
            Posting(account="bad-debt", amount_micro=micro_of(taken_back)),
        ),
    )


def test_bad_debt_is_a_posting_and_no_goods_move() -> None:
    given().when(write_off("-11062.06")).then(written_off("-11062.06", "11062.06"))


def test_bad_debt_can_be_written_back_on() -> None:
    given().when(write_off("11062.06")).then(written_off("11062.06", "-11062.06"))


def test_the_same_write_off_again_is_empty_and_a_changed_one_is_refused() -> None:
    once = given().when(write_off("-1.00")).then(written_off("-1.00", "1.00"))
    once.when(write_off("-1.00")).nothing()
    once.when(write_off("-2.00", digest="d2")).refused(PaymentExists)


def test_a_write_off_does_not_pass_for_a_payment_of_the_same_id() -> None:
    once = given().when(pay("1.00")).then(paid(100, ("cash", "1.00"), ("sales", "-1.00")))
    once.when(write_off("1.00")).refused(PaymentExists)


def test_a_write_off_larger_than_the_books_is_refused() -> None:
    given().when(
        AdjustBadDebt(payment_id=P1, document=document(), lines=(line("B", 2, "4000000000000"),))
    ).refused(AmountTooLarge)
