"""Names that cannot be confused: of commands, of facts, of tenants."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.facts import COMMANDS, Envelope, Recorded
from tests.domain.samples import SAMPLES
from tests.spec import T0

NAMES = st.text(st.characters(min_codepoint=0x20, blacklist_categories=["Cs"]), min_size=1, max_size=20)
ASKED = Envelope("acme", "ana", "k1")
FACT = Recorded(SAMPLES[0], SAMPLES[0].stream, 1, 7, T0, 0, ASKED)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_two_requests_never_share_a_command_id(mine: tuple[str, str], yours: tuple[str, str]) -> None:
    same = Envelope("acme", *mine).command_id == Envelope("acme", *yours).command_id
    assert same == (mine == yours)


def test_a_command_id_is_of_its_tenant_and_the_namespace_stays() -> None:
    assert replace(ASKED, tenant="other").command_id != ASKED.command_id
    assert UUID("6f0d0bd2-9a5e-5a43-9c62-9e6f5a3a51c7") == COMMANDS
    assert ASKED.command_id == UUID("55e0e136-76c9-54d8-9a91-22f97d30c61e")


def test_a_facts_id_survives_a_restore_where_positions_are_used_again() -> None:
    assert FACT._replace(position=3, version=2).fact_id == FACT.fact_id
    assert FACT._replace(number=1).fact_id != FACT.fact_id


@pytest.mark.parametrize("tenant", ["", "a/b", "a\nb", "x" * 65])
def test_a_tenant_that_would_blur_into_a_stream_is_no_tenant(tenant: str) -> None:
    with pytest.raises(ValueError, match="not an envelope"):
        replace(ASKED, tenant=tenant)


@pytest.mark.parametrize(
    ("actor", "key"),
    [("", "k"), ("a\nb", "k"), ("a" * 201, "k"), ("ana", ""), ("ana", "a\nb"), ("ana", "k" * 201)],
)
def test_actors_and_keys_are_short_and_on_one_line(actor: str, key: str) -> None:
    with pytest.raises(ValueError, match="not an envelope"):
        Envelope("acme", actor, key)
