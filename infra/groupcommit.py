"""Group commit: what queued while the last commit was on its way is recorded by the next one.

One thread and one connection append for all callers of a process, threads and event loops alike. Requests are
taken in the order in which they came; one whose predecessor was not recorded is not sent at all. Nothing is
awaited from a client while the head row is locked: a batch is one call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import psycopg

from commands.log import Overloaded
from infra.arrays import Array, Blobs, Bools, Ints4, Ints8, Texts
from infra.connection import Connection, LedgerMoved, Statement

BATCH_FACTS_MAX = 500
"""Of a batch, as far as whole commands allow; a larger command goes alone."""
QUEUE_FACTS_MAX = 20_000
"""Facts and commands that may wait: about a second's work. Beyond it callers are turned away."""
LINGER_S_MAX = 0.002
"""A batch waits for as many as came together lately, as long as the last one took and no longer than this."""
NOTIFY_S = 0.005
"""Listeners are told of new facts this often at most, when nothing waits."""
NOTIFY_LATE_S = 0.1
"""And so much later at most, when commands do."""
NOTIFY_AGAIN_S = 1.0
"""After a database that did not answer: the eventsourcing library's subscriptions look only when told."""
EPOCH_UNKNOWN = 0
CLOSED = "CF001"
"""What a closed ledger refuses to record with: infra/migrations/0004_ledgers.sql."""

INT4, INT8, BOOL = 23, 20, 16
PARAMETERS = (
    *(INT4, INT8, BOOL),
    *(Texts.oid, Texts.oid, Texts.oid, Blobs.oid, Texts.oid, Bools.oid, Ints4.oid, Ints4.oid, Ints4.oid),
    *(Texts.oid, Ints8.oid),
    *(Ints4.oid, Ints8.oid),
    *(Ints4.oid, Texts.oid, Ints8.oid, Texts.oid, Blobs.oid),
)
APPEND = Statement(
    "SELECT outcome, last_position, fact_count, recorded_us, spent_digest, newer"
    f" FROM append({', '.join(f'${nth}' for nth in range(1, len(PARAMETERS) + 1))})",
    PARAMETERS,
)
NOTIFY = (
    "SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, '')"
    " FROM unnest(%b) channel"  # nobody loses a fact with it: no flush is waited for
)

Newer = tuple[str, int, int, str, bytes]
"""stream, version, position, name, state"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a request: 'appended', 'spent', 'stale', 'undone' or 'restored'."""

    outcome: str
    last_position: int = 0
    fact_count: int = 0
    recorded_us: int = 0
    spent_digest: bytes = b""
    newer: Sequence[Newer] = ()


UNDONE = Verdict("undone")
RESTORED = Verdict("restored")
RECORDED = ("appended", "spent")
"""Now, or before: perhaps by this very batch, whose answer was lost."""


class Ticket:
    """A request on its way: awaited by any number of threads and tasks."""

    __slots__ = ("error", "gate", "verdict", "waiters")

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.error: Exception | None = None
        self.gate = threading.Lock()
        self.gate.acquire()
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def settled(self) -> bool:
        return self.verdict is not None or self.error is not None

    @property
    def failed(self) -> bool:
        """Settled, and nothing was recorded by it, as far as is known."""
        return self.error is not None or (self.verdict is not None and self.verdict.outcome != "appended")

    def wait(self) -> Verdict:
        """Block until it is settled. Raises what the batch met."""
        if not self.settled:
            with self.gate:
                pass
        return self._told()

    def waiting(self) -> Generator[Any, Any, Verdict]:
        """The same for a task of the running loop."""
        if not self.settled:
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            if (self.verdict or self.error) is not None and not waiter.done():  # between the two lines
                waiter.set_result(None)
            yield from waiter
        return self._told()

    def _told(self) -> Verdict:
        if self.error is not None:
            raise self.error
        assert self.verdict is not None
        return self.verdict


@dataclass(slots=True)
class Asked:
    """A command to record, or a refusal to confirm; streams by their full names, tenant first."""

    tenant: str
    actor: str
    key: str
    digest: bytes
    command: str
    at_us: int
    spends: bool
    reads: Mapping[str, int]
    facts: Sequence[tuple[str, str, bytes]]
    """stream, name, state without the recorded time"""
    follows: Sequence[Any]
    """Tickets (anything with `failed`) whose facts it counts on."""
    ticket: Ticket
    epoch: int = EPOCH_UNKNOWN
    """In which its streams were read, if that matters."""

    @property
    def weight(self) -> int:
        return 1 + len(self.facts)


