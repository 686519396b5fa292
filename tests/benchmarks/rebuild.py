"""Every read model anew from the log, beside the one that is shown, compared with it and put in its place."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from infra.audit.rebuild import Rebuilt, rebuild_all
from projections.registry import PROJECTIONS
from tests.benchmarks import floors
from tests.benchmarks.figure import Figure, Wrong
from tests.benchmarks.ingest import LOAD, TENANT
from tests.benchmarks.retail import Part
from tests.benchmarks.system import System, say, system

ROLES = ("relay", "worker")


def everything(made: System) -> tuple[float, list[Rebuilt]]:
    """Rebuild all projections, as `counterfoil rebuild` does, and see that nothing differed; in how long.

    Without the pause after each, which lets the API's readers go before the old tables are dropped.
    """
    began = time.monotonic()
    names = [projection.name for projection in PROJECTIONS]
    done = asyncio.run(rebuild_all(made.runtime, names, reason="benchmark", grace_s=0))
    took_s = time.monotonic() - began
    for outcome in done:
        if not outcome.ok or outcome.rows_differing or any(each.count for each in outcome.past_differences):
            raise Wrong(f"the rebuilt {outcome.projection} differs: {outcome.as_json()}")
    return took_s, done


def measure(folder: Path, part: Part, rounds: int, home: Path | None) -> Figure:
    """On the home of an import, or on one of its own."""
    what = f"rebuild of every read model from the log of {len(part.lines):,} lines"
    figure = Figure("rebuild", what, "s", 60, False)
    with system(home or folder / "rebuild", *ROLES) as made:
        if home is None:
            made.told(LOAD, str(part.file), TENANT)
        made.until_quiet()
        for nth in range(rounds):
            took, done = everything(made)
            made.until_quiet()  # that it was rebuilt is a fact too
            copied = floors.copy_read_models(made)
            figure.round(took, {"COPY of the same rows into tables of that shape": copied})
            say(f"rebuild {nth + 1}/{rounds}: {took:.1f} s")
        with made.database() as conn:
            row = conn.execute("SELECT position FROM head").fetchone()
            assert row is not None
    figure.details = {
        "facts in the log": int(row[0]),
        "lines": len(part.lines),
        "s by projection, two at a time": {each.projection: round(each.seconds, 2) for each in done},
        "workers stood still for s, at most": round(max(each.stopped_s for each in done), 2),
    }
    return figure
