"""Fifty racers under one key, threads and tasks of two processes: one effect and one answer. Of two requests
under one key, one is answered and the other refused, whoever sent them and however many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from commands.capacity import OpenPool
from commands.handling import Handler
from commands.log import Append, Outcome, Pending, Spent
from infra.eventstore import LogTicket, PostgresLog
from infra.groupcommit import Verdict
from tests.infra.proofs.crowd import Crowd, Errand, Request, Told, crowds, told_by
from tests.infra.proofs.judge import Books
from tests.ledgers import CLAIM_KEY, InPostgres
from tests.spec import ANA, T0

PROCESSES, THREADS, TASKS = 2, 13, 12
KEYS = [f"key-{number}" for number in range(12)]


def opened(stored: InPostgres) -> None:
    Handler(stored.open(), lambda: T0).handle(OpenPool(pool="p"), by=ANA, key="open")


def errand(stored: InPostgres, bodies: Sequence[str]) -> Errand:
    """Every racer asks under every key, one after another; their bodies take turns."""
    racers = [
        [Request(key, ["p"], bodies[racer % len(bodies)]) for key in KEYS] for racer in range(THREADS + TASKS)
    ]
    return Errand(stored.settings.role_dsn("app"), stored.schema, racers[:THREADS], racers[THREADS:])


def raced(stored: InPostgres, bodies: Sequence[str]) -> list[Told]:
    opened(stored)
    with crowds([errand(stored, bodies)] * PROCESSES) as started:
        return told_by(started)


def judge(books: Books, told: Sequence[Told], racers: int) -> None:
    """Raises AssertionError unless each key has one effect, told alike to all who asked for just that."""
    books.whole()
    assert sorted(books.keys) == sorted(KEYS), "a key that nobody used, or one without effect"
    assert books.taken("p") == len(KEYS), "another effect than one for each key"
    by_key: dict[str, list[Told]] = defaultdict(list)
    for each in told:
        by_key[each.key].append(each)
    for key in KEYS:
        answers = [each for each in by_key[key] if each.what == "answer"]
        refused = [each for each in by_key[key] if each.what == "key reused"]
        assert len(answers) + len(refused) == racers
        assert [each.replayed for each in answers].count(False) == 1, "two were the first"
        assert len({each.body for each in answers}) == 1, "two requests were answered under one key"
        assert answers[0].body not in {each.body for each in refused}, "a twin was refused"
        assert all(each.facts == books.of(key) for each in answers), "not everybody was answered the same"
        assert all(each.position == books.of(key)[-1][0] for each in answers)


def test_fifty_twins_have_one_effect_and_one_answer(stored: InPostgres) -> None:
    told = raced(stored, ["same"])
    judge(Books(stored), told, 50)
    assert all(each.what == "answer" for each in told)


def test_of_fifty_with_two_bodies_one_request_is_answered_and_the_other_refused(stored: InPostgres) -> None:
    told = raced(stored, ["one", "other"])
    judge(Books(stored), told, 50)
    refused = sum(each.what == "key reused" for each in told)
    assert 0.4 < refused / len(told) < 0.6


# ── what the judge must not let pass ──────────────────────────────────────────────────────────────


class ForgetsKeys(PostgresLog):
    """A deliberately broken log: whoever asks again has asked for something else."""

    def submit(self, append: Append, follows: Sequence[Pending] = ()) -> LogTicket:
        return super().submit(replace(append, envelope=replace(append.envelope, key=uuid4().hex)), follows)


class TakesAnyBody(LogTicket):
    """A deliberately broken answer: whatever was asked for under the key before, it was this."""

    __slots__ = ()

    def _told(self, verdict: Verdict) -> Outcome:
        outcome = super()._told(verdict)
        return replace(outcome, digest=self.append.digest) if isinstance(outcome, Spent) else outcome


def raced_here(stored: InPostgres, log: PostgresLog, bodies: Sequence[str]) -> list[Told]:
    """In this process alone."""
    opened(stored)
    return Crowd(errand(stored, bodies), log).run()


def test_control_a_log_that_forgets_keys_is_caught(stored: InPostgres) -> None:
    """Negative control."""
    log = ForgetsKeys(stored.settings.role_dsn("app"), stored.schema, CLAIM_KEY)
    told = raced_here(stored, log, ["same"])
    with pytest.raises(AssertionError, match="a key that nobody used"):
        judge(Books(stored), told, THREADS + TASKS)


def test_control_an_answer_to_any_body_is_caught(stored: InPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr("infra.eventstore.LogTicket", TakesAnyBody)
    told = raced_here(stored, stored.open(), ["one", "other"])
    with pytest.raises(AssertionError, match="two requests were answered under one key"):
        judge(Books(stored), told, THREADS + TASKS)
