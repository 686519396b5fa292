"""The projector without Faust and without a broker: every fact of the log as runs, into Postgres.

Cutting the runs and packing them is the relay's work, unpacking them the worker's: told beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from infra.mapper import StoredFact
from infra.readmodel import PostgresSink
from infra.runtime import Runtime, collect_less_garbage
from infra.settings import Settings
from projections.registry import projections_in
from projections.rows import Engine
from streams.projector import Projecting, Projector
from streams.relay import CYCLE_FACTS_MAX
from streams.topics import pack, runs, unpack

RUNS_AT_ONCE = 20


async def main(runtime: Runtime) -> dict[str, Any]:
    name, ledger = runtime.settings.ledger, runtime.ledger()
    facts: list[StoredFact] = []
    head = (await ledger.head()).position
    while not facts or facts[-1].position < head:
        facts += await ledger.facts(facts[-1].position if facts else 0, head)
    spent_s = time.process_time()
    heads: dict[tuple[str, int], int] = {}
    packed = [
        (run.topic, run.partition, pack(run))
        for first in range(0, len(facts), CYCLE_FACTS_MAX)
        for run in runs(name, facts[first : first + CYCLE_FACTS_MAX], heads)
    ]
    packed_s = time.process_time()
    arrived = [unpack(*record) for record in packed]
    unpacked_s = time.process_time()
    rows = [Projecting(projection) for projection in projections_in(Engine.POSTGRES)]
    projector = Projector(name, ledger, PostgresSink(runtime.ledger()), rows)
    began, cpu_s = time.monotonic(), time.process_time()
    for nth in range(0, len(arrived), RUNS_AT_ONCE):
        await projector.take(arrived[nth : nth + RUNS_AT_ONCE])
    return {
        "facts": len(facts),
        "seconds": time.monotonic() - began,
        "cpu_us": (time.process_time() - cpu_s) / len(facts) * 1e6,
        "pack_us": (packed_s - spent_s) / len(facts) * 1e6,
        "unpack_us": (unpacked_s - packed_s) / len(facts) * 1e6,
    }


if __name__ == "__main__":
    collect_less_garbage()  # as the worker does
    print(json.dumps(asyncio.run(main(Runtime(Settings())))))
