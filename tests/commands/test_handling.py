"""Handling, word by word and on both logs: every sentence about the write side is a test here.

Two handlers on one ledger stand for two processes: each has a memory and a connection of its own.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar
from uuid import UUID

import pytest

from commands.capacity import ConfirmHold, HoldPlaces, OpenPool
from commands.catalog import ListOffer
from commands.handling import (
    ATTEMPTS_MAX,
    FACTS_MAX,
    Actor,
    Answer,
    BadKey,
    Boundary,
    Command,
    Handler,
    KeyReused,
    Moment,
    NotPermitted,
    Read,
    TooManyFacts,
    UnreadStream,
)
from commands.log import Append, Busy, Outcome
from commands.memory import STREAMS_MAX, Memory, TooManyStreams
from commands.ordering import PlaceOrder, ReturnGoods
from domain.capacity import HoldUnknown, PlacesHeld, PlacesTaken, Pool, SoldOut, pool_stream
from domain.catalog import SlugTaken
from domain.facts import Event, Recorded
from domain.ordering import OrderExists, OrderPlaced
from domain.values import Code, OrderId, Permission, ReturnId
from infra.eventstore import PostgresLog
from tests.ledgers import Around, InPostgres, Ledger, Log, Overtaken, Watched
from tests.spec import ANA, T0, TENANT, after, document, envelope, given_id, line

PATIENCE_S = 20
OTHER_TENANT = replace(ANA, tenant="other")


@dataclass
class Clock:
    """Says what it is told to."""

    now: datetime = T0

    def __call__(self) -> datetime:
        return self.now


def handler(log: Log, clock: Callable[[], datetime] | None = None) -> Handler:
    return Handler(log, Clock() if clock is None else clock)


def run(log: Log, command: Command, key: str, by: Actor = ANA) -> Answer:
    """By a handler that remembers nothing."""
    return handler(log).handle(command, by=by, key=key)


def order(number: int, quantity: int = 1, pool: str = "p", *, digest: str = "d1") -> PlaceOrder:
    return PlaceOrder(
        order_id=OrderId(UUID(int=number)),
        document=document(str(number), digest=digest),
        lines=(line(pool, quantity),),
        settled=True,
    )


def giveback(number: int, quantity: int, pool: str = "p") -> ReturnGoods:
    return ReturnGoods(
        return_id=ReturnId(UUID(int=number)), document=document(str(number)), lines=(line(pool, -quantity),)
    )


def hold(quantity: int = 1, pool: str = "p") -> HoldPlaces:
    return HoldPlaces(pool=pool, quantity=quantity, ttl_s=60)


def everything(log: Log, tenant: str = TENANT) -> tuple[Recorded, ...]:
    """All that the tenant has, by position."""
    head = run(log, Look(), f"look-{UUID(int=threading.get_ident())}", replace(ANA, tenant=tenant)).position
    return log.recorded(tenant, 1, head)


class Look(Command, permission=Permission.AUDIT):
    """Decides nothing, and so says where the log stands."""

    def read(self, log: Read) -> Boundary:
        return Boundary()

    def decide(self, at: Moment) -> Sequence[Event]:
        return []


def head(log: Log, key: str) -> int:
    return run(log, Look(), key).position


@pytest.fixture
def log(ledger: Ledger) -> Log:
    """A ledger with one pool `p` of ten places."""
    log = ledger.open()
    run(log, OpenPool(pool="p", capacity=10), "open")
    return log


# ── permission ────────────────────────────────────────────────────────────────────────────────────


def test_permission_is_checked_against_the_actor_whatever_door_was_used(log: Log) -> None:
    reader = Actor(TENANT, "ana", frozenset(set(Permission) - {Permission.ORDER_PLACE}))
    with pytest.raises(NotPermitted, match=r"order\.place"):
        run(log, order(1), "k", reader)
    assert log.spent(envelope("k")) is None
    assert run(log, order(1), "k").facts


def test_a_permission_that_was_lost_is_missed_by_a_retry_too(log: Log) -> None:
    run(log, order(1), "k")
    with pytest.raises(NotPermitted):
        run(log, order(1), "k", Actor(TENANT, "ana", frozenset()))


# ── the key ───────────────────────────────────────────────────────────────────────────────────────


def test_the_same_request_again_has_the_same_answer_from_the_facts_at_its_positions(
    ledger: Ledger, log: Log
) -> None:
    first = run(log, order(1, 2), "k")
    for number in (2, 3):
        run(log, order(number), f"k{number}")
    again = run(ledger.open(), order(1, 2), "k")
    assert not first.replayed
    assert again == replace(first, replayed=True)
    assert [fact.position for fact in again.facts] == [2, 3]
    assert [fact.event.name for fact in again.facts] == ["ordering.order-placed", "capacity.places-taken"]


def test_the_same_handler_answers_a_retry_as_it_did_the_first_time(log: Log) -> None:
    mine = handler(log)
    first = mine.handle(hold(), by=ANA, key="k")
    assert mine.handle(hold(), by=ANA, key="k") == replace(first, replayed=True)


def test_a_retry_is_answered_even_when_the_rule_would_refuse_it_now(log: Log) -> None:
    first = run(log, hold(10), "k")
    assert run(log, hold(10), "k") == replace(first, replayed=True)


def test_a_key_never_expires(log: Log) -> None:
    first = run(log, hold(), "k")
    years_later = handler(log, Clock(after(20 * 365 * 86_400)))
    assert years_later.handle(hold(), by=ANA, key="k") == replace(first, replayed=True)


def test_another_request_under_a_spent_key_is_refused(log: Log) -> None:
    run(log, hold(1), "k")
    for other in (hold(2), hold(11), order(1), OpenPool(pool="p", capacity=10)):
        with pytest.raises(KeyReused):
            run(log, other, "k")


def test_a_key_is_its_actors_and_its_tenants_own(log: Log) -> None:
    run(log, OpenPool(pool="p", capacity=10), "open", OTHER_TENANT)
    ben = replace(ANA, name="ben")
    answers = [run(log, hold(), "k", by) for by in (ANA, ben, OTHER_TENANT)]
    assert [answer.replayed for answer in answers] == [False] * 3
    assert len({answer.facts[0].fact_id for answer in answers}) == 3


def test_a_refusal_leaves_no_mark(log: Log) -> None:
    before = head(log, "before")
    with pytest.raises(SoldOut):
        run(log, order(1, 11), "k")
    assert log.spent(envelope("k")) is None
    assert head(log, "after") == before
    assert run(log, order(1, 10), "k").facts


def test_an_empty_decision_leaves_its_mark(log: Log) -> None:
    run(log, order(1), "first")
    empty = run(log, order(1), "second")
    assert empty.facts == ()
    assert empty.position == head(log, "look")
    run(log, order(2), "third")
    assert run(log, order(1), "second") == replace(empty, replayed=True)
    with pytest.raises(KeyReused):
        run(log, order(3), "second")


@pytest.mark.parametrize("key", ["", "k" * 201, "a\nb", "\x00"])
def test_a_key_that_could_blur_into_another_is_refused_by_name(log: Log, key: str) -> None:
    with pytest.raises(BadKey):
        run(log, order(1), key)


def test_a_key_may_be_as_long_as_the_limit_says_in_any_script(log: Log) -> None:
    first = run(log, order(1), "☕" * 200)
    assert run(log, order(1), "☕" * 200) == replace(first, replayed=True)


def test_a_concurrent_twin_waits_for_the_first(stored: InPostgres) -> None:
    run(stored.open(), OpenPool(pool="p", capacity=10), "open")
    handlers = [handler(stored.open()) for _ in range(2)]
    with stored.admin() as conn, ThreadPoolExecutor(2) as threads:
        with conn.transaction():
            conn.execute("SELECT position FROM head FOR UPDATE")  # as a first that is not done yet
            twins = [threads.submit(each.handle, hold(), by=ANA, key="k") for each in handlers]
            with pytest.raises(TimeoutError):
                twins[0].result(0.3)
            assert not any(twin.done() for twin in twins)
        answers = [twin.result(PATIENCE_S) for twin in twins]
    assert sorted(answer.replayed for answer in answers) == [False, True]
    assert answers[0].facts == answers[1].facts


def test_eight_twins_have_one_effect_and_one_answer(stored: InPostgres) -> None:
    run(stored.open(), OpenPool(pool="p", capacity=10), "open")
    handlers = [handler(stored.open()) for _ in range(8)]
    for number in range(10):
        start = threading.Barrier(8)

        def twin(mine: Handler, number: int = number, start: threading.Barrier = start) -> Answer:
            start.wait()
            return mine.handle(order(number), by=ANA, key=f"k{number}")

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(twin, handlers))
        assert sum(not answer.replayed for answer in answers) == 1
        assert len({answer.facts for answer in answers}) == 1
    assert [type(fact.event) for fact in everything(stored.open())].count(OrderPlaced) == 10


def test_a_creating_command_expects_its_stream_to_be_new_without_a_look(log: Log) -> None:
    watched = Watched(log)
    mine, other = handler(watched), handler(log)
    mine.handle(order(1), by=ANA, key="k1")
    assert watched.reads == [{"pool-p": 0}]
    assert watched.appends[0].versions == {"pool-p": 1, f"order-{UUID(int=1)}": 0}
    assert other.handle(order(1), by=ANA, key="k2").facts == ()
    with pytest.raises(OrderExists):
        handler(log).handle(order(1, digest="d2"), by=ANA, key="k3")


# ── the boundary ──────────────────────────────────────────────────────────────────────────────────


class TakeIfBothAreEmpty(Command, permission=Permission.PLACES_HOLD):
    """Reads two pools and writes one of them: the shape in which write skew happens."""

    mine: Code
    other: Code

    def read(self, log: Read) -> Boundary:
        return Boundary(mine=log(pool_stream(self.mine), Pool), other=log(pool_stream(self.other), Pool))

    def decide(self, at: Moment, *, mine: Pool, other: Pool) -> Sequence[Event]:
        if mine.used or other.used:
            raise SoldOut
        return [PlacesTaken(pool=self.mine, quantity=1, order_id=OrderId(at.id(0)))]


class ForgetsWhatWasOnlyRead(Around):
    """A deliberately broken log: it pins only what is written."""

    def append(self, append: Append) -> Outcome:
        written = {fact.stream for fact in append.facts}
        pinned = {stream: version for stream, version in append.versions.items() if stream in written}
        return self.log.append(replace(append, versions=pinned))


def assert_no_write_skew(log: Log) -> None:
    """Each of two has read both pools; the first to write must spoil it for the second."""
    run(log, OpenPool(pool="a"), "a")
    run(log, OpenPool(pool="b"), "b")
    mine, other = handler(log), handler(log)
    for each in (mine, other):
        each.handle(ExpireBoth(pools=("a", "b")), by=ANA, key="warm")
    mine.handle(TakeIfBothAreEmpty(mine="a", other="b"), by=ANA, key="mine")
    try:
        other.handle(TakeIfBothAreEmpty(mine="b", other="a"), by=ANA, key="other")
    except SoldOut:
        return
    raise AssertionError("write skew")


class ExpireBoth(Command, permission=Permission.PLACES_HOLD):
    """Reads pools into a handler's memory and decides nothing."""

    pools: tuple[Code, ...]

    def read(self, log: Read) -> Boundary:
        return Boundary(pools=log.each(map(pool_stream, self.pools), Pool))

    def decide(self, at: Moment, *, pools: dict[str, Pool]) -> Sequence[Event]:
        return []