class Batch:
    """Requests that agree about the versions of their streams, ready to be sent."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.weight = 0
        self.keys: set[tuple[str, str, str]] = set()
        self.first: dict[str, int] = {}
        """Version of each stream before the batch."""
        self.running: dict[str, int] = {}

    def take(self, asked: Asked) -> bool:
        """False if it does not fit, or has to wait until the ones before it are recorded."""
        key = (asked.tenant, asked.actor, asked.key)
        if self.asked:
            if self.weight + asked.weight > BATCH_FACTS_MAX or key in self.keys:
                return False
            if any(self.running.get(stream, version) != version for stream, version in asked.reads.items()):
                return False
        for stream, version in asked.reads.items():
            if stream not in self.running:
                self.first[stream] = self.running[stream] = version
        for stream, _, _ in asked.facts:
            self.running[stream] += 1
        self.asked.append(asked)
        self.weight += asked.weight
        self.keys.add(key)
        return True

    def arguments(self, epoch: int, stamped: bool) -> list[bytes]:
        """As `append` (infra/migrations/0003_group_commit.sql) names them."""
        commands = self.asked
        number = {stream: nth for nth, stream in enumerate(self.first, 1)}
        version = dict(self.first)
        versions: list[int] = []
        facts = [fact for each in commands for fact in each.facts]
        for stream, _, _ in facts:
            version[stream] += 1
            versions.append(version[stream])
        counts = [len(each.facts) for each in commands]
        reads = [read for each in commands for read in each.reads.items()]
        columns: tuple[Array, ...] = (
            Texts([each.tenant for each in commands]),
            Texts([each.actor for each in commands]),
            Texts([each.key for each in commands]),
            Blobs([each.digest for each in commands]),
            Texts([each.command for each in commands]),
            Bools([each.spends for each in commands]),
            Ints4([len(each.reads) for each in commands]),
            Ints4(counts),
            Ints4([0, *accumulate(counts[:-1])]),
            Texts(list(self.first)),
            Ints8(list(self.first.values())),
            Ints4([number[stream] for stream, _ in reads]),
            Ints8([read_at for _, read_at in reads]),
            Ints4([number[stream] for stream, _, _ in facts]),
            Texts([stream for stream, _, _ in facts]),
            Ints8(versions),
            Texts([name for _, name, _ in facts]),
            Blobs([state for _, _, state in facts]),
        )
        at_us = max(each.at_us for each in commands)
        return [*_scalars(epoch, at_us, stamped), *[column.dumped() for column in columns]]

    def verdicts(self, rows: Sequence[tuple[Any, ...]]) -> list[Verdict]:
        if rows[0][0] != "all":
            return [Verdict(row[0], row[1], row[2], row[3], row[4], row[5] or ()) for row in rows]
        recorded_us, position = rows[0][3], rows[0][1] - sum(len(each.facts) for each in self.asked)
        verdicts = []
        for each in self.asked:
            position += len(each.facts)
            verdicts.append(Verdict("appended", position, len(each.facts), recorded_us))
        return verdicts


class Group:
    """The queue before one ledger's head row, and the thread that empties it.

    Facts get the recorded time in front of their states if `stamped`. `channels`: where listeners are told.
    """

    def __init__(self, connection: Connection, channels: Sequence[str], *, stamped: bool) -> None:
        self.connection = connection
        self.channels = list(channels)
        self.stamped = stamped
        self.epoch = EPOCH_UNKNOWN
        self.queue: deque[Asked] = deque()
        self.weight = 0
        self.arrived = threading.Condition(threading.Lock())
        self.thread: threading.Thread | None = None
        self.closing = False
        self.notify_at: float | None = None
        self.wanted = 1
        """In the queue, before the thread is woken."""
        self.company = 1
        """How many commands came together lately."""
        self.took_s = 0.0
        """The last call."""

    def submit(self, asked: Asked) -> None:
        """Queue it. Raises Overloaded."""
        with self.arrived:
            if self.weight + asked.weight > QUEUE_FACTS_MAX and self.queue:
                raise Overloaded(f"{len(self.queue):,} commands wait for the log already")
            self.queue.append(asked)
            self.weight += asked.weight
            if self.thread is None:
                self.closing = False
                self.notify_at = time.monotonic()  # this may be who died before it told anybody
                self.thread = threading.Thread(target=self._run, name="group commit", daemon=True)
                self.thread.start()
            if len(self.queue) >= self.wanted:
                self.arrived.notify()

    def learn(self, epoch: int) -> None:
        """The ledger's, for whoever reads before anything is appended."""
        with self.arrived:
            if self.epoch == EPOCH_UNKNOWN:
                self.epoch = epoch

    def close(self) -> None:
        """Record what waits, tell listeners, then stop."""
        if threading.current_thread() is self.thread:  # garbage may be collected here: not under our own lock
            self.closing = True
            return
        with self.arrived:
            self.closing = True
            self.arrived.notify()
            thread = self.thread
        if thread is not None:
            thread.join()
        self.connection.close()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            if not batch.asked:
                self._notify()
                continue
            try:
                verdicts: Sequence[Verdict | Exception] = self._send(batch)
            except psycopg.Error as broken:
                verdicts = [broken] if len(batch.asked) == 1 else self._one_by_one(batch)
            except Exception as broken:  # noqa: BLE001  a fault of the log, or a bug: everybody is told
                verdicts = [broken] * len(batch.asked)
                self.notify_at = time.monotonic() + NOTIFY_AGAIN_S  # it may be recorded
            self._tell(batch.asked, verdicts)

    def _next(self) -> Batch | None:
        """What waits, as far as it agrees with itself; nothing, to tell listeners; None at the end."""
        with self.arrived:
            if self.notify_at is not None and time.monotonic() > self.notify_at + NOTIFY_LATE_S:
                return Batch()
            while not self.queue:
                patience_s = None if self.notify_at is None else self.notify_at - time.monotonic()
                if patience_s is not None and (patience_s <= 0 or self.closing):
                    return Batch()
                if self.closing:
                    self.thread = None
                    return None
                self.arrived.wait(patience_s)
            self._gather()
            batch, forsaken = Batch(), []
            while self.queue:
                asked = self.queue[0]
                if any(ticket.failed for ticket in asked.follows):
                    forsaken.append(asked)
                    self._settle(asked.ticket, UNDONE)
                elif asked.epoch not in (EPOCH_UNKNOWN, self.epoch):  # its versions may fit all the same
                    forsaken.append(asked)
                    self._settle(asked.ticket, RESTORED)
                elif not batch.take(asked):
                    break
                self.queue.popleft()
                self.weight -= asked.weight
        if forsaken:
            _wake([asked.ticket for asked in forsaken])
        return batch

    def _gather(self) -> None:
        """Wait for those who were just answered to come back: a commit costs the same for one as for all."""
        if len(self.queue) < self.company and not self.closing:
            self.wanted = self.company
            until = time.monotonic() + min(self.took_s, LINGER_S_MAX)
            while len(self.queue) < self.company and (left_s := until - time.monotonic()) > 0:
                self.arrived.wait(left_s)
            self.wanted = 1
        waiting = len(self.queue)
        self.company = waiting if waiting > self.company else (self.company + waiting) // 2

    def _send(self, batch: Batch) -> list[Verdict]:
        """Sent again after a lost connection: what was committed then is 'spent' now."""
        while True:
            arguments = batch.arguments(self.epoch, self.stamped)
            rows = self._call(arguments)
            if rows[0][0] != "restored":
                verdicts = batch.verdicts(rows)
                if self.notify_at is None and any(v.outcome in RECORDED and v.fact_count for v in verdicts):
                    self.notify_at = time.monotonic() + NOTIFY_S
                return verdicts
            before, self.epoch = self.epoch, cast(int, rows[0][2])
            if before != EPOCH_UNKNOWN:
                return [RESTORED] * len(batch.asked)

    def _call(self, arguments: Sequence[bytes]) -> list[tuple[Any, ...]]:
        began = time.monotonic()
        try:
            rows = self.connection.retrying(lambda conn: APPEND.rows(conn, arguments))
        except psycopg.DatabaseError as refused:
            if refused.diag.sqlstate != CLOSED:
                raise
            raise LedgerMoved("the ledger is closed") from refused
        self.took_s = time.monotonic() - began
        return rows

    def _one_by_one(self, batch: Batch) -> list[Verdict | Exception]:
        """One of them is broken: the others are not to suffer."""
        verdicts: list[Verdict | Exception] = []
        failed: set[str] = set()
        for asked in batch.asked:
            alone = Batch()
            alone.take(asked)
            verdict: Verdict | Exception
            if failed & asked.reads.keys():
                verdict = UNDONE
            else:
                try:
                    verdict = self._send(alone)[0]
                except Exception as broken:  # noqa: BLE001  told to whoever asked for it
                    verdict = broken
            if isinstance(verdict, Exception) or verdict.outcome != "appended":
                failed |= {stream for stream, _, _ in asked.facts}
            verdicts.append(verdict)
        return verdicts

    def _tell(self, asked: Sequence[Asked], verdicts: Sequence[Verdict | Exception]) -> None:
        for each, verdict in zip(asked, verdicts, strict=True):
            self._settle(each.ticket, verdict)
        _wake([each.ticket for each in asked])

    def _settle(self, ticket: Ticket, verdict: Verdict | Exception) -> None:
        if isinstance(verdict, Exception):
            ticket.error = verdict
        else:
            ticket.verdict = verdict

    def _notify(self) -> None:
        """After the commit, never inside it: a notification inside takes a lock of the whole server."""
        self.notify_at = None
        try:
            self.connection.retrying(lambda conn: conn.execute(NOTIFY, (Texts(self.channels),)), once=True)
        except Exception:  # noqa: BLE001  no command depends on it
            if not self.closing:
                self.notify_at = time.monotonic() + NOTIFY_AGAIN_S


def _scalars(epoch: int, at_us: int, stamped: bool) -> tuple[bytes, bytes, bytes]:
    return epoch.to_bytes(4, "big", signed=True), at_us.to_bytes(8, "big", signed=True), bytes([stamped])


def _wake(tickets: Sequence[Ticket]) -> None:
    """Threads by their gate; tasks by one call into each loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in tickets:
        ticket.gate.release()
        for waiter in ticket.waiters:
            loops.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, waiters in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, waiters)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
