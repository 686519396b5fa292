"""Where the simulation takes the place of drivers: the names of modules, for as long as a run lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import faust

import streams.app
import streams.relay
from commands import handling
from infra import analytics, connection, eventstore, groupcommit, ledger, reads, turns
from tests.simulation.blocks import Blocks
from tests.simulation.broker import App, Broker, Publisher
from tests.simulation.connections import connecting, connections, prepared
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import PROCESS
from tests.simulation.server import Server
from tests.simulation.threads import Event, Threading, Time

del faust  # imported here first: it is slow, and no run's business
THREADED = (groupcommit, reads, turns, connection, analytics, handling)
TIMED = (groupcommit, turns, connection)


@contextmanager
def seams(
    loop: VirtualLoop,
    server: Server,
    broker: Broker,
    blocks: Blocks,
    projecting: Callable[[Any], Any],
) -> Iterator[None]:
    """psycopg, kafka-python, Faust and the ClickHouse client; threads and their clock."""

    @dataclass(slots=True)
    class Shared(turns.Shared):
        ready: Any = field(default_factory=lambda: Event(loop))

    def faust_app(_: object, name: str) -> App:
        app = App(name, broker)
        process = PROCESS.get()
        assert process is not None
        process.at_death.append(lambda: broker.leave(app))
        return app

    connected = connections(server)
    replaced: list[tuple[Any, str, Any]] = [
        *((module, "threading", Threading(loop)) for module in THREADED),
        *((module, "time", Time(loop)) for module in TIMED),
        (eventstore, "Connection", connected),
        (turns, "Connection", connected),
        (turns, "Shared", Shared),
        (connection.Statement, "rows", prepared),
        (ledger, "connect", connecting(server)),
        (analytics.ClickHouse, "_connect", blocks.client),
        (streams.relay, "Bus", lambda *_: Publisher(broker)),
        (streams.app, "faust_app", faust_app),
        (streams.app, "shorten_fetch_wait", lambda: None),
        (streams.app, "Projecting", projecting),
    ]
    with ExitStack() as stack:
        for owner, name, double in replaced:
            stack.enter_context(patch.object(owner, name, double))
        yield