def test_everything_that_was_read_is_pinned_written_or_not(ledger: Ledger) -> None:
    assert_no_write_skew(ledger.open())


def test_the_proof_notices_a_log_that_forgets_what_was_only_read(ledger: Ledger) -> None:
    """Negative control."""
    with pytest.raises(AssertionError, match="write skew"):
        assert_no_write_skew(ForgetsWhatWasOnlyRead(ledger.open()))


def test_no_write_skew_between_connections_that_race(stored: InPostgres) -> None:
    handlers, opener = [handler(stored.open()) for _ in range(2)], stored.open()
    for number in range(30):
        pools = (f"a{number}", f"b{number}")
        for pool in pools:
            run(opener, OpenPool(pool=pool), f"open-{pool}")
        for each in handlers:
            each.handle(ExpireBoth(pools=pools), by=ANA, key=f"warm-{number}")
        start = threading.Barrier(2)

        def take(which: int, pools: tuple[str, str] = pools, start: threading.Barrier = start) -> bool:
            start.wait()
            command = TakeIfBothAreEmpty(mine=pools[which], other=pools[1 - which])
            try:
                handlers[which].handle(command, by=ANA, key=f"take-{pools[which]}")
            except SoldOut:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            assert sum(threads.map(take, (0, 1))) == 1


