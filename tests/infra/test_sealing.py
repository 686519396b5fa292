"""Personal fields: opened by nobody but their owner, equal when sealed again, found by a keyed hash."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.ordering import PlaceOrder
from domain.values import OrderId, Sealed
from infra.sealing import PLAINTEXT_BYTES_MAX, FieldTooLong, SealBroken, Sealer
from tests.domain.samples import ORDER
from tests.spec import document, line

KEY = bytes(range(64))
SEALER = Sealer(KEY)
MAIL = "ana@example.org"
SEALED = SEALER.seal("acme", "17850", "contact", MAIL)
WORDS = st.text(st.characters(min_codepoint=1, blacklist_categories=["Cs"]), max_size=100)


@given(WORDS, WORDS, WORDS, WORDS)
def test_what_was_sealed_opens_for_its_tenant_subject_and_field(
    tenant: str, subject: str, field: str, plaintext: str
) -> None:
    sealed = SEALER.seal(tenant, subject, field, plaintext)
    assert sealed.subject == subject
    assert SEALER.open(tenant, field, sealed) == plaintext


def test_nothing_of_the_words_can_be_read_in_the_box() -> None:
    assert b"ana" not in base64.b64decode(SEALED.box)
    assert MAIL not in SEALED.model_dump_json()


def test_the_same_words_sealed_again_are_the_same_so_that_a_retry_has_the_same_digest() -> None:
    def order(sealed: Sealed) -> PlaceOrder:
        return PlaceOrder(
            order_id=OrderId(ORDER), document=document(), lines=(line("p"),), settled=True, contact=sealed
        )

    again = Sealer(KEY).seal("acme", "17850", "contact", MAIL)
    assert order(again).digest() == order(SEALED).digest()
    other = SEALER.seal("acme", "17850", "contact", "ben@example.org")
    assert order(other).digest() != order(SEALED).digest()


@given(st.integers(0, len(base64.b64decode(SEALED.box)) * 8 - 1))
def test_a_box_with_any_bit_turned_does_not_open(bit: int) -> None:
    box = bytearray(base64.b64decode(SEALED.box))
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        SEALER.open("acme", "contact", Sealed(subject="17850", box=base64.b64encode(box).decode()))


@pytest.mark.parametrize("box", ["", "AAAA", "not base64!", SEALED.box[:-4], SEALED.box + "AAAA", "é"])
def test_a_box_cut_short_or_made_up_does_not_open(box: str) -> None:
    with pytest.raises(SealBroken):
        SEALER.open("acme", "contact", Sealed(subject="17850", box=box))


def test_a_box_moved_to_another_tenant_field_or_subject_does_not_open() -> None:
    with pytest.raises(SealBroken):
        SEALER.open("other", "contact", SEALED)
    with pytest.raises(SealBroken):
        SEALER.open("acme", "address", SEALED)
    with pytest.raises(SealBroken):
        SEALER.open("acme", "contact", Sealed(subject="13047", box=SEALED.box))


def test_what_a_box_belongs_to_cannot_run_together() -> None:
    sealed = SEALER.seal("a", "b", "cd", MAIL)
    with pytest.raises(SealBroken):
        SEALER.open("a", "d", Sealed(subject="bc", box=sealed.box))
    with pytest.raises(SealBroken):
        SEALER.open("ab", "cd", Sealed(subject="", box=sealed.box))


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealBroken):
        Sealer(bytes(64)).open("acme", "contact", SEALED)


def test_a_refusal_to_open_says_whose_field_and_not_what_is_in_it() -> None:
    with pytest.raises(SealBroken, match=r"^address of 17850$"):
        SEALER.open("acme", "address", SEALED)


def test_a_field_may_be_as_long_as_the_limit_says_and_no_longer() -> None:
    longest = "é" * (PLAINTEXT_BYTES_MAX // 2)
    assert SEALER.open("t", "f", SEALER.seal("t", "s", "f", longest)) == longest
    with pytest.raises(FieldTooLong, match="contact: 1,402 bytes"):
        SEALER.seal("t", "s", "contact", longest + "é")


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(63)])
def test_a_key_of_another_length_is_no_key(key: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        Sealer(key)


# ── looking up ────────────────────────────────────────────────────────────────────────────────────


def test_a_value_is_found_by_a_hash_that_needs_the_key() -> None:
    blind = SEALER.blind("acme", "email", MAIL)
    assert blind == Sealer(KEY).blind("acme", "email", MAIL)
    assert blind != Sealer(bytes(64)).blind("acme", "email", MAIL)
    assert len(blind) == 40
    assert "ana" not in blind


@given(st.tuples(WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS, WORDS))
def test_different_values_kinds_and_tenants_never_share_a_hash(
    mine: tuple[str, str, str], yours: tuple[str, str, str]
) -> None:
    assert (SEALER.blind(*mine) == SEALER.blind(*yours)) == (mine == yours)


def test_a_hashs_parts_cannot_run_together() -> None:
    assert SEALER.blind("a", "bc", "d") != SEALER.blind("ab", "c", "d")
    assert SEALER.blind("a", "b\nc", "d") != SEALER.blind("a", "b", "c\nd")
