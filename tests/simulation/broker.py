"""The broker: keeps records until it forgets them all; brings them late, twice, in any order or never."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.bus import BusUnavailable
from infra.ledger import Place
from tests.simulation.faults import Chance
from tests.simulation.loop import VirtualLoop

PUBLISH_S = 0.003
FETCH_S = 0.01
LATE_S = 1.5
STALE_S = 3.0
"""How long a worker goes on with a partition that was given to another."""
Watcher = Callable[[str, int, bytes], None]


class Broker:
    """Its memory has a name; an empty one has another."""

    def __init__(self, loop: VirtualLoop, chance: Chance, watch: Watcher) -> None:
        self.loop, self.chance, self.watch = loop, chance, watch
        self.up = True
        self.number = 1
        self.records: defaultdict[Place, list[bytes]] = defaultdict(list)
        self.committed: dict[tuple[str, Place], int] = {}
        """Offsets by group."""
        self.groups: dict[str, list[App]] = {}

    @property
    def name(self) -> str:
        return f"broker-{self.number}"

    def forget(self) -> None:
        """Killed, and another one on its port."""
        self.number += 1
        self.records.clear()
        self.committed.clear()

    def append(self, topic: str, partition: int, record: bytes) -> None:
        self.watch(topic, partition, record)
        weather = self.chance.weather
        if self.chance.happens(weather.record_lost):
            return
        self.records[topic, partition] += [record] * (2 if self.chance.happens(weather.record_twice) else 1)
        for group in self.groups.values():
            for app in group:
                app.woken()

    def join(self, app: App) -> None:
        self.groups.setdefault(app.group, []).append(app)
        self.rebalance()

    def leave(self, app: App) -> None:
        if app in self.groups.get(app.group, ()):
            self.groups[app.group].remove(app)
            self.rebalance()

    def rebalance(self) -> None:
        """Who has which partition, anew; the old owner may not know it for a while."""
        for members in self.groups.values():
            if not members:
                continue
            for app in members:
                app.former = app.owned
                app.owned = set()
                self.loop.call_later(STALE_S * self.chance.random.random(), app.former.clear)
            for partition in range(16):
                self.chance.random.choice(members).owned.add(partition)
            for app in members:
                app.woken()


class Publisher:
    """`infra.bus.Bus`: called in a fiber, and may block there."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def identity(self) -> str:
        self._trip()
        return self.broker.name

    def publish(self, records: Sequence[tuple[str, int, bytes]]) -> None:
        broker = self.broker
        self._trip()
        fails = broker.chance.happens(broker.chance.weather.broker_fails)
        kept = int(broker.chance.random.random() * (len(records) + 1)) if fails else len(records)
        for topic, partition, record in records[:kept]:
            broker.append(topic, partition, record)
        self._trip()
        if fails:
            raise BusUnavailable("not acknowledged")

    def _trip(self) -> None:
        broker = self.broker
        broker.loop.fibers.sleep(broker.chance.delay_s(PUBLISH_S))
        if not broker.up:
            raise BusUnavailable("nobody listens")

    def close(self) -> None:
        """Nothing is kept."""


# ── Faust, as far as streams/app.py asks for it ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    app: App
    message: Message
    value: bytes

    def ack(self) -> None:
        self.app.acknowledged(self.message)


class Stream:
    """What one agent is brought."""

    def __init__(self, app: App, topics: frozenset[str]) -> None:
        self.app, self.topics = app, topics
        self.waiting: list[Record] = []
        self.arrived = asyncio.Event()

    def bring(self, record: Record) -> None:
        self.waiting.append(record)
        self.arrived.set()

    async def noack_take(self, size: int, within: float) -> AsyncIterator[list[Record]]:
        while True:
            await self.arrived.wait()
            if len(self.waiting) < size:
                await asyncio.sleep(within * self.app.broker.chance.random.random())
            batch, self.waiting = self.waiting[:size], self.waiting[size:]
            if not self.waiting:
                self.arrived.clear()
            yield batch


class App:
    """A member of the group: brings what is new in its partitions, to each agent in its own way."""

    def __init__(self, group: str, broker: Broker) -> None:
        self.group, self.broker = group, broker
        self.streams: list[Stream] = []
        self.agents: list[Callable[[Stream], Awaitable[None]]] = []
        self.owned: set[int] = set()
        self.former: set[int] = set()
        self.fetched: dict[Place, int] = {}
        self.news = asyncio.Event()
        self.working: list[asyncio.Task[None]] = []

    def topic(self, *names: str, **_: Any) -> frozenset[str]:
        return frozenset(names)

    def agent(self, topics: frozenset[str], **_: Any) -> Callable[[Any], Any]:
        def attach(agent: Callable[[Stream], Awaitable[None]]) -> None:
            self.streams.append(Stream(self, topics))
            self.agents.append(agent)

        return attach

    async def start(self) -> None:
        self.broker.join(self)
        for agent, stream in zip(self.agents, self.streams, strict=True):
            self.working.append(asyncio.ensure_future(agent(stream)))
        self.working.append(asyncio.ensure_future(self._fetch()))

    async def wait_until_stopped(self) -> None:
        """An agent that ends takes the worker with it, as its supervisor says."""
        done, _ = await asyncio.wait(self.working, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        self.broker.leave(self)
        for task in self.working:
            task.cancel()

    def woken(self) -> None:
        self.news.set()

    async def _fetch(self) -> None:
        broker = self.broker
        while True:
            await self.news.wait()
            self.news.clear()
            await asyncio.sleep(broker.chance.delay_s(FETCH_S))
            if not broker.up or broker.name != self.group:
                continue
            for place, records in list(broker.records.items()):
                if place[1] in self.owned or place[1] in self.former:
                    self._bring(place, records)

    def _bring(self, place: Place, records: list[bytes]) -> None:
        first = self.fetched.get(place)
        if first is None:
            first = self.broker.committed.get((self.group, place), 0)
        for offset in range(first, len(records)):
            record = Record(self, Message(*place, offset), records[offset])
            for stream in self.streams:
                if place[0] in stream.topics:
                    self._hand_over(stream, record)
        self.fetched[place] = max(first, len(records))

    def _hand_over(self, stream: Stream, record: Record) -> None:
        chance = self.broker.chance
        if chance.happens(chance.weather.record_lost):
            return
        if chance.happens(chance.weather.record_late):
            self.broker.loop.call_later(LATE_S * chance.random.random(), stream.bring, record)
        else:
            stream.bring(record)
        if chance.happens(chance.weather.record_twice):
            self.broker.loop.call_later(LATE_S * chance.random.random(), stream.bring, record)

    def acknowledged(self, message: Message) -> None:
        key = (self.group, (message.topic, message.partition))
        self.broker.committed[key] = max(self.broker.committed.get(key, 0), message.offset + 1)
