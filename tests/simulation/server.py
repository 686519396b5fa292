"""The database as a server: requests arrive late, may be lost before or after they are carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from tests.simulation import sql_log, sql_motion, sql_rows
from tests.simulation.database import Blocked, Database, Session
from tests.simulation.faults import Chance
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import PROCESS, Process, context_of
from tests.simulation.sql import Result, execute

STATEMENTS = (sql_log, sql_motion, sql_rows)
"""Each brings its own."""
TRIP_S = 0.0004
COMMIT_S = 0.002
"""A flush: what is being committed is not visible yet, and holds its locks."""

Work = Callable[[], Result]


class Server:
    def __init__(self, loop: VirtualLoop, chance: Chance) -> None:
        self.loop, self.chance = loop, chance
        self.database = Database(loop.time)
        self.up = True
        self.backends: dict[Backend, None] = {}
        self.committing: Callable[[Backend], None] = lambda backend: None
        """Told of every transaction that is about to commit."""
        self.own = context_of(None)
        """What runs in it is nobody's process."""

    def stop(self) -> None:
        """At once, as by a crash: every connection breaks, what was not committed is undone."""
        self.up = False
        for backend in list(self.backends):
            backend.break_off("the server closed the connection")

    def start(self) -> None:
        self.up = True


class Backend:
    """One connection, as both its ends see it."""

    def __init__(self, server: Server) -> None:
        if not server.up:
            raise psycopg.OperationalError("connection refused")
        self.server, self.session = server, Session(server.database)
        self.client: Process | None = PROCESS.get()
        self.closed = self.forsaken = False
        self.transactions = 0
        """How deep the client is in them; 0: each statement is one."""
        self.failed = False
        self.asked: asyncio.Future[Result] | None = None
        server.backends[self] = None
        if self.client is not None:
            self.client.at_death.append(self.client_died)

    # ── the client's end ──────────────────────────────────────────────────────────────────────────────────

    def ask(self, text: str, parameters: Sequence[Any] | None = None) -> asyncio.Future[Result]:
        return self._send(lambda: execute(self.session, text, parameters))

    def ask_many(self, text: str, each: Sequence[Sequence[Any]]) -> asyncio.Future[Result]:
        def work() -> Result:
            for parameters in each:
                execute(self.session, text, parameters)
            return Result([])

        return self._send(work)

    def commit(self) -> asyncio.Future[Result]:
        return self._send(None)

    def _send(self, work: Work | None) -> asyncio.Future[Result]:
        """`work`: a statement; None commits."""
        answer: asyncio.Future[Result] = self.server.loop.create_future()
        if self.closed:
            answer.set_exception(psycopg.OperationalError("the connection is closed"))
            return answer
        chance = self.server.chance
        self.asked = answer
        if chance.happens(chance.weather.lost_before):
            self._later(TRIP_S, lambda: self.break_off("connection reset before the request arrived"))
        else:
            self._later(TRIP_S, lambda: self._carry_out(work))
        return answer

    def close(self) -> None:
        """A client that says goodbye: what it had not committed is undone."""
        self._end()

    # ── the server's end ──────────────────────────────────────────────────────────────────────────────────

    def _later(self, usual_s: float, step: Callable[[], None]) -> None:
        server = self.server
        server.loop.call_later(server.chance.delay_s(usual_s), step, context=server.own)

    def _carry_out(self, work: Work | None) -> None:
        if self.closed or self.asked is None:
            return
        if work is None:
            if self.failed:
                self.session.rollback()
            self.failed = False
            self._flush(Result([]))
            return
        if self.failed:
            self._answer(psycopg.errors.InFailedSqlTransaction("current transaction is aborted"))
            return
        try:
            result = work()
        except Blocked as blocked:
            self.session.waits_for = blocked.holder
            waiting = self.server.database.waiting[blocked.lock]
            waiting.append(lambda: self._again(work))
            return
        except psycopg.Error as error:
            self.session.waits_for = None
            if self.transactions:
                self.failed = True
            else:
                self.session.rollback()
            self._answer(error)
            return
        self.session.waits_for = None
        if self.transactions:
            self._answer(result)
        else:
            self._flush(result)

    def _again(self, work: Work) -> None:
        self.session.waits_for = None
        self.server.loop.call_soon(lambda: self._carry_out(work), context=self.server.own)

    def _flush(self, result: Result) -> None:
        if self.session.written:
            self._later(COMMIT_S, lambda: self._committed(result))
        else:
            self.session.release()
            self._answer(result)

    def _committed(self, result: Result) -> None:
        if self.closed:
            return
        chance = self.server.chance
        dies = self.client is not None and chance.happens(chance.weather.dies_committing)
        if dies and chance.happens(0.5):
            self.break_off("killed before the commit")
        else:
            self.server.committing(self)
            self.session.commit()
        if dies and self.client is not None:
            self.client.kill()
        elif chance.happens(chance.weather.lost_after):
            self.break_off("connection reset after the commit")
        else:
            self._answer(result)

    def _answer(self, answer: Result | Exception) -> None:
        asked, self.asked = self.asked, None
        if self.forsaken:
            self._end()
        elif asked is not None and not asked.done():
            if isinstance(answer, Exception):
                asked.set_exception(answer)
            else:
                asked.set_result(answer)

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────────────

    def break_off(self, reason: str) -> None:
        self._end()
        asked, self.asked = self.asked, None
        if asked is not None and not asked.done():
            asked.set_exception(psycopg.OperationalError(reason))

    def client_died(self) -> None:
        """What is on its way is carried out all the same, unless it is part of a transaction."""
        if self.asked is None or self.transactions:
            self._end()
        else:
            self.forsaken = True

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self.server.backends.pop(self, None)
            self.session.end()