class Smuggle(Command, permission=Permission.PLACES_HOLD):
    """A bug: writes what it has not read."""

    def read(self, log: Read) -> Boundary:
        return Boundary(pool=log("pool-p", Pool))

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        return [PlacesTaken(pool=code, quantity=1, order_id=OrderId(at.id(0))) for code in ("p", "elsewhere")]


def test_a_stream_that_was_not_read_cannot_be_written(log: Log) -> None:
    with pytest.raises(UnreadStream, match="pool-elsewhere"):
        run(log, Smuggle(), "k")
    assert log.spent(envelope("k")) is None


# ── now and ids ───────────────────────────────────────────────────────────────────────────────────


def test_now_is_never_before_what_the_boundary_has_seen(log: Log) -> None:
    clock = Clock(after(100))
    mine = handler(log, clock)
    mine.handle(hold(), by=ANA, key="k1")
    clock.now = after(30)
    late = mine.handle(hold(), by=ANA, key="k2").facts[0]
    assert isinstance(late.event, PlacesHeld)
    assert (late.event.at, late.event.expires_at, late.at) == (after(100), after(160), after(100))


def test_a_clock_that_goes_back_brings_no_dead_hold_to_life(log: Log) -> None:
    clock = Clock()
    mine = handler(log, clock)
    mine.handle(hold(10), by=ANA, key="dies at 60")
    clock.now = after(60)
    mine.handle(hold(10), by=ANA, key="takes its places")
    clock.now = after(59)
    dead = given_id("dies at 60")
    with pytest.raises(HoldUnknown):
        mine.handle(ConfirmHold.model_validate({"pool": "p", "hold_id": dead}), by=ANA, key="confirm")
    with pytest.raises(HoldUnknown):
        run(log, ConfirmHold.model_validate({"pool": "p", "hold_id": dead}), "confirm")


