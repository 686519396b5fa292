"""The simulated database without a simulation: for real threads, at once, to be compared with Postgres."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from infra import connection
from infra.eventstore import PostgresLog
from tests.ledgers import CLAIM_KEY
from tests.simulation.connections import Cursor
from tests.simulation.database import Blocked, Database, Session
from tests.simulation.sql import execute


class Direct:
    """A psycopg.Connection in autocommit."""

    closed = False

    def __init__(self, ledger: InSimulated) -> None:
        self.ledger, self.session = ledger, Session(ledger.database)

    def execute(self, text: str, parameters: Sequence[Any] | None = None, *, binary: bool = False) -> Cursor:
        with self.ledger.changed:
            while True:
                try:
                    result = execute(self.session, text, parameters)
                except Blocked:
                    self.ledger.changed.wait()
                else:
                    self.session.commit()
                    self.ledger.changed.notify_all()
                    return Cursor(result)

    def close(self) -> None:
        with self.ledger.changed:
            self.closed = True
            self.session.end()
            self.ledger.changed.notify_all()


class InSimulated:
    """A ledger of tests/ledgers.py, in the database that the simulation runs on."""

    def __init__(self) -> None:
        self.database = Database()
        self.changed = threading.Condition()
        self.opened: list[PostgresLog] = []

    def connecting(self) -> type[connection.Connection]:
        ledger = self

        class Connected(connection.Connection):
            def open(self) -> Any:
                if self.live is None or self.live.closed:
                    self.live = Direct(ledger)  # type: ignore[assignment]
                return self.live

        return Connected

    def open(self) -> PostgresLog:
        log = PostgresLog("", "", CLAIM_KEY)
        self.opened.append(log)
        return log

    def cut(self, position: int) -> None:
        """No test of the contract asks for it."""
        raise NotImplementedError

    def close(self) -> None:
        for log in self.opened:
            log.close()
