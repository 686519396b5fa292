"""Money and exact amounts: nothing is lost, nothing is guessed."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from domain.values import (
    MICRO_MAX,
    MINOR_DIGITS,
    Code,
    Money,
    decimal_text,
    micro_of,
    micro_of_money,
    minor_digits,
    rounded,
)

MICROS = st.integers(-MICRO_MAX, MICRO_MAX)
CURRENCIES = st.sampled_from(["EUR", "GBP", "JPY", "KWD", "CLF", *MINOR_DIGITS])


@given(minor=st.integers(-(10**15), 10**15), weights=st.lists(st.integers(0, 10**6), min_size=1).filter(any))
def test_allocating_loses_nothing_and_is_fair_to_a_unit(minor: int, weights: list[int]) -> None:
    parts = [part.minor for part in Money(minor=minor, currency="EUR").allocate(weights)]
    assert sum(parts) == minor
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - minor * weight) < sum(weights)
        assert weight or part == 0


def test_the_earliest_parts_take_what_does_not_divide() -> None:
    assert [part.minor for part in Money(minor=100, currency="EUR").allocate([1, 1, 1])] == [34, 33, 33]
    assert [part.minor for part in Money(minor=-100, currency="EUR").allocate([0, 1, 1, 1])] == [
        0,
        -34,
        -33,
        -33,
    ]


@pytest.mark.parametrize("weights", [[], [0, 0], [3, -1]])
def test_allocating_by_nothing_or_by_less_is_a_bug(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Money(minor=1, currency="EUR").allocate(weights)


def test_adding_two_currencies_is_a_bug() -> None:
    assert Money(minor=1, currency="EUR").plus(Money(minor=2, currency="EUR")).minor == 3
    with pytest.raises(ValueError, match="cannot combine EUR with GBP"):
        Money(minor=1, currency="EUR").plus(Money(minor=1, currency="GBP"))


@given(MICROS, st.integers(0, 6))
def test_an_exact_amount_survives_being_written_and_read(micro: int, digits_min: int) -> None:
    text = decimal_text(micro, digits_min)
    assert micro_of(text) == micro
    assert Decimal(text) == Decimal(micro) / 10**6
    assert len(text.partition(".")[2]) >= digits_min


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
@example(Decimal("-0.000001"))
def test_six_decimals_are_read_exactly(amount: Decimal) -> None:
    assert Decimal(micro_of(str(amount))) == amount * 10**6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a decimal"),
        ("2,55", "not a decimal"),
        ("NaN", "not a finite"),
        ("-Infinity", "not a finite"),
        ("0.0000001", "decimals"),
        ("1.0000000000000000000000000000000001", "decimals"),  # 28 digits are Decimal's default
        ("4611686018427.000001", "too large"),
        ("1e999999", "too large"),
        ("1e50", "too large"),
        ("1e-999999", "decimals"),
    ],
)
def test_what_cannot_be_kept_exactly_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        micro_of(text)


def test_zeros_that_say_nothing_are_no_decimals() -> None:
    assert micro_of("2.5500000000000000000000000") == 2_550_000
    assert micro_of("-0.00") == 0


@given(MICROS, CURRENCIES)
@example(MICRO_MAX, "EUR")
@example(MICRO_MAX, "JPY")
def test_rounding_moves_at_most_half_a_minor_unit_and_never_past_what_the_books_carry(
    micro: int, currency: str
) -> None:
    cash = micro_of_money(rounded(micro, currency))
    assert abs(cash - micro) * 2 <= 10 ** (6 - minor_digits(currency))
    assert abs(cash) <= MICRO_MAX
    assert rounded(-micro, currency).minor == -rounded(micro, currency).minor


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        ("2.545", "GBP", 255),
        ("-2.545", "GBP", -255),
        ("2.5", "JPY", 3),
        ("2.0005", "KWD", 2001),
        ("1.00005", "CLF", 10001),
    ],
)
def test_halves_go_away_from_zero_in_the_currencys_own_digits(amount: str, currency: str, minor: int) -> None:
    assert rounded(micro_of(amount), currency).minor == minor


@pytest.mark.parametrize("code", ["85123A", "gift_0001_20", "DOT COM", "ø", "x" * 64])
def test_a_code_is_kept_as_its_owner_writes_it(code: str) -> None:
    assert TypeAdapter(Code).validate_python(code) == code


@pytest.mark.parametrize("code", ["", "a/b", "a\nb", "a\n", "\x00", "x" * 65, "\ud800"])
def test_a_code_that_would_blur_a_streams_name_is_refused(code: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Code).validate_python(code)


def test_a_value_takes_no_unknown_field_no_other_type_and_no_change() -> None:
    for document in (
        {"minor": 1, "currency": "EUR", "tax": 1},
        {"minor": "1", "currency": "EUR"},
        {"minor": 1.0, "currency": "EUR"},
    ):
        with pytest.raises(ValidationError):
            Money.model_validate(document)
    money = Money(minor=1, currency="EUR")
    with pytest.raises(ValidationError):
        money.minor = 2  # type: ignore[misc]
