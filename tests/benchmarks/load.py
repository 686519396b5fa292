"""Imports a file as commands, as `counterfoil import` does: `load FILE TENANT [INVOICES_PER_S]`.

Prints what came of it as JSON. With a rate it keeps to a schedule, however long the answers take (an open
loop), and prints a line for each invoice before: when it was due, when it was acknowledged, its position.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from api.demo import CURRENCY
from api.retail.file import Invoice, read_invoices
from api.retail.importer import TOGETHER_INVOICES, Summary, import_invoices
from commands.handling import Answer, Ask, Handler
from infra.runtime import Runtime, collect_less_garbage, operator
from infra.settings import Settings


class Noting(Handler):
    """Keeps the position of the last answer."""

    position = 0
    tenant = ""

    def handle_all(self, requests: Sequence[Ask]) -> list[Answer | Exception]:
        answers = super().handle_all(requests)
        self.position = max([self.position, *(a.position for a in answers if isinstance(a, Answer))])
        return answers


def peak_mib() -> int:
    """Of this program: getrusage would count whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def at_once(handler: Noting, invoices: Sequence[Invoice]) -> Summary:
    return import_invoices(handler, invoices, actor=operator(handler.tenant, "bench"), currency=CURRENCY)


def on_schedule(handler: Noting, invoices: Sequence[Invoice], per_s: float) -> Summary:
    """One invoice is due every so often from the first on; a late one does not move the next.

    What is due is sent together, as it would be by clients who do not wait for each other.
    """
    whole, began = Summary(), time.monotonic()
    while whole.invoices < len(invoices):
        first = whole.invoices
        time.sleep(max(began + first / per_s - time.monotonic(), 0))
        due = int((time.monotonic() - began) * per_s) + 1
        few = invoices[first : max(min(due, first + TOGETHER_INVOICES), first + 1)]
        done = at_once(handler, few)
        for nth in range(first, first + len(few)):
            print(began + nth / per_s, time.monotonic(), handler.position, flush=True)
        whole.invoices += len(few)
        whole.lines += done.lines
        whole.imported += done.imported
        whole.failed += done.failed
        whole.stopped = whole.stopped or done.stopped
    return whole


def main(file: str, tenant: str, per_s: str | None = None) -> None:
    reading = time.monotonic()
    invoices = read_invoices(Path(file))
    plain = Runtime(Settings()).handler()
    handler = Noting(plain.log, plain.clock)
    handler.tenant = tenant
    collect_less_garbage()
    began, cpu_s = time.monotonic(), time.process_time()
    summary = at_once(handler, invoices) if per_s is None else on_schedule(handler, invoices, float(per_s))
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


if __name__ == "__main__":
    main(*sys.argv[1:])
