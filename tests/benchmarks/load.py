"""Imports files as commands: `load FILE TENANT [LINES_PER_S FILE ...]`. Prints what came of it as JSON.

The first file goes in as `counterfoil import` does it. The others keep to a schedule, however long answers
take (an open loop), each invoice by a client of its own on one event loop, as behind the API. Each of them
begins when a line comes in, and prints one for each invoice: when it was due, when it was acknowledged, its
position; then an empty one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from api.demo import CURRENCY
from api.retail.file import Invoice, read_invoices
from api.retail.importer import commands_of, import_invoices, is_charge, titles_of
from commands.catalog import ListOffer
from commands.handling import Actor, Answer, Ask, Handler
from domain.catalog import OfferAlreadyListed
from infra.runtime import Runtime, collect_less_garbage, operator
from infra.settings import Settings


def peak_mib() -> int:
    """Of this program: getrusage would count whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


class Shop:
    """Clients of one tenant, who know what is listed."""

    def __init__(self, handler: Handler, actor: Actor, titles: dict[str, str]) -> None:
        self.handler, self.actor, self.titles = handler, actor, titles
        self.listing: dict[str, asyncio.Task[None]] = {}

    async def list_offer(self, code: str) -> None:
        command = ListOffer(offer=code, title=self.titles.get(code, code))
        try:
            await self.handler.handling(Ask(command, self.actor, f"offer-{code}"))
        except OfferAlreadyListed:
            return

    async def record(self, invoice: Invoice, known: set[str]) -> int:
        """Its offers, as far as they are new, then its papers; the last position."""
        codes = {line.code for line in invoice.lines if not is_charge(line.code)} - known
        for code in codes - self.listing.keys():
            self.listing[code] = asyncio.create_task(self.list_offer(code))
        await asyncio.gather(*(self.listing[code] for code in codes))
        position = 0
        for key, command in commands_of(invoice, self.actor.tenant, CURRENCY):
            answer: Answer = await self.handler.handling(Ask(command, self.actor, key))
            position = max(position, answer.position)
        return position

    async def keep_to(self, invoices: Sequence[Invoice], per_s: float, known: set[str]) -> None:
        """So many lines a second: an invoice is due when those before it have had their time, however late
        they are."""
        due = time.monotonic()

        async def client(invoice: Invoice, due: float) -> None:
            position = await self.record(invoice, known)
            print(due, time.monotonic(), position, flush=True)

        async with asyncio.TaskGroup() as clients:
            for invoice in invoices:
                await asyncio.sleep(max(due - time.monotonic(), 0))
                clients.create_task(client(invoice, due))
                due += len(invoice.lines) / per_s


async def on_schedule(handler: Handler, actor: Actor, files: Sequence[str], per_s: float) -> None:
    pieces = [read_invoices(Path(file)) for file in files[1:]]
    shop = Shop(handler, actor, titles_of(invoice for piece in pieces for invoice in piece))
    known = {line.code for invoice in read_invoices(Path(files[0])) for line in invoice.lines}
    for piece in pieces:
        if await asyncio.to_thread(sys.stdin.readline):
            await shop.keep_to(piece, per_s, known)
            print(flush=True)


def main(file: str, tenant: str, per_s: str | None = None, *later: str) -> None:
    reading = time.monotonic()
    invoices = read_invoices(Path(file))
    handler, actor = Runtime(Settings()).handler(), operator(tenant, "bench")
    collect_less_garbage()
    began, cpu_s = time.monotonic(), time.process_time()
    summary = import_invoices(handler, invoices, actor=actor, currency=CURRENCY)
    told = {
        "began": began,
        "ended": time.monotonic(),
        "read_s": round(began - reading, 2),
        "cpu_s": round(time.process_time() - cpu_s, 2),
        "rss_mib": peak_mib(),
        "invoices": summary.imported,
        "lines": summary.lines,
    }
    if summary.failed or summary.stopped:
        sys.exit(f"{summary.stopped or ''} {[str(failure) for failure in summary.failed[:3]]}")
    print(json.dumps(told), flush=True)
    if per_s is not None:
        asyncio.run(on_schedule(handler, actor, (file, *later), float(per_s)))


if __name__ == "__main__":
    main(*sys.argv[1:])
