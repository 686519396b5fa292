"""Imports a file as commands, and keeps its own list of what was acknowledged."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.retail.file import read_invoices
from api.retail.importer import import_invoices
from commands.handling import Answer, Ask, Handler
from infra.engines.home import environment, running
from infra.runtime import Runtime, operator
from infra.settings import Settings

TENANT = "chaos"
CURRENCY = "GBP"
AGAIN_S = 1.0


class Noting(Handler):
    """Writes down each answer before anybody else hears of it; what is written survives our own death.

    And takes its time, so that there is something to disturb.
    """

    def __init__(self, handler: Handler, notes: Any, pause_s: float) -> None:
        super().__init__(handler.log, handler.clock)
        self.notes, self.pause_s = notes, pause_s

    def handle_all(self, requests: Sequence[Ask]) -> list[Answer | Exception]:
        answers = super().handle_all(requests)
        for ask, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Answer):
                self.notes.write(f"{ask.by.tenant}\t{ask.key}\t{answer.position}\n")
                time.sleep(self.pause_s)
        return answers


def main(home: Path, file: Path, acknowledged: Path, pause_s: float) -> None:
    invoices = read_invoices(file)
    up = running(home)
    assert up is not None, "nobody runs this home"
    os.environ.update(environment(up))
    with acknowledged.open("a", buffering=1) as notes:
        handler = Noting(Runtime(Settings()).handler(), notes, pause_s)
        while True:
            summary = import_invoices(handler, invoices, actor=operator(TENANT), currency=CURRENCY)
            assert not summary.failed, summary.failed[:3]
            print(summary.invoices, summary.imported, f"{summary.seconds:.1f} s", summary.stopped, flush=True)
            if summary.stopped is None:
                return
            time.sleep(AGAIN_S)


if __name__ == "__main__":
    home, file, acknowledged, pause_s = sys.argv[1:]
    main(Path(home), Path(file), Path(acknowledged), float(pause_s))
