"""Whoever reads a log live, by position: the same for every contender, active while it is measured.

Asked: `begin` (which log, from where it was), `end` (read what is left and say how many), `missing`.
"""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.benchmarks.log.wire import Answer, serve

QUIET_S = 0.05
DRAIN_S_MAX = 20.0
PAGE = 4_000


@dataclass
class Following:
    """`query` takes the last position seen and gives (position, payload), a page at a time, in its order."""

    name: str
    dsn: str
    query: str
    pause_s: float
    last: int = 0
    seen: array[int] = field(default_factory=lambda: array("q"))
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    fault: str | None = None
    stopped_at: float = 0.0

    def begin(self) -> Answer:
        self.conn = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=0)
        self.stop.clear()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return {"backend": self.conn.info.backend_pid}

    def run(self) -> None:
        """After `stop`, until nothing new has come for QUIET_S."""
        try:
            new_at = time.monotonic()
            while True:
                rows = self.conn.execute(self.query.encode(), (self.last,), binary=True).fetchall()
                now = time.monotonic()
                if rows:
                    self.seen.extend(row[0] for row in rows)
                    self.last, new_at = int(rows[-1][0]), now
                if self.stop.is_set():
                    if now - max(new_at, self.stopped_at) > QUIET_S or now - self.stopped_at > DRAIN_S_MAX:
                        return
                elif len(rows) < PAGE and self.pause_s:
                    self.stop.wait(self.pause_s)
        except psycopg.Error as fault:
            self.fault = f"{type(fault).__name__}: {fault}"
        finally:
            self.conn.close()

    def end(self) -> Answer:
        behind = len(self.seen)
        self.stopped_at = time.monotonic()
        self.stop.set()
        assert self.thread is not None
        self.thread.join()
        if self.fault is not None:
            raise RuntimeError(self.fault)
        return {"seen": len(self.seen), "after_the_last": len(self.seen) - behind, "last": self.last}

    def missing(self, query: str) -> Answer:
        """What `query` gives as committed positions, less what was delivered; and what came twice."""
        seen = set(self.seen)
        with psycopg.connect(self.dsn) as conn, conn.cursor() as cursor:
            cursor.execute(query.encode())
            committed = {int(row[0]) for row in cursor.fetchall()}
        return {
            "committed": len(committed),
            "delivered": len(seen),
            "skipped": len(committed - seen),
            "never_committed": len(seen - committed),
            "twice": len(self.seen) - len(seen),
            "gaps": max(committed, default=0) - len(committed),
        }


class Followers:
    def __init__(self) -> None:
        self.known: dict[str, Following] = {}

    def begin(self, name: str, dsn: str, query: str, pause_s: float) -> Answer:
        following = self.known.setdefault(name, Following(name, dsn, query, pause_s))
        return following.begin()

    def end(self, name: str) -> Answer:
        return self.known[name].end()

    def missing(self, name: str, query: str) -> Answer:
        return self.known[name].missing(query)


def tasks() -> dict[str, Any]:
    made = Followers()
    return {"begin": made.begin, "end": made.end, "missing": made.missing}


if __name__ == "__main__":
    serve(tasks())
