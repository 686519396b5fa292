"""Group commit: who shares a commit, who is told what, and what a batch must never do."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
import pytest

from commands.capacity import OpenPool
from commands.handling import Answer, Ask, Handler
from commands.log import Append, Appended, Outcome, Overloaded, Pending, Spent, Stale, Undone
from domain.capacity import Pool, SoldOut
from infra.eventstore import LogTicket, PostgresLog
from infra.groupcommit import BATCH_FACTS_MAX, Asked, Batch, Ticket
from tests.commands.test_handling import everything, giveback, hold, order
from tests.infra.test_log_contract import ask, taken
from tests.ledgers import CLAIM_KEY, InPostgres
from tests.spec import ANA, T0, TENANT

PATIENCE_S = 20


@contextmanager
def head_locked(stored: InPostgres) -> Iterator[None]:
    """Somebody else holds the head row: whatever is submitted meanwhile queues up."""
    with stored.admin() as conn, conn.transaction():
        conn.execute("SELECT position FROM head FOR UPDATE")
        yield


def submitted(stored: InPostgres, log: PostgresLog, appends: Sequence[Append]) -> list[Outcome]:
    """All of them while the head is locked, behind one that went before: they are one batch."""
    with head_locked(stored):
        first = log.submit(ask("first", {"first": 0}))
        waiting_s = time.monotonic() + PATIENCE_S
        while log.group.queue and time.monotonic() < waiting_s:
            time.sleep(0.001)
        pending = [log.submit(append) for append in appends]
    first.result()
    return [each.result() for each in pending]


def commits(stored: InPostgres) -> int:
    with stored.admin() as conn:
        row = conn.execute("SELECT count(DISTINCT xmin::text) FROM commands").fetchone()
        assert row is not None
        return int(row[0])


# ── a batch ───────────────────────────────────────────────────────────────────────────────────────


def test_what_queues_during_a_commit_is_recorded_by_the_next_one_in_order(stored: InPostgres) -> None:
    log = stored.open()
    outcomes = submitted(stored, log, [ask(f"k{n}", {f"pool-{n}": 0}, taken(str(n))) for n in range(40)])
    assert [outcome.position for outcome in outcomes if isinstance(outcome, Appended)] == list(range(1, 41))
    assert [fact.stream for fact in log.recorded(TENANT, 1, 40)] == [f"pool-{n}" for n in range(40)]
    assert commits(stored) == 2


def test_one_stream_may_be_written_by_many_commands_of_a_batch(stored: InPostgres) -> None:
    log = stored.open()
    outcomes = submitted(stored, log, [ask(f"k{n}", {"pool-a": n}, taken("a", n + 1)) for n in range(5)])
    assert [type(outcome) for outcome in outcomes] == [Appended] * 5
    assert [fact.version for fact in log.read(TENANT, {"pool-a": 0})] == [1, 2, 3, 4, 5]
    assert commits(stored) == 2


def test_a_batch_is_limited_in_facts_and_takes_at_least_one_command(stored: InPostgres) -> None:
    log = stored.open()
    large = [taken("a")] * (BATCH_FACTS_MAX + 50)
    appends = [ask("large", {"pool-a": 0}, *large), ask("small", {"pool-b": 0}, taken("b"))]
    outcomes = submitted(stored, log, appends)
    assert [type(outcome) for outcome in outcomes] == [Appended] * 2
    assert commits(stored) == 3


def test_each_command_of_a_batch_is_told_its_own(stored: InPostgres) -> None:
    """Two that are fine around one that is stale, one that is spent, and those that built on them."""
    log, other = stored.open(), stored.open()
    other.append(ask("theirs", {"pool-a": 0}, taken("a", 7)))
    other.append(ask("used", {"pool-b": 0}, taken("b"), digest=b"used"))
    outcomes = submitted(
        stored,
        log,
        [
            ask("one", {"pool-c": 0}, taken("c")),
            ask("two", {"pool-a": 0, "pool-d": 0}, taken("a"), taken("d")),
            ask("three", {"pool-a": 1}, taken("a")),  # right by chance: version 1 is somebody else's
            ask("four", {"pool-d": 1, "pool-e": 0}, taken("e")),
            ask("used", {"pool-b": 1, "pool-f": 0}, taken("f")),
            ask("five", {"pool-f": 1}, taken("f")),
            ask("six", {"pool-c": 1, "pool-g": 0}, taken("g")),
        ],
    )
    kinds = [Appended, Stale, Undone, Undone, Spent, Undone, Appended]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert [fact.event for fact in outcomes[1].newer] == [taken("a", 7)]  # type: ignore[union-attr]
    assert outcomes[4] == Spent(b"used", 2, 1)
    assert [fact.stream for fact in log.recorded(TENANT, 3, 9)] == ["pool-c", "pool-g"]
    assert not any(log.spent(ask(key, {}).envelope) for key in ("two", "three", "four", "five"))


def test_a_twin_in_the_queue_waits_for_the_first_and_is_told_the_same(stored: InPostgres) -> None:
    log = stored.open()
    twins = [ask("twin", {"pool-a": 0}, taken("a")) for _ in range(3)]
    outcomes = submitted(stored, log, twins)
    assert isinstance(outcomes[0], Appended)
    assert outcomes[1:] == [Spent(b"d", 1, 1)] * 2


def test_a_stale_neighbour_in_one_process_goes_into_the_next_batch_and_learns_what_is_new(
    stored: InPostgres,
) -> None:
    log = stored.open()
    outcomes = submitted(
        stored, log, [ask("one", {"pool-a": 0}, taken("a", 1)), ask("two", {"pool-a": 0}, taken("a", 2))]
    )
    assert isinstance(outcomes[0], Appended)
    assert [fact.event for fact in outcomes[1].newer] == [taken("a", 1)]  # type: ignore[union-attr]


def test_a_broken_command_does_not_break_its_neighbours(stored: InPostgres) -> None:
    """The server refuses a NUL in text: everybody else of the batch is recorded."""
    log = stored.open()
    outcomes: list[Any] = []
    with head_locked(stored):
        first = log.submit(ask("first", {"first": 0}))
        while log.group.queue:
            time.sleep(0.001)
        pending = [
            log.submit(ask("one", {"pool-a": 0}, taken("a"))),
            log.submit(ask("two", {"bad\x00": 0, "pool-b": 0}, taken("b"))),
            log.submit(ask("three", {"pool-b": 1, "pool-c": 0}, taken("c"))),
            log.submit(ask("four", {"pool-a": 1}, taken("a"))),
        ]
    for each in (first, *pending):
        try:
            outcomes.append(type(each.result()))
        except psycopg.Error as broken:
            outcomes.append(type(broken).__mro__[1])
    assert outcomes == [Appended, Appended, psycopg.DataError, Undone, Appended]


def test_what_follows_an_append_that_failed_is_not_sent_at_all(stored: InPostgres) -> None:
    log, other = stored.open(), stored.open()
    other.append(ask("theirs", {"pool-a": 0}, taken("a", 7)))
    mine = log.submit(ask("mine", {"pool-a": 0}, taken("a")))
    assert isinstance(mine.result(), Stale)
    follower = ask("next", {"pool-a": 1}, taken("a"))  # right by chance
    assert log.submit(follower, [mine]).result() == Undone()
    assert len(log.read(TENANT, {"pool-a": 0})) == 1


def test_a_refusal_is_confirmed_without_a_mark_and_without_a_lock(stored: InPostgres) -> None:
    log = stored.open()
    log.append(ask("one", {"pool-a": 0}, taken("a")))
    base = ask("asks", {"pool-a": 1})
    confirm = Append(base.envelope, base.digest, base.command, base.versions, (), base.at, spends=False)
    with head_locked(stored):
        assert log.append(confirm) == Appended((), 1)
    assert log.spent(base.envelope) is None
    log.append(ask("two", {"pool-a": 1}, taken("a", 2)))
    assert isinstance(log.append(confirm), Stale)
    log.append(ask("asks", {"pool-b": 0}))
    assert isinstance(log.append(confirm), Spent)


def test_a_raised_epoch_voids_what_was_read(stored: InPostgres) -> None:
    log = stored.open()
    log.append(ask("one", {"pool-a": 0}, taken("a")))
    with stored.admin() as conn:
        conn.execute("UPDATE head SET epoch = epoch + 1")
    assert log.append(ask("two", {"pool-a": 1}, taken("a"))) == Stale(())
    assert isinstance(log.append(ask("two", {"pool-a": 1}, taken("a"))), Appended)


def test_what_was_read_before_a_restore_is_void_in_the_queue_too_though_its_versions_fit(
    stored: InPostgres,
) -> None:
    """Another process was there first: the version that was read exists again, with other facts in it."""
    log, other = stored.open(), stored.open()
    log.append(ask("lost", {"pool-a": 0}, taken("a")))
    stored.cut(0)
    with stored.admin() as conn:
        conn.execute("UPDATE head SET epoch = epoch + 1")
    other.append(ask("new", {"pool-a": 0}, taken("a", 9)))
    before = log.epoch
    with head_locked(stored):
        first = log.submit(replace(ask("one", {"pool-b": 0}, taken("b")), epoch=before))
        waiting_s = time.monotonic() + PATIENCE_S
        while log.group.queue and time.monotonic() < waiting_s:
            time.sleep(0.001)
        second = log.submit(replace(ask("two", {"pool-a": 1}, taken("a", 2)), epoch=before))
    assert first.result() == Stale(())
    assert second.result() == Stale(())
    assert log.epoch == before + 1


def test_a_decision_taken_while_the_news_of_a_restore_is_on_its_way_rests_on_the_restored_ledger(
    stored: InPostgres,
) -> None:
    """It comes after the log knows, and before whoever was told first has forgotten anything."""
    handler = Handler(stored.open(), lambda: T0)
    handler.handle(OpenPool(pool="a", capacity=10), by=ANA, key="open")
    handler.handle(order(1, 1, "a"), by=ANA, key="lost")
    with stored.admin() as conn:
        conn.execute("UPDATE head SET epoch = epoch + 1")
    stored.cut(1)
    Handler(stored.open(), lambda: T0).handle(order(2, 10, "a"), by=ANA, key="all")
    assert handler.log.submit(replace(ask("any", {"pool-b": 0}), epoch=1)).result() == Stale(())
    with pytest.raises(SoldOut):
        handler.handle(order(3, 2, "a"), by=ANA, key="more")


def test_the_epoch_is_known_before_the_first_fact_is_read(stored: InPostgres) -> None:
    """Else a restore between the first read and the first append would go by unnoticed."""
    log = stored.open()
    assert log.epoch == 0
    assert log.recall(TENANT, {"pool-a": None}).epoch == log.epoch == 1


# ── the queue ─────────────────────────────────────────────────────────────────────────────────────


def test_those_who_came_together_are_waited_for_and_who_comes_alone_soon_waits_for_nobody(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one call records has one time."""
    monkeypatch.setattr("infra.groupcommit.LINGER_S_MAX", PATIENCE_S)
    log = stored.open()

    def submit(number: int) -> LogTicket:
        return log.submit(ask(f"k{number}", {f"pool-{number}": 0}, taken(str(number))))

    def times(pending: list[LogTicket]) -> set[datetime]:
        outcomes = [each.result() for each in pending]
        return {fact.at for outcome in outcomes if isinstance(outcome, Appended) for fact in outcome.facts}

    with head_locked(stored):
        together = [submit(number) for number in range(9)]
        time.sleep(0.3)
    assert len(times(together)) <= 2
    back = []
    for number in range(10, 18):
        back.append(submit(number))
        time.sleep(0.01)
    assert len(times(back)) == 1
    for number in range(20, 26):
        submit(number).result()
    assert log.group.company == 1


