"""A ledger that has moved is followed by nobody where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from infra.connection import LedgerMoved
from streams import app
from streams.app import while_filled
from streams.relay import Relay
from tests.streams.line import LEDGER, Line
from tests.streams.test_relay import MemoryBus

WITHIN_S = 10


@pytest.fixture
def line(line: Line) -> Iterator[Line]:
    yield line
    line.conn.execute("UPDATE head SET closed = NULL")


def test_a_relay_ends_and_publishes_nothing_more(line: Line) -> None:
    bus = MemoryBus()

    async def relayed() -> None:
        desk = line.ledger()
        relay = asyncio.ensure_future(Relay(LEDGER, desk, bus).run())
        await asyncio.sleep(0.2)
        assert not relay.done(), "while it is only being copied, it is followed"
        line.conn.execute("UPDATE head SET closed = 'moved'")
        try:
            await asyncio.wait_for(relay, WITHIN_S)
        finally:
            await desk.close()

    line.conn.execute("UPDATE head SET closed = 'moving'")
    with pytest.raises(LedgerMoved):
        asyncio.run(relayed())
    assert line.conn.execute("SELECT lease_until < now() FROM relay").fetchone() == (True,), "it resigned"


def test_a_worker_ends(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would take records of the new place's facts, which it cannot read in the old one."""
    monkeypatch.setattr(app, "HEAL_S", 0.05)

    async def watched() -> None:
        ledger = line.ledger()
        watching = asyncio.ensure_future(while_filled(ledger, "a broker"))
        await asyncio.sleep(0.3)
        assert not watching.done()
        line.conn.execute("UPDATE head SET closed = 'moved'")
        try:
            await asyncio.wait_for(watching, WITHIN_S)
        finally:
            await ledger.close()

    line.conn.execute("UPDATE relay SET broker = 'a broker'")
    with pytest.raises(LedgerMoved):
        asyncio.run(watched())
