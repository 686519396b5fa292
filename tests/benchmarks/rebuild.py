"""Every read model anew from the log, beside the old one, compared and switched."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.figure import Figure
from tests.benchmarks.retail import Part


def measure(folder: Path, part: Part, rounds: int, home: Path | None) -> Figure:
    figure = Figure("rebuild", "rebuild of every read model from the log", "s", 60, False)
    figure.skipped = "infra.audit.rebuild is not there yet"
    return figure
