"""Four processes of sixteen threads on five hot pools, and connections cut at any moment, the commit's too:
accepted = rows = head, and everybody is told the truth."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from commands.capacity import OpenPool
from commands.handling import Handler
from tests.e2e.proxy import CHUNK_BYTES, Proxy
from tests.infra.proofs.crowd import Crowd, Errand, Request, Told, crowds, told_by
from tests.infra.proofs.judge import Books, judge
from tests.ledgers import InPostgres
from tests.spec import ANA, T0

POOLS = ("a", "b", "c", "d", "e")
PLACES = 130
PROCESSES, THREADS, REQUESTS = 4, 16, 12
KILL_EVERY_S = 0.15
KILLS_MAX, LOSSES_MAX = 50, 120
"""So that a slow machine, too, gets through in the end."""
SETUP_REPLIES = 6
"""Of a connection that is being made."""
KILL_ONE = (
    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
    " WHERE usename = 'counterfoil_app' AND datname = current_database() ORDER BY random() LIMIT 1) one"
)


class LosesReplies(Proxy):
    """Now and then a reply is swallowed, and the connection with it: what was asked for is done."""

    def __init__(self, target_port: int, chance: random.Random, rate: float) -> None:
        super().__init__(target_port, chance)
        self.rate, self.swallowed = rate, 0

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("peername")[1] == self.target_port:
            await super()._carry(reader, writer)
            return
        carried = 0
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                loses = self.swallowed < LOSSES_MAX and self.chance.random() < self.rate
                if carried > SETUP_REPLIES and loses:
                    self.swallowed += 1
                    break
                carried += 1
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def losing_replies(stored: InPostgres, rate: float) -> Iterator[tuple[LosesReplies, str]]:
    """A proxy before Postgres, and the address that leads through it."""
    dsn = stored.settings.role_dsn("app")
    port = urlsplit(dsn).port
    assert port is not None
    proxy = LosesReplies(port, random.Random(2026), rate)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy, dsn.replace(f":{port}/", f":{proxy.port}/")
    finally:
        proxy.stop()
        thread.join(5)


@contextmanager
def backends_killed(stored: InPostgres) -> Iterator[list[int]]:
    """One after another, at random, while the block runs; how many, at its end."""
    done, kills = threading.Event(), [0]

    def kill() -> None:
        with stored.admin() as conn:
            while kills[0] < KILLS_MAX and not done.wait(KILL_EVERY_S):
                row = conn.execute(KILL_ONE).fetchone()
                kills[0] += 0 if row is None else int(row[0])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        done.set()
        thread.join()


def opened(stored: InPostgres) -> None:
    for pool in POOLS:
        Handler(stored.open(), lambda: T0).handle(OpenPool(pool=pool, capacity=PLACES), by=ANA, key=pool)


def asked(process: int, threads: int, chance: random.Random) -> list[list[Request]]:
    """Carts of one pool or two."""
    return [
        [
            Request(f"{process}-{thread}-{number}", chance.sample(POOLS, chance.choice((1, 1, 2))))
            for number in range(REQUESTS)
        ]
        for thread in range(threads)
    ]


def test_whoever_is_cut_off_wherever_is_told_the_truth_and_accepted_is_rows_is_head(
    stored: InPostgres,
) -> None:
    """Two of the processes wait for the database to come back; two tell their callers at once that nobody
    knows, and those ask again under the same key."""
    opened(stored)
    chance = random.Random(7)
    with losing_replies(stored, 0.06) as (proxy, dsn):
        errands = [
            Errand(dsn, stored.schema, asked(process, THREADS, chance), give_up_s=(15.0, 0.0)[process % 2])
            for process in range(PROCESSES)
        ]
        with crowds(errands) as started, backends_killed(stored) as kills:
            began = time.monotonic()
            told = told_by(started)
            took_s = time.monotonic() - began
    requests = {each.key: each for errand in errands for thread in errand.threads for each in thread}
    judge(Books(stored), requests, told, PLACES)
    outcomes = {what: sum(each.what == what for each in told) for what in ("answer", "sold out")}
    print(
        f"{len(told)} requests in {took_s:.1f} s: {outcomes}, {kills[0]} backends killed,"
        f" {proxy.swallowed} replies lost, {sum(each.faults for each in told)} times nobody knew,"
        f" {sum(each.replayed for each in told)} found again by their key"
    )
    assert min(outcomes.values()) > 50
    assert min(kills[0], proxy.swallowed, sum(each.faults for each in told)) > 5, "hardly an attack"
    assert any(each.replayed for each in told), "no reply of an append was lost"


# ── what the judge must not let pass ──────────────────────────────────────────────────────────────


def test_control_callers_who_ask_again_under_another_key_are_caught(stored: InPostgres) -> None:
    """Negative control: what was recorded when nobody knew is recorded twice."""
    opened(stored)
    with losing_replies(stored, 0.1) as (_, dsn):
        threads = asked(0, THREADS, random.Random(7))
        with crowds([Errand(dsn, stored.schema, threads, give_up_s=0.0, same_key=False)]) as started:
            told = told_by(started)
    by_key = {each.key: each for thread in threads for each in thread}
    requests = {each.key: by_key[each.key.split()[0]] for each in told}
    assert sum(each.faults for each in told) > 5
    with pytest.raises(AssertionError, match="accepted is not what is recorded"):
        judge(Books(stored), requests, told, PLACES)


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        (lambda told: replace(told, position=told.position + 1), "another position"),
        (lambda told: replace(told, facts=told.facts[:-1]), "other facts"),
        (lambda told: replace(told, what="sold out"), "accepted is not what is recorded"),
    ],
)
def test_control_a_single_lie_is_caught(stored: InPostgres, lie: Callable[[Told], Told], caught: str) -> None:
    """Negative control."""
    opened(stored)
    threads = [[Request("honest", ["a"]), Request("lied to", ["a", "b"])]]
    honest, lied_to = Crowd(Errand("", stored.schema, threads), stored.open()).run()
    requests = {each.key: each for each in threads[0]}
    judge(Books(stored), requests, [honest, lied_to], PLACES)
    with pytest.raises(AssertionError, match=caught):
        judge(Books(stored), requests, [honest, lie(lied_to)], PLACES)
