"""One contract, two logs: what `commands.handling.Log` promises, in memory and in Postgres."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import psycopg
import pytest

from commands.log import Append, Appended, Spent, Stale
from domain.capacity import PlacesTaken, PoolOpened
from domain.facts import Event, Recorded
from domain.values import Code, OrderId
from tests.ledgers import Around, InMemory, InPostgres, Ledger, Log
from tests.spec import ANA, T0, TENANT, after, envelope

PATIENCE_S = 20
BEN = replace(ANA, tenant="other")


def taken(pool: Code, quantity: int = 1) -> PlacesTaken:
    return PlacesTaken(pool=pool, quantity=quantity, order_id=OrderId(UUID(int=quantity)))


def ask(
    key: str,
    versions: Mapping[str, int],
    *facts: Event,
    at_s: float = 0,
    digest: bytes = b"d",
    tenant: str = TENANT,
) -> Append:
    return Append(envelope(key, replace(ANA, tenant=tenant)), digest, "Ask", versions, facts, after(at_s))


@pytest.fixture
def log(ledger: Ledger) -> Log:
    return ledger.open()


def appended(log: Log, append: Append) -> tuple[Recorded, ...]:
    outcome = log.append(append)
    assert isinstance(outcome, Appended), outcome
    assert outcome.facts == () or outcome.position == outcome.facts[-1].position
    return outcome.facts


# ── append ────────────────────────────────────────────────────────────────────────────────────────


def test_facts_are_recorded_with_their_place_their_time_and_who_asked(log: Log) -> None:
    origin = replace(envelope("k"), correlation=UUID(int=1), causation=UUID(int=2))
    facts = (PoolOpened(pool="a", capacity=None), taken("b"), taken("a", 2))
    versions = {"pool-a": 0, "pool-b": 0}
    outcome = log.append(Append(origin, b"d", "Ask", versions, facts, after(1.000001)))
    assert outcome == Appended(
        (
            Recorded(facts[0], "pool-a", 1, 1, after(1.000001), 0, origin),
            Recorded(facts[1], "pool-b", 1, 2, after(1.000001), 1, origin),
            Recorded(facts[2], "pool-a", 2, 3, after(1.000001), 2, origin),
        ),
        3,
    )
    assert log.recorded(TENANT, 1, 3) == outcome.facts


def test_versions_are_contiguous_in_a_stream_and_positions_in_the_ledger(ledger: Ledger) -> None:
    for number in range(6):
        mine, tenant = f"pool-{number % 2}", (TENANT, "other")[number // 3]
        version = len(ledger.open().read(tenant, {mine: 0}))
        appended(ledger.open(), ask(f"k{number}", {mine: version}, taken(str(number % 2)), tenant=tenant))
    log = ledger.open()
    facts = [*log.recorded(TENANT, 1, 6), *log.recorded("other", 1, 6)]
    assert [fact.position for fact in facts] == [1, 2, 3, 4, 5, 6]
    assert [(fact.stream, fact.version) for fact in facts] == [
        ("pool-0", 1),
        ("pool-1", 1),
        ("pool-0", 2),
        ("pool-1", 1),
        ("pool-0", 1),
        ("pool-1", 2),
    ]


def test_an_append_is_all_or_nothing(log: Log) -> None:
    appended(log, ask("k1", {"pool-b": 0}, taken("b")))
    stale = log.append(ask("k2", {"pool-a": 0, "pool-b": 0}, taken("a"), taken("b")))
    assert isinstance(stale, Stale)
    assert log.read(TENANT, {"pool-a": 0}) == []
    assert log.spent(envelope("k2")) is None
    assert appended(log, ask("k3", {"pool-a": 0}, taken("a")))[0].position == 2


def test_an_append_that_breaks_half_way_leaves_neither_facts_nor_key(stored: InPostgres) -> None:
    log = stored.open()
    appended(log, ask("k1", {"pool-a": 0}, taken("a")))
    with stored.admin() as conn:
        conn.execute("INSERT INTO stored_events VALUES ('acme/pool-c', 2, 'x', '', 3)")
    with pytest.raises(psycopg.errors.UniqueViolation):  # position 3 is taken, which cannot be
        log.append(ask("k2", {"pool-a": 1, "pool-b": 0}, taken("b"), taken("a")))
    assert log.spent(envelope("k2")) is None
    assert log.read(TENANT, {"pool-b": 0}) == []
    assert appended(log, ask("k2", {"pool-a": 1}, taken("a")))[0].position == 2


def test_what_was_only_read_is_pinned_as_well(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0}, taken("a")))
    outcome = log.append(ask("k2", {"pool-a": 0, "pool-b": 0}, taken("b")))
    assert isinstance(outcome, Stale)


@pytest.mark.parametrize("pinned", [0, 1, 3, 9])
def test_a_stream_at_any_other_version_than_was_read_is_a_conflict(log: Log, pinned: int) -> None:
    for version in range(2):
        appended(log, ask(f"k{version}", {"pool-a": version}, taken("a")))
    outcome = log.append(ask("k", {"pool-a": pinned}, taken("a")))
    assert isinstance(outcome, Stale)
    assert [fact.version for fact in outcome.newer] == list(range(pinned + 1, 3))


def test_a_conflict_answers_with_the_newer_facts_of_the_streams_concerned_and_no_others(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0, "pool-b": 0, "pool-c": 0}, taken("a"), taken("b"), taken("c")))
    newer = [
        *appended(log, ask("k2", {"pool-a": 1}, taken("a", 2), taken("a", 3))),
        *appended(log, ask("k3", {"pool-c": 1}, taken("c", 4))),
    ]
    outcome = log.append(ask("k4", {"pool-c": 1, "pool-b": 1, "pool-a": 1, "pool-d": 0}, taken("b")))
    assert outcome == Stale(tuple(newer))


def test_the_same_stream_of_another_tenant_is_another_stream(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0}, taken("a")))
    assert appended(log, ask("k1", {"pool-a": 0}, taken("a"), tenant="other"))[0].version == 1


def test_recorded_time_never_decreases(log: Log) -> None:
    times = [
        appended(log, ask(f"k{number}", {f"pool-{number}": 0}, taken(str(number)), at_s=seconds))[0].at
        for number, seconds in enumerate((5, 3, 9, -100_000))
    ]
    assert times == [after(5), after(5), after(9), after(9)]


def test_an_append_without_facts_takes_no_position_and_moves_no_time(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0}, taken("a")))
    assert log.append(ask("k2", {"pool-a": 1}, at_s=99)) == Appended((), 1)
    assert log.spent(envelope("k2")) == Spent(b"d", 1, 0)
    fact = appended(log, ask("k3", {"pool-a": 1}, taken("a")))[0]
    assert (fact.position, fact.at) == (2, T0)


# ── spent keys ────────────────────────────────────────────────────────────────────────────────────


def test_a_spent_key_says_what_it_was_used_for_whatever_is_sent_with_it(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0}, taken("a"), taken("a", 2), digest=b"one"))
    appended(log, ask("k2", {"pool-b": 0}, taken("b")))
    spent = Spent(b"one", 2, 2)
    assert log.spent(envelope("k1")) == spent
    assert log.append(ask("k1", {"pool-a": 0}, taken("a"), digest=b"one")) == spent
    assert log.append(ask("k1", {"pool-z": 7}, digest=b"two")) == spent
    assert len(log.read(TENANT, {"pool-a": 0})) == 2


def test_a_key_that_was_not_used_is_not_spent(log: Log) -> None:
    appended(log, ask("k1", {"pool-a": 0}, taken("a")))
    assert log.spent(envelope("k2")) is None
    assert log.spent(envelope("k1", BEN)) is None
    assert log.spent(envelope("k1", replace(ANA, name="ben"))) is None


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def test_reading_gives_each_streams_facts_past_a_version_in_order(log: Log) -> None:
    for number in range(3):
        appended(log, ask(f"k{number}", {"pool-a": number, "pool-b": number}, taken("b"), taken("a")))
    facts = log.read(TENANT, {"pool-b": 1, "pool-a": 2, "pool-none": 0, "pool-far": 9})
    assert [(fact.stream, fact.version) for fact in facts] == [("pool-a", 3), ("pool-b", 2), ("pool-b", 3)]
    assert log.read(TENANT, {}) == []
    assert log.read(TENANT, {"pool-a": 99}) == []


def test_reading_sees_only_ones_own_tenant(log: Log) -> None:
    appended(log, ask("k", {"pool-a": 0}, taken("a"), taken("a", 2)))
    appended(log, ask("k", {"pool-a": 0}, taken("a", 3), tenant="other"))
    assert [fact.event for fact in log.read("other", {"pool-a": 0})] == [taken("a", 3)]
    assert [fact.position for fact in log.recorded(TENANT, 1, 3)] == [1, 2]
    assert [fact.position for fact in log.recorded("other", 1, 3)] == [3]
    assert log.recorded("nobody", 1, 3) == ()
    assert log.recorded(TENANT, 1, 0) == ()


@pytest.mark.parametrize(
    "stream", ["pool-a b", "pool-☕", "pool-%", "pool-a\\b", "pool-'", "pool-{a,b}", 'pool-"']
)
def test_a_streams_name_is_taken_as_it_is(log: Log, stream: str) -> None:
    fact = taken(stream.removeprefix("pool-"))
    appended(log, ask("k", {stream: 0}, fact))
    assert [(f.stream, f.event) for f in log.read(TENANT, {stream: 0})] == [(stream, fact)]


# ── turns and claims ──────────────────────────────────────────────────────────────────────────────


def test_two_writers_of_one_stream_take_turns(ledger: Ledger) -> None:
    inside: list[int] = []
    most: list[int] = []

    def write(number: int) -> None:
        log = ledger.open()
        streams = ["pool-a", f"pool-{number}"] if number % 2 else [f"pool-{number}", "pool-a"]
        with log.turn(TENANT, streams):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(write, range(6)))
    assert most == [1] * 6


def test_a_turn_is_given_back_when_it_fails(ledger: Ledger) -> None:
    mine, other = ledger.open(), ledger.open()
    with pytest.raises(KeyError), mine.turn(TENANT, ["pool-a"]):
        raise KeyError
    with ThreadPoolExecutor(1) as threads:

        def take() -> bool:
            with other.turn(TENANT, ["pool-a"]):
                return True

        assert threads.submit(take).result(PATIENCE_S)


def test_writing_goes_on_within_a_turn(ledger: Ledger) -> None:
    log = ledger.open()
    with log.turn(TENANT, ["pool-a", "pool-b"]):
        appended(log, ask("k", {"pool-a": 0}, taken("a")))
        assert len(log.read(TENANT, {"pool-a": 0})) == 1


def test_other_streams_wait_for_nobody(stored: InPostgres) -> None:
    mine, other = stored.open(), stored.open()
    with (
        mine.turn(TENANT, ["pool-a"]),
        other.turn(TENANT, ["pool-b"]),
        stored.open().turn("other", ["pool-a"]),
    ):
        appended(other, ask("k", {"pool-b": 0}, taken("b")))


def test_a_claim_is_the_same_for_the_same_value_only(ledger: Ledger) -> None:
    claim = ledger.open().claim(TENANT, "slug", "white-heart")
    assert claim == ledger.open().claim(TENANT, "slug", "white-heart")
    others = [
        ledger.open().claim("other", "slug", "white-heart"),
        ledger.open().claim(TENANT, "email", "white-heart"),
        ledger.open().claim(TENANT, "slug", "white-hearts"),
    ]
    assert len({claim, *others}) == 4
    assert claim.startswith("claim-slug-")
    assert "heart" not in claim


# ── many writers and a tailing reader ─────────────────────────────────────────────────────────────


def tail(log: Log, seen: list[Recorded], stop: threading.Event) -> None:
    """Follow the ledger as a relay does: from where one stands, and never back."""
    done = False
    while not done:
        done = stop.is_set()
        while page := log.recorded(TENANT, seen[-1].position + 1 if seen else 1, 1_000):
            seen.extend(page)


def assert_nothing_is_skipped(ledger: Ledger, tailed: Log, *, writers: int, commands: int) -> None:
    seen: list[Recorded] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        log = ledger.open()
        for number in range(commands):
            mine = f"pool-{writer}"
            facts = [taken(str(writer), number + 1)] * (1 + number % 3)
            version = len(log.read(TENANT, {mine: 0}))
            appended(log, ask(f"{writer}-{number}", {mine: version}, *facts, at_s=number))

    with ThreadPoolExecutor(writers + 1) as threads:
        tailing = threads.submit(tail, tailed, seen, stop)
        try:
            for writing in [threads.submit(write, writer) for writer in range(writers)]:
                writing.result(PATIENCE_S)
        finally:
            stop.set()
        tailing.result(PATIENCE_S)
    total = writers * sum(1 + number % 3 for number in range(commands))
    assert [fact.position for fact in seen] == list(range(1, total + 1))
    assert tuple(seen) == ledger.open().recorded(TENANT, 1, total)
    assert all(one.at <= next_one.at for one, next_one in pairwise(seen))
    versions: dict[str, list[int]] = defaultdict(list)
    for fact in seen:
        versions[fact.stream].append(fact.version)
    assert all(each == list(range(1, len(each) + 1)) for each in versions.values())


def test_positions_are_gap_free_in_commit_order_and_a_tailing_reader_skips_nothing(ledger: Ledger) -> None:
    assert_nothing_is_skipped(ledger, ledger.open(), writers=8, commands=50)


class CommitsLate(Around):
    """A deliberately broken log: position 7 was given out, but is seen only after position 9."""

    def recorded(self, tenant: str, first: int, count: int) -> tuple[Recorded, ...]:
        facts = super().recorded(tenant, first, count)
        late = not any(fact.position > 9 for fact in facts)
        return tuple(fact for fact in facts if not (late and fact.position == 7))


def test_the_proof_notices_a_log_that_commits_out_of_order() -> None:
    """Negative control."""
    ledger = InMemory()
    appended(ledger.log, ask("first", {f"pool-{n}": 0 for n in range(9)}, *[taken(str(n)) for n in range(9)]))
    ledger_facts: list[Recorded] = []
    stop = threading.Event()
    stop.set()
    broken = CommitsLate(ledger.log)
    tail(broken, ledger_facts, stop)
    appended(ledger.log, ask("second", {"pool-0": 1}, taken("0")))
    tail(broken, ledger_facts, stop)
    assert [fact.position for fact in ledger_facts] == [1, 2, 3, 4, 5, 6, 8, 9, 10]


def test_a_log_in_memory_keeps_bytes_and_not_objects() -> None:
    log = InMemory().open()
    fact = taken("a")
    assert appended(log, ask("k", {"pool-a": 0}, fact))[0].event is not fact
