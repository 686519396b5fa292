"""From a command's intended start to its row in the read model, at a constant arrival rate (open loop).

How far the read models are is looked at every 20 ms in one statement: what `Counterfoil-At-Least` waits for.
Beside that some commands are asked for through the API itself, by one client: a new one for each reads the
certificates of all the world before it says a word, and half of the machine would measure that.
"""

from __future__ import annotations

import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from api.demo import CURRENCY
from api.report import headers, report
from api.retail.figures import UNIT_CODES
from infra.ledger import Place
from projections.registry import projections_in
from projections.rows import Engine
from tests.benchmarks.figure import Figure, Wrong
from tests.benchmarks.ingest import LOAD
from tests.benchmarks.retail import Part, check, part
from tests.benchmarks.system import EVERYTHING, System, say, system

TENANT = "lag"
LOOK_S = 0.02
ANSWER_S_MAX = 120.0
ASK_POSTGRES_EVERY, ASK_CLICKHOUSE_EVERY = 5, 100
LOOK = """
SELECT r.through,
       (SELECT coalesce(json_agg(json_build_array(topic, partition, last_position)), '[]') FROM relay_head),
       (SELECT coalesce(json_agg(json_build_array(c.engine, c.name, c.topic, c.partition, c.position)), '[]')
          FROM checkpoints c LEFT JOIN projections p USING (engine, name)
         WHERE c.version = coalesce(p.version, 1))
  FROM relay r"""


@dataclass(slots=True)
class Watch:
    """When each engine had come to which position: two lists for each, both ascending."""

    system: System
    at: dict[Engine, list[float]] = field(default_factory=lambda: {engine: [] for engine in Engine})
    reached: dict[Engine, list[int]] = field(default_factory=lambda: {engine: [] for engine in Engine})
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with self.system.database() as conn:
            conn.prepare_threshold = 0
            while not self.stop.wait(LOOK_S):
                row = conn.execute(LOOK).fetchone()
                now = time.monotonic()
                assert row is not None
                through, heads, marks = row
                published = {(topic, partition): last for topic, partition, last in heads}
                marked = {tuple(key): position for *key, position in marks}
                for engine in Engine:
                    position = complete_through(engine, through, published, marked)
                    if not self.reached[engine] or position > self.reached[engine][-1]:
                        self.at[engine].append(now)
                        self.reached[engine].append(position)

    def shown_at(self, engine: Engine, position: int) -> float:
        nth = bisect_left(self.reached[engine], position)
        if nth == len(self.reached[engine]):
            raise Wrong(f"{engine.value} never came to position {position}")
        return self.at[engine][nth]