def test_recorded_time_never_decreases_in_a_ledger_whatever_the_stream_tenant_or_clock(
    ledger: Ledger, log: Log
) -> None:
    for seconds, by, pool in ((50, ANA, "q"), (10, ANA, "r"), (0, OTHER_TENANT, "q"), (60, ANA, "s")):
        clock = Clock(after(seconds))
        handler(ledger.open(), clock).handle(OpenPool(pool=pool), by=by, key=f"k-{pool}")
    mine = [fact for by in (TENANT, "other") for fact in everything(log, by)]
    by_position = sorted(mine, key=lambda fact: fact.position)
    assert [fact.at for fact in by_position] == [T0, after(50), after(50), after(50), after(60)]


def test_an_empty_decision_moves_no_time(log: Log) -> None:
    handler(log, Clock(after(99))).handle(Look(), by=ANA, key="look")
    assert run(log, hold(), "k").facts[0].at == T0


def test_business_time_is_the_facts_own(log: Log) -> None:
    placed = run(log, order(1), "k").facts[0]
    assert isinstance(placed.event, OrderPlaced)
    assert placed.event.document.placed_at.year == 2010
    assert placed.at == T0


class Remembers(Command, permission=Permission.PLACES_HOLD):
    """Keeps what it was given at each decision."""

    moments: ClassVar[list[tuple[datetime, UUID, UUID]]] = []

    def read(self, log: Read) -> Boundary:
        return Boundary(pool=log("pool-p", Pool))

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        self.moments.append((at.now, at.id(0), at.id(1)))
        return [PlacesTaken(pool="p", quantity=1, order_id=OrderId(at.id(0)))]