def test_a_full_queue_turns_callers_away_and_loses_nobody(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.groupcommit.QUEUE_FACTS_MAX", 10)
    log = stored.open()
    accepted: list[LogTicket] = []

    def submit(number: int) -> None:
        accepted.append(log.submit(ask(f"k{number}", {f"pool-{number}": 0}, taken(str(number)))))

    with head_locked(stored):
        with pytest.raises(Overloaded, match="wait for the log already"):
            deque(map(submit, range(20)))
        assert 4 <= len(accepted) <= 10  # as many as are on their way, and as many as may wait
    assert [type(each.result()) for each in accepted] == [Appended] * len(accepted)
    assert isinstance(log.append(ask("later", {"pool-l": 0}, taken("l"))), Appended)


def test_closing_records_what_waits(stored: InPostgres) -> None:
    log = stored.open()
    with head_locked(stored):
        pending = [log.submit(ask(f"k{n}", {f"pool-{n}": 0}, taken(str(n)))) for n in range(9)]
        closing = threading.Thread(target=log.group.close)
        closing.start()
    closing.join(PATIENCE_S)
    assert [type(each.result()) for each in pending] == [Appended] * 9
    assert isinstance(log.append(ask("after", {"pool-z": 0}, taken("z"))), Appended)


def test_listeners_are_told_after_the_commit_and_not_for_each_of_them(stored: InPostgres) -> None:
    log = stored.open()
    told: list[float] = []
    with stored.admin() as conn:
        conn.execute(f"LISTEN {stored.schema}")
        for number in range(100):
            log.append(ask(f"k{number}", {f"pool-{number}": 0}, taken(str(number))))
        told = [time.monotonic() for _ in conn.notifies(timeout=0.5)]
        row = conn.execute("SELECT position FROM head").fetchone()
    assert row == (100,)
    assert 1 <= len(told) < 90


def version_of(batch: Batch, stream: str) -> int:
    return batch.running[stream]


def test_a_batch_agrees_with_itself_about_versions() -> None:
    def asked(key: str, reads: dict[str, int], *written: str) -> Asked:
        facts = [(stream, "n", b"") for stream in written]
        return Asked(TENANT, "ana", key, b"", "Ask", 0, True, reads, facts, (), Ticket())

    batch = Batch()
    assert batch.take(asked("1", {"a": 3, "b": 0}, "a", "a"))
    assert not batch.take(asked("2", {"a": 3}, "a"))  # it has not seen the first one's facts
    assert not batch.take(asked("2", {"a": 6}, "a"))
    assert batch.take(asked("2", {"a": 5, "b": 0}, "b"))
    assert not batch.take(asked("2", {"c": 0}))  # the same key
    assert (version_of(batch, "a"), version_of(batch, "b"), batch.first) == (5, 1, {"a": 3, "b": 0})


def test_what_is_settled_is_let_go_of_however_long_the_chain(stored: InPostgres) -> None:
    """Each decision follows the one before it; none may keep it alive."""
    mine = Handler(stored.open(), lambda: T0)
    mine.handle(OpenPool(pool="p"), by=ANA, key="open")
    for part in range(5):
        answers = mine.handle_all([Ask(hold(), ANA, f"{part}-{n}") for n in range(40)])
        assert all(isinstance(answer, Answer) for answer in answers)
    del answers
    gc.collect()
    assert sum(isinstance(each, LogTicket) for each in gc.get_objects()) <= 1


# ── decided in the batch ──────────────────────────────────────────────────────────────────────────


def test_many_commands_on_one_stream_are_decided_one_after_another_and_recorded_together(
    stored: InPostgres,
) -> None:
    log = stored.open()
    mine = Handler(log, lambda: T0)
    mine.handle(OpenPool(pool="p", capacity=50), by=ANA, key="open")
    answers = mine.handle_all([Ask(hold(), ANA, f"k{n}") for n in range(60)])
    assert [type(answer) for answer in answers] == [Answer] * 50 + [SoldOut] * 10
    facts = [fact for fact in everything(stored.open()) if fact.stream == "pool-p"]
    assert [fact.version for fact in facts] == list(range(1, 52))
    assert commits(stored) < 20


def test_an_offer_and_an_order_of_it_may_be_asked_for_together(stored: InPostgres) -> None:
    mine = Handler(stored.open(), lambda: T0)
    answers = mine.handle_all(
        [Ask(OpenPool(pool="p", capacity=1), ANA, "open"), Ask(order(1), ANA, "1"), Ask(order(2), ANA, "2")]
    )
    assert [type(answer) for answer in answers] == [Answer, Answer, SoldOut]


def test_a_hot_pool_is_sold_once_by_threads_and_tasks_together(stored: InPostgres) -> None:
    """One handler, forty threads, and forty tasks of a loop."""
    mine = Handler(stored.open(), lambda: T0)
    mine.handle(OpenPool(pool="p", capacity=100), by=ANA, key="open")
    outcomes: Counter[str] = Counter()

    async def tasks() -> None:
        async def one(number: int) -> None:
            try:
                await mine.handling(Ask(hold(), ANA, f"task-{number}"))
                outcomes["held"] += 1
            except SoldOut:
                outcomes["sold out"] += 1

        await asyncio.gather(*(one(number) for number in range(80)))

    def thread(number: int) -> bool:
        try:
            mine.handle(hold(), by=ANA, key=f"thread-{number}")
        except SoldOut:
            return False
        return True

    with ThreadPoolExecutor(41) as threads:
        looping = threads.submit(lambda: asyncio.run(tasks()))
        held = list(threads.map(thread, range(80)))
        looping.result(PATIENCE_S)
    assert sum(held) + outcomes["held"] == 100
    assert len(held) - sum(held) + outcomes["sold out"] == 60
    facts = everything(stored.open())
    assert [fact.position for fact in facts] == list(range(1, 102))


def test_a_hot_pool_is_sold_once_by_several_processes_that_hand_it_to_each_other(stored: InPostgres) -> None:
    """Four handlers of their own, each with eight callers: 400 holds of 300 places."""
    Handler(stored.open(), lambda: T0).handle(OpenPool(pool="p", capacity=300), by=ANA, key="open")
    handlers = [Handler(stored.open(), lambda: T0) for _ in range(4)]

    def sell(caller: int) -> list[bool]:
        held = []
        for number in range(12):
            try:
                handlers[caller % 4].handle(hold(), by=ANA, key=f"{caller}-{number}")
                held.append(True)
            except SoldOut:
                held.append(False)
        return held

    with ThreadPoolExecutor(32) as threads:
        held = [each for answers in threads.map(sell, range(32)) for each in answers]
    assert (sum(held), len(held)) == (300, 384)
    facts = [fact for fact in everything(stored.open()) if fact.stream == "pool-p"]
    assert [fact.version for fact in facts] == list(range(1, 302))


class ForgetsWhatItFollows(PostgresLog):
    """A deliberately broken log: an append stands for itself, whatever it was decided on."""

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        return super().submit(append)


def assert_a_guess_that_was_wrong_sells_nothing(
    stored: InPostgres, log: PostgresLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place. Theirs holds it, unseen. Ours gives one back and decides a hold of two on that; then the
    first is overtaken, and the second meets, by chance, the version that it expects."""
    monkeypatch.setattr("infra.groupcommit.BATCH_FACTS_MAX", 1)
    mine = Handler(log, lambda: T0)
    mine.handle(OpenPool(pool="p", capacity=1), by=ANA, key="open")
    Handler(stored.open(), lambda: T0).handle(hold(), by=ANA, key="theirs")
    with ThreadPoolExecutor(2) as threads:
        with head_locked(stored):
            first = threads.submit(mine.handle, giveback(1, 1), by=ANA, key="first")
            while mine.memory.states[TENANT, "pool-p", Pool].waiting is None:
                time.sleep(0.001)
            second = threads.submit(mine.handle, hold(2), by=ANA, key="second")
            while not log.group.queue:
                time.sleep(0.001)
        assert first.result(PATIENCE_S).facts
        with suppress(SoldOut):
            second.result(PATIENCE_S)
            raise AssertionError("two were held, and one was left")


def test_a_decision_on_facts_that_were_not_recorded_is_taken_again(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_guess_that_was_wrong_sells_nothing(stored, stored.open(), monkeypatch)


def test_the_proof_notices_a_log_that_forgets_what_an_append_follows(
    stored: InPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    log = ForgetsWhatItFollows(stored.settings.role_dsn("app"), stored.schema, CLAIM_KEY)
    with pytest.raises(AssertionError, match="two were held"):
        assert_a_guess_that_was_wrong_sells_nothing(stored, log, monkeypatch)
    log.close()


def test_a_task_that_is_cancelled_while_it_waits_leaves_no_turn_taken(stored: InPostgres) -> None:
    mine, other = Handler(stored.open(), lambda: T0), stored.open()
    mine.handle(OpenPool(pool="p"), by=ANA, key="open")
    mine.hot[TENANT, "pool-p"] = 9

    async def impatient() -> None:
        with other.turn(TENANT, ["pool-p"]), suppress(TimeoutError):
            await asyncio.wait_for(mine.handling(Ask(hold(), ANA, "k1")), 0.2)
        await asyncio.wait_for(mine.handling(Ask(hold(), ANA, "k2")), PATIENCE_S)

    asyncio.run(impatient())
    with other.turn(TENANT, ["pool-p"]):
        assert [fact.envelope.key for fact in other.read(TENANT, {"pool-p": 1})] == ["k2"]


class SlowToGiveBack(PostgresLog):
    """Its database takes a while to answer that a turn is given back."""

    @contextmanager
    def turn(self, tenant: str, streams: Iterable[str]) -> Iterator[None]:
        with super().turn(tenant, streams):
            yield
        time.sleep(0.5)


def test_giving_a_turn_back_holds_up_nobody_else_of_the_loop(stored: InPostgres) -> None:
    """It is a round trip: to a database that has gone away, one of many seconds."""
    log = SlowToGiveBack(stored.settings.role_dsn("app"), stored.schema, CLAIM_KEY)
    stored.opened.append(log)
    handler = Handler(log, lambda: T0)
    handler.hot[TENANT, "pool-p"] = 1
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - before_s)

    async def ask() -> None:
        watching = asyncio.ensure_future(watch())
        await asyncio.sleep(0)
        await handler.handling(Ask(OpenPool(pool="p"), ANA, "k"))
        await asyncio.sleep(0.02)
        watching.cancel()

    asyncio.run(ask())
    assert not handler.hot
    assert longest_s < 0.3


def test_whoever_has_the_turn_can_read_however_many_wait_for_it(stored: InPostgres) -> None:
    """One thread for everything that blocks: who waits for the turn must not be standing in it."""
    handlers = [Handler(stored.open(), lambda: T0) for _ in range(2)]
    handlers[0].handle(OpenPool(pool="p"), by=ANA, key="open")

    async def sell() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        for each in handlers:
            each.hot[TENANT, "pool-p"] = 99
        asks = [each.handling(Ask(hold(), ANA, f"{id(each)}-{n}")) for n in range(8) for each in handlers]
        await asyncio.wait_for(asyncio.gather(*asks), PATIENCE_S)

    asyncio.run(sell())
    assert len(stored.open().read(TENANT, {"pool-p": 1})) == 16
