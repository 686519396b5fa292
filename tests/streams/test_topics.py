"""Records say what they stand for, and come back as they were."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.registry import CONTEXTS, EVENTS
from infra.ledger import Place
from infra.mapper import StoredFact
from streams.topics import (
    PARTITIONS,
    RUN_BYTES_MAX,
    BadRecord,
    Lately,
    Run,
    context_of,
    pack,
    partition_of,
    place_of,
    runs,
    topic_of,
    topics,
    unpack,
)

text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=20)
states = st.binary(max_size=200) | st.just(b"x" * (RUN_BYTES_MAX // 2))
logs = st.lists(st.tuples(text, st.sampled_from(sorted(EVENTS)), states), max_size=40).map(
    lambda rows: [
        StoredFact(position, f"acme/{stream}", position, name, state)
        for position, (stream, name, state) in enumerate(rows, 1)
    ]
)


def cut(facts: list[StoredFact], each: int) -> list[Run]:
    heads: dict[Place, int] = {}
    return [
        run for first in range(0, len(facts), each) for run in runs("0", facts[first : first + each], heads)
    ]


@given(facts=logs, each=st.integers(1, 15))
def test_what_is_packed_comes_back_as_it_was(facts: list[StoredFact], each: int) -> None:
    for run in cut(facts, each):
        assert unpack(run.topic, run.partition, pack(run)) == run


@given(facts=logs, each=st.integers(1, 15))
def test_runs_carry_every_fact_once_and_leave_no_position_of_a_partition_uncovered(
    facts: list[StoredFact], each: int
) -> None:
    reached: dict[Place, int] = {}
    carried: list[StoredFact] = []
    for run in cut(facts, each):
        assert run.after == reached.get(run.place, 0)
        assert run.facts[-1].position == run.last > run.after
        mine = [f for f in facts if place_of("0", f) == run.place and run.after < f.position <= run.last]
        assert list(run.facts) == mine
        reached[run.place] = run.last
        carried += run.facts
    assert sorted(carried) == facts


@given(facts=logs)
def test_a_record_ends_with_the_fact_that_makes_it_large(facts: list[StoredFact]) -> None:
    for run in cut(facts, len(facts) + 1):
        assert sum(len(fact.state) for fact in run.facts[:-1]) < RUN_BYTES_MAX


@given(facts=logs, damage=st.data())
def test_a_record_that_is_cut_short_is_refused(facts: list[StoredFact], damage: st.DataObject) -> None:
    for run in cut(facts, 5)[:2]:
        record = pack(run)
        kept = damage.draw(st.integers(0, len(record) - 1))
        with pytest.raises(BadRecord):
            unpack(run.topic, run.partition, record[:kept])


@given(record=st.binary(max_size=80))
def test_bytes_that_are_no_record_are_refused_or_read_never_worse(record: bytes) -> None:
    with suppress(BadRecord):
        packed = pack(unpack("t", 0, record))
        assert packed == record[: len(packed)]


def test_another_format_is_refused() -> None:
    with pytest.raises(BadRecord, match="format 2"):
        unpack("t", 0, b"\x02" + bytes(20))


@given(stream=text)
def test_a_streams_partition_is_its_own_for_ever(stream: str) -> None:
    assert partition_of(f"acme/{stream}") in range(PARTITIONS)
    assert partition_of("acme/order-1") == 1
    assert partition_of("acme/order-2") == 3


def test_each_context_has_a_topic_that_names_ledger_and_partitions() -> None:
    assert topics("0") == [f"counterfoil.0.{context}.v1.p{PARTITIONS}" for context in CONTEXTS]
    assert [context_of(topic) for topic in topics("0")] == list(CONTEXTS)
    assert topic_of("7", "ordering") != topic_of("0", "ordering")


def test_what_was_made_lately_is_bounded_by_bytes_and_never_of_other_content() -> None:
    made: list[bytes] = []

    def double(key: bytes) -> bytes:
        made.append(key)
        return key * 2

    lately = Lately(double, len, 10)
    for key in (b"aaaa", b"bbbb", b"aaaa", bytes(bytearray(b"bbbb"))):
        assert lately.of(key) == key * 2
    assert made == [b"aaaa", b"bbbb"]
    lately.of(b"cccc")
    assert (sorted(lately.kept), lately.bytes) == ([b"bbbb", b"cccc"], 8)
    lately.of(b"d" * 11)  # alone it is too much
    assert (lately.kept, lately.bytes) == ({}, 0)
    assert lately.of(b"aaaa") == b"aaaaaaaa"


def test_what_cannot_be_made_is_not_kept() -> None:
    def refuse(key: bytes) -> bytes:
        raise BadRecord("never")

    lately = Lately(refuse, len, 10)
    with pytest.raises(BadRecord):
        lately.of(b"a")
    assert (lately.kept, lately.bytes) == ({}, 0)