def test_ids_are_the_same_when_the_decision_is_taken_again(ledger: Ledger, log: Log) -> None:
    Remembers.moments.clear()
    overtaken = Overtaken(log, 3, lambda n: taken_by_another(ledger, n))
    answer = run(overtaken, Remembers(), "k")
    assert len(Remembers.moments) == 4
    assert len(set(Remembers.moments)) == 1
    assert Remembers.moments[0][1:] == (given_id("k", 0), given_id("k", 1))
    assert answer.facts[0].fact_id == answer.facts[0]._replace(position=1).fact_id


def test_a_facts_id_is_the_same_after_a_restore_though_its_position_is_not(ledger: Ledger, log: Log) -> None:
    run(log, order(1), "lost for good")
    before = run(log, order(2), "sent again")
    ledger.cut(1)
    after_restore = run(ledger.open(), order(2), "sent again")
    assert [fact.fact_id for fact in after_restore.facts] == [fact.fact_id for fact in before.facts]
    assert [fact.position for fact in after_restore.facts] != [fact.position for fact in before.facts]


# ── the append ────────────────────────────────────────────────────────────────────────────────────


def round_trips(log: PostgresLog, act: Callable[[], object]) -> int:
    """How often the server was done and waited for the client."""
    pgconn = log.group.connection.open().pgconn
    with tempfile.TemporaryFile("w+") as trace:
        pgconn.trace(trace.fileno())
        act()
        pgconn.untrace()
        trace.seek(0)
        return trace.read().count("ReadyForQuery")


