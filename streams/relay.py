"""The relay: facts from the log to the broker, in log order, one relay at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from domain.registry import CONTEXTS
from infra.bus import Bus, BusUnavailable
from infra.connection import LedgerMoved
from infra.ledger import DATABASE_FAULTS, Deposed, Head, Ledger, Place
from infra.mapper import StoredFact
from infra.runtime import Runtime, run_role
from streams.topics import PARTITIONS, Run, context_of, pack, runs, topics

IDLE_S = 0.02
"""Between looks at a log that has nothing new: most of an event's way to a read model when idle."""
CYCLE_S = 0.1
CYCLE_FACTS_MAX = 4_000
"""Under load a cycle waits until so much time has passed or so much has come: thin records cost the
most, here, at the broker and at every worker. After a pause nothing waits."""
IDENTITY_S = 5.0
"""Between looks, while idle, at who the broker is: about 10 ms each. Publishing notices by itself."""
RETRY_S = 0.3
STANDBY_S = 1.0

log = logging.getLogger("counterfoil.relay")


class Desk(Protocol):
    """What the relay needs of the ledger."""

    async def head(self) -> Head: ...
    async def facts(self, after: int, through: int) -> list[StoredFact]: ...
    async def take_over(self) -> int | None: ...
    async def relayed(self) -> tuple[int, str, dict[Place, int]]: ...
    async def advance(
        self, fence: int, through: int, heads: dict[Place, int], broker: str | None = None
    ) -> None: ...
    async def oldest_checkpoint(self) -> int: ...
    async def resign(self, fence: int) -> None: ...


class Publisher(Protocol):
    """What the relay needs of the broker; both calls may block and run in a thread."""

    def identity(self) -> str: ...
    def publish(self, records: list[tuple[str, int, bytes]]) -> None: ...
    def close(self) -> None: ...


class Relay:
    """Publishes each fact at least once, and says in Postgres how far it is.

    What it says is fenced: a relay that was frozen and wakes up finds itself deposed. What it has
    sent twice does no harm, because a record says which positions it stands for.
    """

    def __init__(self, ledger: str, desk: Desk, bus: Publisher) -> None:
        self.ledger, self.desk, self.bus = ledger, desk, bus
        self.published = 0

    async def run(self) -> None:
        """Serve until cancelled; stand by while another relay is active. Raises LedgerMoved."""
        while True:
            await self._head()  # the lease is not for somebody who follows a ledger that has moved
            fence = await self.desk.take_over()
            if fence is None:
                await asyncio.sleep(STANDBY_S)
                continue
            try:
                await self.serve(fence)
            except Deposed:
                log.warning("another relay took over; standing by")
            except BusUnavailable as lost:
                log.warning("broker: %s; starting afresh", lost)
                await asyncio.sleep(RETRY_S)
            finally:
                self.bus.close()
                await self.desk.resign(fence)

    async def serve(self, fence: int) -> None:
        """Publish from where the broker's memory ends, for as long as nothing fails."""
        through, known, heads = await self.desk.relayed()
        await self.desk.advance(fence, 0, {})
        broker = await asyncio.to_thread(self.bus.identity)
        position = through
        if broker != known:
            position = await self.desk.oldest_checkpoint()
            heads = {place: min(last, position) for place, last in heads.items()}
            log.info("broker %s is new: publishing again from position %d", broker[:60], position)
        await self.desk.advance(fence, 0, {}, broker if position == through else None)
        clock = asyncio.get_running_loop().time
        cycle_at = clock()
        while True:
            head = await self._head()
            if head == position:
                await self.desk.advance(fence, position, {}, broker)
                await self._idle(fence, position, broker)
                continue
            if head - position < CYCLE_FACTS_MAX and (wait_s := cycle_at - clock()) > 0:
                await asyncio.sleep(wait_s)
                head = await self._head()
            cycle_at = clock() + CYCLE_S
            facts = await self.desk.facts(position, head)
            moved = dict(heads)
            cut = list(runs(self.ledger, facts, moved))
            await asyncio.to_thread(self.bus.publish, [_record(run) for run in cut if _has_topic(run)])
            position, heads = facts[-1].position, moved
            touched = {run.place: heads[run.place] for run in cut}
            await self.desk.advance(fence, position, touched, broker if position >= through else None)
            self.published += len(facts)

    async def _idle(self, fence: int, position: int, broker: str) -> None:
        """Wait for something new, keeping the lease. Raises BusUnavailable for a broker that was replaced:
        what its followers still miss is not to wait for the next fact."""
        clock = asyncio.get_running_loop().time
        renew, look = clock() + 1.0, clock() + IDENTITY_S
        while await self._head() == position:
            await asyncio.sleep(IDLE_S)
            if clock() > renew:
                await self.desk.advance(fence, position, {})
                renew += 1.0
            if clock() > look:
                if await asyncio.to_thread(self.bus.identity) != broker:
                    raise BusUnavailable("it has been replaced by an empty one")
                look = clock() + IDENTITY_S

    async def _head(self) -> int:
        """The log's end. Raises LedgerMoved: its topics are another relay's now."""
        head = await self.desk.head()
        if head.moved:
            raise LedgerMoved("the settings still point at where it was")
        return head.position


def _record(run: Run) -> tuple[str, int, bytes]:
    return run.topic, run.partition, pack(run)


def _has_topic(run: Run) -> bool:
    """A newer program's context has none yet: its followers read these facts from the log, as they read any
    record that was lost."""
    return context_of(run.topic) in CONTEXTS


async def main(runtime: Runtime) -> None:
    """Keep a relay running; a database that goes away is waited for."""
    bus = Bus(runtime.kafka, topics(runtime.settings.ledger), PARTITIONS)
    while True:
        ledger = Ledger(runtime.settings.role_dsn("worker"), runtime.schema)
        try:
            await Relay(runtime.settings.ledger, ledger, bus).run()
        except DATABASE_FAULTS as lost:
            log.warning("database: %s", lost)
            await asyncio.sleep(RETRY_S)
        finally:
            await ledger.close()


if __name__ == "__main__":
    run_role("relay", main)
