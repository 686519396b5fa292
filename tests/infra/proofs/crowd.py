"""A process full of callers, threads and tasks of one handler: each asks, and asks again until it is told.

`python -m tests.infra.proofs.crowd` reads its errand as a line of JSON, says `ready`, begins at the next
line, and says what each of its requests was told.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from commands.handling import Answer, Ask, Handler, KeyReused
from commands.log import Busy
from commands.ordering import PlaceOrder
from domain.capacity import SoldOut
from domain.values import OrderId
from infra import connection
from infra.connection import LogUnavailable
from infra.eventstore import PostgresLog
from tests.ledgers import CLAIM_KEY
from tests.spec import ANA, T0, document, line

ROOT = Path(__file__).parents[3]
ORDERS = UUID("3c1cb1b3-3f0e-4e37-9a59-3b7f3f2f9f0e")
PATIENCE_S = 90

Fact = list[Any]
"""position, stream, version, name"""


@dataclass
class Request:
    key: str
    pools: list[str]
    body: str = ""
    """Of a request under the same key, another one: another request."""

    def command(self, key: str) -> PlaceOrder:
        return PlaceOrder(
            order_id=OrderId(uuid5(ORDERS, key)),
            document=document(self.key, digest=f"digest {self.body}"),
            lines=tuple(line(pool) for pool in self.pools),
            settled=True,
        )


@dataclass
class Told:
    key: str
    """The last it was asked under."""
    body: str
    what: str
    """'answer', 'sold out' or 'key reused'"""
    position: int = 0
    facts: list[Fact] = field(default_factory=list)
    replayed: bool = False
    faults: int = 0
    """How often nobody knew, before it was told."""


@dataclass
class Errand:
    dsn: str
    schema: str
    threads: list[list[Request]]
    """What each thread asks for, one after another."""
    tasks: list[list[Request]] = field(default_factory=list)
    give_up_s: float = connection.RECONNECT_S_MAX
    """How long a lost connection is waited for before the caller is told that nobody knows."""
    same_key: bool = True
    """False: a caller that is broken on purpose, and asks again under another key."""


def answered(request: Request, key: str, answer: Answer, faults: int) -> Told:
    facts = [[fact.position, fact.stream, fact.version, fact.event.name] for fact in answer.facts]
    return Told(key, request.body, "answer", answer.position, facts, answer.replayed, faults)


def refused(request: Request, key: str, refusal: Exception, faults: int) -> Told:
    what = "sold out" if isinstance(refusal, SoldOut) else "key reused"
    return Told(key, request.body, what, faults=faults)


class Crowd:
    def __init__(self, errand: Errand, log: PostgresLog) -> None:
        self.errand, self.log, self.deadline = errand, log, time.monotonic() + PATIENCE_S
        self.handler = Handler(log, lambda: T0)

    def run(self) -> list[Told]:
        with ThreadPoolExecutor(len(self.errand.threads) + 1) as threads:
            tasks = threads.submit(asyncio.run, self._tasks())
            told = [each for one in threads.map(self._thread, self.errand.threads) for each in one]
            told += tasks.result(PATIENCE_S)
        self.log.close()
        return told

    def _thread(self, requests: Sequence[Request]) -> list[Told]:
        return [self._ask(request) for request in requests]

    def _ask(self, request: Request) -> Told:
        faults = 0
        while True:
            key = self._key(request, faults)
            try:
                answer = self.handler.handle(request.command(key), by=ANA, key=key)
                return answered(request, key, answer, faults)
            except (SoldOut, KeyReused) as refusal:
                return refused(request, key, refusal, faults)
            except (LogUnavailable, Busy):
                faults = self._once_more(faults)

    async def _tasks(self) -> list[Told]:
        async def task(requests: Sequence[Request]) -> list[Told]:
            return [await self._asking(request) for request in requests]

        told = await asyncio.gather(*(task(requests) for requests in self.errand.tasks))
        return [each for one in told for each in one]

    async def _asking(self, request: Request) -> Told:
        faults = 0
        while True:
            key = self._key(request, faults)
            try:
                answer = await self.handler.handling(Ask(request.command(key), ANA, key))
                return answered(request, key, answer, faults)
            except (SoldOut, KeyReused) as refusal:
                return refused(request, key, refusal, faults)
            except (LogUnavailable, Busy):
                faults = self._once_more(faults)

    def _key(self, request: Request, faults: int) -> str:
        return request.key if self.errand.same_key else f"{request.key} {faults}"

    def _once_more(self, faults: int) -> int:
        assert time.monotonic() < self.deadline, "never told"
        return faults + 1


# ── from outside ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def crowds(errands: Sequence[Errand]) -> Iterator[list[subprocess.Popen[str]]]:
    """One process for each errand, all of them ready."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.infra.proofs.crowd"],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in errands
        ]
        try:
            for process, errand in zip(started, errands, strict=True):
                say(process, json.dumps(asdict(errand)))
            for process in started:
                assert heard(process) == "ready"
            yield started
        finally:
            for process in started:
                process.kill()


def say(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def told_by(started: Sequence[subprocess.Popen[str]]) -> list[Told]:
    """Let them begin, all at once, and hear what they were told."""
    for process in started:
        say(process, "go")
    return [Told(**each) for process in started for each in json.loads(heard(process))]


def main() -> None:
    document = json.loads(sys.stdin.readline())
    for kind in ("threads", "tasks"):
        document[kind] = [[Request(**each) for each in one] for one in document[kind]]
    errand = Errand(**document)
    connection.RECONNECT_S_MAX = errand.give_up_s
    crowd = Crowd(errand, PostgresLog(errand.dsn, errand.schema, CLAIM_KEY))
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([asdict(told) for told in crowd.run()]), flush=True)


if __name__ == "__main__":
    main()