def test_an_append_is_one_round_trip_and_leaves_nothing_locked(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.groupcommit.NOTIFY_S", PATIENCE_S)
    log = stored.open()
    mine = handler(log)
    mine.handle(OpenPool(pool="p"), by=ANA, key="open")
    mine.handle(order(0), by=ANA, key="warm")
    assert round_trips(log, lambda: mine.handle(order(1), by=ANA, key="k1")) == 1
    with stored.admin() as conn:
        run(stored.open(), order(2), "k2")
        assert round_trips(log, lambda: mine.handle(order(3), by=ANA, key="k3")) == 2
        locks = "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() AND relation = 'head'::regclass"
        assert conn.execute(locks).fetchone() == (0,)


def taken_by_another(ledger: Ledger, number: int) -> None:
    run(ledger.open(), order(1_000 + number), f"other-{number}")


def overtaken(ledger: Ledger, log: Log, times: int) -> tuple[Overtaken, Handler]:
    """A warm handler whose next appends come too late, that many times."""
    watched = Overtaken(log, 0, lambda number: taken_by_another(ledger, number))
    mine = handler(watched)
    mine.handle(order(1), by=ANA, key="warm")
    watched.reads.clear()
    watched.appends.clear()
    watched.times = times
    return watched, mine


def test_a_conflict_brings_the_newer_facts_so_that_deciding_again_costs_no_read(
    ledger: Ledger, log: Log
) -> None:
    watched, mine = overtaken(ledger, log, times=1)
    mine.handle(order(2), by=ANA, key="k")
    assert (watched.reads, watched.turns) == ([], [])
    with pytest.raises(SoldOut):  # 1 and 2 and the other's are taken: it has seen all three
        mine.handle(order(3, 8), by=ANA, key="k3")


def test_after_a_second_conflict_the_writer_takes_turns_for_what_is_contended(
    ledger: Ledger, log: Log
) -> None:
    watched, mine = overtaken(ledger, log, times=2)
    mine.handle(order(2), by=ANA, key="k")
    assert watched.turns == [("pool-p",)]
    assert len(watched.reads) == 1  # of what came while it waited for its turn


def test_a_writer_that_is_always_overtaken_gives_up_by_name_and_has_written_nothing(
    ledger: Ledger, log: Log
) -> None:
    run(log, OpenPool(pool="wide"), "wide")
    others = handler(ledger.open())

    def someone_else(number: int) -> None:
        others.handle(order(1_000 + number, pool="wide"), by=ANA, key=f"other-{number}")

    unlucky = Overtaken(log, ATTEMPTS_MAX, someone_else)
    with pytest.raises(Busy):
        run(unlucky, order(2, pool="wide"), "k")
    assert log.spent(envelope("k")) is None
    assert run(log, order(2, pool="wide"), "k").facts


class TakeWhereTheIndexPoints(Command, permission=Permission.PLACES_HOLD):
    """Reads in steps: how much of `index` is used says which pool comes next."""

    def read(self, log: Read) -> Boundary:
        index = log("pool-index", Pool)
        return Boundary(index=index, place=log(f"pool-n{index.used}", Pool))

    def decide(self, at: Moment, *, index: Pool, place: Pool) -> Sequence[Event]:
        return [PlacesTaken(pool=f"n{index.used}", quantity=1, order_id=OrderId(at.id(0)))]


class MovesWhileWaiting(Overtaken):
    """The contended stream moves once more between the conflict and the turn."""

    def turn(self, tenant: str, streams: Iterable[str]) -> AbstractContextManager[None]:
        streams = tuple(streams)
        if streams:
            self.other(99)
        return super().turn(tenant, streams)


def test_what_is_read_in_steps_follows_what_came_while_waiting_for_a_turn(ledger: Ledger, log: Log) -> None:
    run(log, OpenPool(pool="index"), "index")
    moving = MovesWhileWaiting(
        log, 2, lambda n: void(run(ledger.open(), order(1_000 + n, pool="index"), f"other-{n}"))
    )
    fact = run(moving, TakeWhereTheIndexPoints(), "k").facts[0]
    assert fact.stream == "pool-n3"


def void(_: object) -> None:
    """Somebody else's answer is nobody's business."""


def test_contending_writers_all_get_through(stored: InPostgres) -> None:
    run(stored.open(), OpenPool(pool="p"), "open")
    handlers = [handler(stored.open()) for _ in range(8)]

    def sell(which: int) -> None:
        for number in range(25):
            handlers[which].handle(order(1_000 * which + number), by=ANA, key=f"{which}-{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(sell, range(8)))
    versions = [f.version for f in everything(stored.open()) if f.stream == "pool-p"]
    assert versions == list(range(1, 202))


def test_one_handler_serves_many_threads(stored: InPostgres) -> None:
    mine = handler(stored.open())
    mine.handle(OpenPool(pool="p"), by=ANA, key="open")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: mine.handle(order(number), by=ANA, key=f"k{number}"), range(40)))
    assert len(everything(stored.open())) == 81


# ── limits ────────────────────────────────────────────────────────────────────────────────────────


class Bulk(Command, permission=Permission.PLACES_HOLD):
    streams: int
    facts: int

    def read(self, log: Read) -> Boundary:
        return Boundary(pools=log.each((pool_stream(f"b{n}") for n in range(self.streams)), Pool))

    def decide(self, at: Moment, *, pools: dict[str, Pool]) -> Sequence[Event]:
        return [
            PlacesTaken(pool=f"b{n % self.streams}", quantity=1, order_id=OrderId(at.id(0)))
            for n in range(self.facts)
        ]