def complete_through(
    engine: Engine, through: int, published: dict[Place, int], marked: dict[tuple[Any, ...], int]
) -> int:
    """The position up to which every projection of an engine has everything."""
    found = through
    for projection in projections_in(engine):
        for (topic, partition), last in published.items():
            if topic.split(".")[2] in projection.contexts:
                mark = marked.get((engine.value, projection.name, topic, partition), 0)
                found = min(found, mark) if mark < last else found
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so many are not above."""
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]


def ask(client: httpx.Client, engine: Engine, token: str, due: float) -> float:
    """Seconds from `due` until the API answers with that position in."""
    while True:
        answer = client.get(
            "/api/v1/reports/revenue",
            params={"engine": engine.value, "currency": CURRENCY, "by": "total"},
            headers={"Counterfoil-At-Least": token, "Prefer": "wait=30"},
        )
        spent_s = time.monotonic() - due
        if answer.status_code == httpx.codes.OK:
            return spent_s
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or spent_s > ANSWER_S_MAX:
            raise Wrong(f"the API answered {answer.status_code}: {answer.text[:300]}")


def window(made: System, load: subprocess.Popen[bytes]) -> dict[str, list[float]]:
    """One stretch of load; seconds from the intended start of each command."""
    with made.database() as conn:
        row = conn.execute("SELECT epoch FROM head").fetchone()
        assert row is not None
        ledger = f"{made.settings.ledger}.{row[0]}"
    watch = Watch(made)
    watching = threading.Thread(target=watch.run, daemon=True)
    watching.start()
    commands: list[tuple[float, float, int]] = []
    asked: dict[Engine, list[Future[float]]] = {engine: [] for engine in Engine}
    assert load.stdin is not None
    load.stdin.write(b"go on\n")
    load.stdin.flush()
    with (
        httpx.Client(base_url=made.api, headers=headers(made.runtime, TENANT), timeout=60) as client,
        ThreadPoolExecutor(16) as asking,
    ):
        while (line := said(load)) != b"\n":
            due, acknowledged, position = line.split()
            commands.append((float(due), float(acknowledged), int(position)))
            for engine, every in (
                (Engine.POSTGRES, ASK_POSTGRES_EVERY),
                (Engine.CLICKHOUSE, ASK_CLICKHOUSE_EVERY),
            ):
                if len(commands) % every == 0:
                    asked[engine].append(
                        asking.submit(ask, client, engine, f"{ledger}:{int(position)}", float(due))
                    )
    made.until_quiet()
    time.sleep(5 * LOOK_S)
    watch.stop.set()
    watching.join()
    found = {"acknowledged": [acknowledged - due for due, acknowledged, _ in commands]}
    for engine in Engine:
        found[engine.value] = [watch.shown_at(engine, position) - due for due, _, position in commands]
        found[f"{engine.value} through the API"] = [future.result() for future in asked[engine]]
    return found


def said(load: subprocess.Popen[bytes]) -> bytes:
    assert load.stdout is not None
    line = load.stdout.readline()
    if not line:
        raise Wrong("the load ended with an error; see logs")
    return line


def measure(folder: Path, pieces: list[Part], lines_per_s: float) -> Figure:
    """The first piece goes in before, at full speed: a shop that has just opened lists an offer a line, and a
    program that has just started knows none of its pools."""
    figure = Figure("lag", "event to read model in Postgres, p99, from the intended start", "s", 1.0, False)
    every: dict[str, list[float]] = {}
    lines = sum(len(piece.lines) for piece in pieces[1:])
    invoices = sum(len({line[0] for line in piece.lines}) for piece in pieces[1:])
    arguments = (str(pieces[0].file), TENANT, str(lines_per_s))
    with (
        system(folder / "lag", *EVERYTHING) as made,
        made.child(LOAD, *arguments, *(str(piece.file) for piece in pieces[1:]), talk=True) as load,
    ):
        said(load)
        made.until_quiet()
        for nth in range(1, len(pieces)):
            found = window(made, load)
            for name, values in found.items():
                every.setdefault(name, []).extend(values)
            p50, p99 = (percentile(found["postgres"], share) for share in (0.5, 0.99))
            figure.round(p99, {"acknowledged, with no read model": percentile(found["acknowledged"], 0.99)})
            say(f"lag {nth}/{len(pieces) - 1}: p50 {p50:.3f} s, p99 {p99:.3f} s")
        whole = {name: sum(piece.expected[name] for piece in pieces) for name in pieces[0].expected}
        check(report(made.api, made.runtime, TENANT, CURRENCY, UNIT_CODES), whole)
    figure.details = {
        "load": f"{lines_per_s:,.0f} lines/s in {invoices:,} invoices, {lines:,} lines",
        **{
            f"{name}, s": {
                "p50": round(percentile(values, 0.5), 3),
                "p99": round(percentile(values, 0.99), 3),
                "of": len(values),
            }
            for name, values in every.items()
            if values
        },
    }
    return figure


def pieces(folder: Path, days: list[date]) -> list[Part]:
    """Parts that follow one another: up to each day, from the day after the one before."""
    found: list[Part] = []
    after: date | None = None
    for day in days:
        found.append(part(folder, day, after))
        after = day
    return found
