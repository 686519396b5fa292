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
from api.retail import importer
from api.retail.file import read_invoices
from api.retail.importer import import_invoices
from commands.handling import Answer, Ask, Handler
from infra.runtime import Runtime, collect_less_garbage, operator
from infra.settings import Settings


class Noting(Handler):
    """Keeps the position of the last answer."""

    position = 0

    def handle_all(self, requests: Sequence[Ask]) -> list[Answer | Exception]:
        answers = super().handle_all(requests)
        self.position = max([self.position, *(a.position for a in answers if isinstance(a, Answer))])
        return answers


def peak_mib() -> int:
    """Of this program: getrusage would count whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


class Schedule:
    """One invoice is due every so often from the first on; a late one does not move the next."""

    def __init__(self, handler: Noting, per_s: float | None) -> None:
        self.handler, self.every_s = handler, per_s and 1 / per_s
        self.due = 0.0

    def wait(self) -> bool:
        """Until the next invoice is due; False, as the import asks whether to stop."""
        if self.every_s is not None:
            now = time.monotonic()
            self.due = self.due + self.every_s if self.due else now
            time.sleep(max(self.due - now, 0))
        return False

    def acknowledged(self, lines: int) -> None:
        if self.every_s is not None:
            print(self.due, time.monotonic(), self.handler.position, flush=True)


def main(file: str, tenant: str, per_s: str | None = None) -> None:
    reading = time.monotonic()
    invoices = read_invoices(Path(file))
    plain = Runtime(Settings()).handler()
    handler = Noting(plain.log, plain.clock)
    collect_less_garbage()
    schedule = Schedule(handler, None if per_s is None else float(per_s))
    if per_s is not None:
        importer.TOGETHER_INVOICES = 1  # each is due at its own time
    began, cpu_s = time.monotonic(), time.process_time()
    summary = import_invoices(
        handler,
        invoices,
        actor=operator(tenant, "bench"),
        currency=CURRENCY,
        on_progress=schedule.acknowledged,
        stop=schedule.wait,
    )
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