def test_the_largest_command_passes(log: Log) -> None:
    answer = run(log, Bulk(streams=STREAMS_MAX, facts=FACTS_MAX), "k")
    assert len(answer.facts) == 5_000
    assert {fact.version for fact in answer.facts} == {1, 2, 3}
    assert log.recorded(TENANT, 2, 5_000) == answer.facts


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (Bulk(streams=1, facts=FACTS_MAX + 1), TooManyFacts),
        (Bulk(streams=STREAMS_MAX + 1, facts=1), TooManyStreams),
    ],
)
def test_one_more_is_refused_by_name_and_nothing_is_written(
    log: Log, command: Bulk, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal, match=r"5,001 facts|more than 2,000 streams"):
        run(log, command, "k")
    assert log.spent(envelope("k")) is None
    assert head(log, "look") == 1


# ── uniqueness ────────────────────────────────────────────────────────────────────────────────────


def offer(code: str, slug: str = "white-heart") -> ListOffer:
    return ListOffer(offer=code, title="", slug=slug)


def test_a_slug_is_used_once_even_by_two_who_both_saw_it_free(ledger: Ledger, log: Log) -> None:
    mine, other = handler(log), handler(ledger.open())
    other.handle(ReadSlug(slug="white-heart"), by=ANA, key="saw it free")
    mine.handle(offer("heart"), by=ANA, key="k1")
    with pytest.raises(SlugTaken):
        other.handle(offer("lantern"), by=ANA, key="k2")
    assert run(log, offer("heart"), "k", OTHER_TENANT).facts  # another shop's slug is its own


class ReadSlug(Command, permission=Permission.OFFER_LIST):
    slug: str

    def read(self, log: Read) -> Boundary:
        return Boundary(pool=log(log.claim("slug", self.slug), Pool))

    def decide(self, at: Moment, *, pool: Pool) -> Sequence[Event]:
        return []


def test_of_many_who_race_for_a_slug_one_gets_it(stored: InPostgres) -> None:
    handlers = [handler(stored.open()) for _ in range(4)]
    start = threading.Barrier(4)

    def claim(which: int) -> bool:
        start.wait()
        try:
            handlers[which].handle(offer(f"offer-{which}"), by=ANA, key=f"k{which}")
        except SlugTaken:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(claim, range(4))) == 1


def test_a_claims_name_and_fact_hold_nothing_readable(log: Log) -> None:
    claim = run(log, offer("heart", "white-heart"), "k").facts[0]
    assert claim.event.name == "catalog.slug-claimed"
    assert claim.stream == log.claim(TENANT, "slug", "white-heart")
    assert claim.stream != log.claim("other", "slug", "white-heart")
    assert b"white-heart" not in claim.event.stored() + claim.stream.encode()


def test_a_claim_cannot_be_found_by_guessing_without_the_key(stored: InPostgres) -> None:
    theirs = PostgresLog(stored.settings.role_dsn("app"), stored.schema, b"another key")
    assert theirs.claim(TENANT, "slug", "x") != stored.open().claim(TENANT, "slug", "x")


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_from_memory_is_believed_only_when_the_log_confirms_what_it_rests_on(
    ledger: Ledger, log: Log
) -> None:
    watched = Watched(log)
    mine, other = handler(watched), handler(ledger.open())
    mine.handle(order(1, 10), by=ANA, key="k1")
    other.handle(giveback(2, 4), by=ANA, key="k2")
    mine.handle(order(3, 4), by=ANA, key="k3")
    watched.reads.clear()
    watched.appends.clear()
    with pytest.raises(SoldOut):
        mine.handle(order(4, 1), by=ANA, key="k4")
    assert (watched.reads, [(a.spends, a.facts) for a in watched.appends]) == ([], [(False, ())])
    assert watched.appends[0].versions["pool-p"] == 4


