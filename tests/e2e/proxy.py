"""A TCP proxy that cuts connections, mid-record as it comes, and swallows what is on its way for a while."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from infra.engines.broker import EmbeddedBroker
from infra.engines.server import LOOPBACK, Command, free_port

CHUNK_BYTES = 16_384


class ProxiedBroker(EmbeddedBroker):
    """Tells clients to come through the proxy."""

    proxy_port: int

    def command(self) -> Command:
        command = super().command()
        command.environment["ADVERTISED_LISTENER_URL"] = f"tcp://{LOOPBACK}:{self.proxy_port}"
        return command


class Proxy:
    """Runs in a thread with a loop of its own; what it does is asked for by the test."""

    def __init__(self, target_port: int, chance: random.Random) -> None:
        self.port, self.target_port, self.chance = free_port(), target_port, chance
        self.cuts = self.carried_bytes = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()

    def cut(self) -> None:
        """End every connection, whatever it was in the middle of."""
        asyncio.run_coroutine_threadsafe(self._cut(), self.loop).result(10)

    async def _cut(self) -> None:
        for writer in list(self.open):
            writer.transport.abort()
            self.cuts += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self.target_port)
        except OSError:
            writer.close()
            return
        self.open |= {writer, far_writer}
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        finally:
            self.open -= {writer, far_writer}
            writer.close()
            far_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                self.carried_bytes += len(data)
                if self.chance.random() < 0.0005:  # only a part of it arrives
                    writer.write(data[: self.chance.randrange(len(data))])
                    await writer.drain()
                    self.cuts += 1
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    def run(self) -> None:
        """Until `stop`; everything it opened is closed."""
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, LOOPBACK, self.port))
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()

    def stop(self) -> None:
        self.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)


@contextmanager
def proxied(broker: ProxiedBroker, chance: random.Random) -> Iterator[Proxy]:
    """A broker behind a proxy, both running."""
    proxy = Proxy(broker.port, chance)
    broker.proxy_port = proxy.port
    broker.start()
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(5)
        broker.stop()
