"""The stored layout: these bytes, forever; and whatever else is in the table is said to be unreadable."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from eventsourcing.compressor import ZlibCompressor
from eventsourcing.cryptography import AESCipher
from eventsourcing.persistence import JSONTranscoder
from eventsourcing.utils import Environment
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.capacity import PoolOpened
from domain.facts import REQUEST, TRACE, Envelope, Event, Recorded
from infra.mapper import (
    HEADER,
    TIME,
    FactMapper,
    StoredFact,
    Unreadable,
    envelope_json,
    envelope_of,
    instant,
    microseconds,
    recorded_of,
    rest_of,
)
from tests.domain.samples import SAMPLES
from tests.spec import T0, TENANT

ENVELOPE = Envelope(TENANT, "ana", "key ☕", UUID(int=1), UUID(int=2))
FACT = PoolOpened(pool="p", capacity=None)
RECORDED = Recorded(FACT, "pool-p", 3, 41, T0, 7, ENVELOPE)
STATE = TIME.pack(microseconds(T0)) + rest_of(FACT, 7, envelope_json(ENVELOPE))
# Kept as text: were it made by the code under test it would change with it.
STORED = (
    bytes.fromhex("00064752550bf000000700010087")
    + (
        '{"actor":"ana","key":"key ☕",'
        '"correlation":"00000000-0000-0000-0000-000000000001",'
        '"causation":"00000000-0000-0000-0000-000000000002"}'
        '{"pool":"p","capacity":null}'
    ).encode()
)

NAMES = st.text(st.characters(min_codepoint=0x20, blacklist_categories=["Cs"]), min_size=1, max_size=40)
MAYBE_ID = st.none() | st.uuids()
MAYBE_REQUEST = st.none() | st.from_regex(REQUEST, fullmatch=True)
MAYBE_TRACE = st.none() | st.from_regex(TRACE, fullmatch=True)
ENVELOPES = st.builds(Envelope, st.just(TENANT), NAMES, NAMES, MAYBE_ID, MAYBE_ID, MAYBE_REQUEST, MAYBE_TRACE)
INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def read(state: bytes, name: str = FACT.name) -> Recorded:
    return recorded_of(TENANT, "pool-p", 3, 41, name, state)


def test_a_fact_is_stored_as_these_bytes_and_no_others() -> None:
    assert STATE == STORED
    assert read(STORED) == RECORDED


def test_the_tenant_is_in_the_streams_name_and_not_in_the_bytes() -> None:
    assert TENANT.encode() not in STATE
    assert StoredFact(41, f"{TENANT}/pool-p", 3, FACT.name, STATE).recorded() == RECORDED
    assert StoredFact(41, "other/pool-p", 3, FACT.name, STATE).recorded().tenant == "other"


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.name)
@settings(max_examples=20)
@given(
    number=st.integers(0, 65_535),
    at=INSTANTS,
    envelope=ENVELOPES,
)
def test_whatever_is_stored_is_read_back(event: Event, number: int, at: datetime, envelope: Envelope) -> None:
    recorded = Recorded(event, event.stream, 1, 1, at, number, envelope)
    state = TIME.pack(microseconds(at)) + rest_of(event, number, envelope_json(envelope))
    assert recorded_of(TENANT, event.stream, 1, 1, event.name, state) == recorded


@given(INSTANTS)
def test_time_is_kept_to_the_microsecond(at: datetime) -> None:
    assert instant(microseconds(at)) == at
    assert microseconds(at + timedelta(microseconds=1)) == microseconds(at) + 1


def test_the_facts_of_one_command_share_one_envelope() -> None:
    stored = envelope_json(ENVELOPE)
    assert envelope_of(TENANT, stored) is envelope_of(TENANT, stored)
    assert envelope_of(TENANT, stored) == ENVELOPE
    assert envelope_of("other", stored) == replace(ENVELOPE, tenant="other")


@given(ENVELOPES)
def test_an_envelope_is_written_as_the_standard_library_writes_json(envelope: Envelope) -> None:
    whole = {
        "actor": envelope.actor,
        "key": envelope.key,
        "correlation": envelope.correlation,
        "causation": envelope.causation,
        "request": envelope.request,
        "trace": envelope.trace,
    }
    given_ones = {name: str(value) for name, value in whole.items() if value is not None}
    expected = json.dumps(given_ones, separators=(",", ":"), ensure_ascii=False).encode()
    assert envelope_json(envelope) == expected
    assert envelope_of(TENANT, expected) == envelope


@pytest.mark.parametrize(
    "broken",
    [
        {"request": ""},
        {"request": 'a","actor":"root'},
        {"request": "a" * 65},
        {"trace": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"},
        {"trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01"},
        {"trace": "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
        {"trace": "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"},
    ],
)
def test_an_envelope_takes_no_other_request_or_trace_than_it_can_write(broken: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not an envelope"):
        Envelope(TENANT, "ana", "key", **broken)  # type: ignore[arg-type]


# ── what is not a fact ────────────────────────────────────────────────────────────────────────────


def state(
    envelope: bytes = b'{"actor":"a","key":"k"}',
    data: bytes = FACT.stored(),
    at_us: int = 0,
    version: int = 1,
) -> bytes:
    return HEADER.pack(at_us, 0, version, len(envelope)) + envelope + data


def test_the_hostile_bytes_below_are_hostile_for_one_reason_each() -> None:
    assert read(state()).event == FACT


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x00" * 13,
        state(envelope=b""),
        state(envelope=b"\xff\xfe"),
        state(envelope=b"[]"),
        state(envelope=b"7"),
        state(envelope=b"null"),
        state(envelope=b"{}"),
        state(envelope=b'{"actor":"a"}'),
        state(envelope=b'{"actor":"a","key":""}'),
        state(envelope=b'{"actor":"a","key":7}'),
        state(envelope=b'{"actor":"a","key":"k","causation":7}'),
        state(envelope=b'{"actor":"a","key":"k","causation":"7"}'),
        state(envelope=b"[" * 60_000),
        state(data=b""),
        state(data=b"{"),
        state(data=b"[" * 100_000),
        state(data=b'{"pool":"p"}'),
        state(data=b'{"pool":"p","capacity":-1}'),
        state(data=b'{"pool":"a/b","capacity":1}'),
        state(data=b'{"pool":"p","capacity":"1"}'),
        state(data=b'{"pool":"p","capacity":1,"more":1}'),
        state(version=2),
        state(version=0),
        state(at_us=2**63 - 1),
        state(at_us=-(2**63)),
        STORED[:20],
    ],
    ids=lambda hostile: repr(hostile[:40]),
)
def test_bytes_that_are_no_fact_are_unreadable_and_nothing_worse(hostile: bytes) -> None:
    with pytest.raises(Unreadable, match=r"^position 41, 'capacity\.pool-opened'"):
        read(hostile)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_unreadable(noise: bytes) -> None:
    with pytest.raises(Unreadable):
        read(noise)


@pytest.mark.parametrize(
    "name", ["os:system", "domain.capacity:PoolOpened", "capacity.pool-fact", "", "x" * 10_000]
)
def test_an_unknown_name_is_unreadable_and_never_imported(name: str) -> None:
    with pytest.raises(Unreadable, match="no fact is named"):
        read(STORED, name)


def test_a_fact_that_stands_in_another_streams_place_keeps_its_content() -> None:
    """The bytes do not say their stream, so what was moved is found by the proofs and not here."""
    assert recorded_of(TENANT, "pool-q", 1, 1, FACT.name, STORED).event == FACT


# ── the library's seam ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_the_librarys_mapper_has_the_same_layout_under_its_cipher_and_compressor(
    compressed: bool, encrypted: bool
) -> None:
    key = Environment(env={"CIPHER_KEY": AESCipher.create_key(16)})
    mapper = FactMapper(
        JSONTranscoder(),
        compressor=ZlibCompressor() if compressed else None,
        cipher=AESCipher(key) if encrypted else None,
    )
    stored = mapper.to_stored_event(RECORDED)
    assert (stored.originator_id, stored.originator_version, stored.topic) == (
        f"{TENANT}/pool-p",
        3,
        FACT.name,
    )
    assert (stored.state == STORED) is not (compressed or encrypted)
    assert mapper.to_domain_event(stored) == RECORDED._replace(position=0)


def test_a_command_may_have_as_many_facts_as_the_header_can_count() -> None:
    assert read(TIME.pack(0) + rest_of(FACT, 65_535, b'{"actor":"a","key":"k"}')).number == 65_535
    with pytest.raises(struct.error):
        rest_of(FACT, 65_536, b"{}")