def test_a_handler_with_hardly_any_memory_decides_the_same(log: Log) -> None:
    forgetful = Handler(log, Clock(), Memory(size_max=1))
    for pool in ("q", "r"):
        forgetful.handle(OpenPool(pool=pool, capacity=3), by=ANA, key=f"open-{pool}")
    cart = PlaceOrder(
        order_id=OrderId(UUID(int=1)),
        document=document(),
        lines=tuple(line(pool, 2) for pool in ("p", "q", "r")),
        settled=True,
    )
    assert len(forgetful.handle(cart, by=ANA, key="k1").facts) == 4
    with pytest.raises(SoldOut):
        forgetful.handle(order(2, 2, pool="r"), by=ANA, key="k2")
    assert len(forgetful.memory.states) == 1


class CountsTwice(Command, permission=Permission.PLACES_HOLD):
    """Reads one stream as two states, of which a handler may know one already."""

    def read(self, log: Read) -> Boundary:
        return Boundary(known=log("pool-p", Pool), new=log.fresh("pool-p", Tally))

    def decide(self, at: Moment, *, known: Pool, new: Tally) -> Sequence[Event]:
        assert known.open
        return [PlacesTaken(pool="p", quantity=new.facts, order_id=OrderId(at.id(0)))]


@dataclass
class Tally:
    facts: int = 0

    def apply(self, event: Event) -> None:
        self.facts += 1


def test_of_two_states_of_one_stream_the_one_that_has_seen_less_is_believed(log: Log) -> None:
    mine = handler(log)
    mine.handle(order(1), by=ANA, key="warm")
    fact = mine.handle(CountsTwice(), by=ANA, key="k").facts[0]
    assert isinstance(fact.event, PlacesTaken)
    assert (fact.version, fact.event.quantity) == (3, 2)


def test_a_ledger_that_was_restored_behind_a_handlers_back_is_read_anew(ledger: Ledger, log: Log) -> None:
    mine = handler(log)
    for number in range(5):
        mine.handle(order(number), by=ANA, key=f"k{number}")
    ledger.cut(3)  # the pool and one order are left
    accepted = mine.handle(order(7, 9), by=ANA, key="k7")
    assert [fact.version for fact in accepted.facts] == [1, 3]


def test_a_ledger_that_was_emptied_is_no_endless_conflict(ledger: Ledger, log: Log) -> None:
    mine = handler(log)
    mine.handle(order(1), by=ANA, key="k1")
    ledger.cut(0)
    assert mine.handle(OpenPool(pool="p", capacity=1), by=ANA, key="open").facts[0].version == 1
    assert mine.handle(order(1), by=ANA, key="k1").facts[0].position == 2


def test_a_refusal_remembered_from_before_a_restore_is_not_believed(ledger: Ledger, log: Log) -> None:
    mine = handler(log)
    mine.handle(order(1, 10), by=ANA, key="k1")
    ledger.cut(1)
    assert mine.handle(order(2, 10), by=ANA, key="k2").facts


def test_a_boundary_half_behind_and_half_ahead_of_a_restored_ledger_settles(ledger: Ledger, log: Log) -> None:
    run(log, OpenPool(pool="q"), "q")
    mine = handler(log)
    mine.handle(order(1), by=ANA, key="k1")
    mine.handle(ExpireBoth(pools=("p", "q")), by=ANA, key="warm")
    ledger.cut(2)
    run(ledger.open(), order(2, pool="q"), "k2")
    accepted = mine.handle(TakeBoth(), by=ANA, key="k3")
    assert [(fact.stream, fact.version) for fact in accepted.facts] == [("pool-p", 2), ("pool-q", 3)]


class TakeBoth(Command, permission=Permission.PLACES_HOLD):
    def read(self, log: Read) -> Boundary:
        return Boundary(pools=log.each(("pool-p", "pool-q"), Pool))

    def decide(self, at: Moment, *, pools: dict[str, Pool]) -> Sequence[Event]:
        return [PlacesTaken(pool=code, quantity=1, order_id=OrderId(at.id(0))) for code in ("p", "q")]
