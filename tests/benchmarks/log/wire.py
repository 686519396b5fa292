"""A contender's side of the wire: a request a line in, an answer a line out, both JSON; and the closed loop.

Standard library only: peers run it in environments of their own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

WARM_UP = 1
"""Calls of each worker that do not count: connections are opened and statements prepared by them."""
PAYLOAD_BYTES = 250
GARBAGE_OBJECTS = 1_000_000
EVENTS_OF_STREAM = 10
"""A writer turns to a new stream when its old one is so long."""

Op = Callable[[], object]
AsyncOp = Callable[[], Awaitable[object]]
Answer = dict[str, Any]


def serve(tasks: dict[str, Callable[..., Answer]], **ready: Any) -> None:
    """Answer until standard input ends. `ready` is said first.

    Every contender in Python looks for cycles as seldom as Counterfoil's roles do: it is worth a third.
    """
    gc.set_threshold(GARBAGE_OBJECTS)
    gc.freeze()
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    print(json.dumps({"ready": ready}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = tasks[request.pop("do")](**request)
        except Exception as fault:  # noqa: BLE001  whatever it is, it is told by name and the rest goes on
            traceback.print_exc()
            answer = {"fault": f"{type(fault).__name__}: {str(fault)[:300]}"}
        print(json.dumps(answer), file=out, flush=True)


class Meter:
    """What a stretch of work took: of this process, and of a Postgres server.

    The server's is the on-CPU time that the kernel tells of the postmaster's living children; a contender
    that keeps closing its connections would look cheaper than it is.
    """

    def __init__(self, server: int | None, besides: Sequence[int] = ()) -> None:
        self.server, self.besides = server, set(besides)
        self.cpu_s = self.server_s = 0.0
        self.at: dict[int, float] = {}

    def start(self) -> None:
        self.at = self._backends()
        self.cpu_s = time.process_time()

    def stop(self) -> None:
        self.cpu_s = time.process_time() - self.cpu_s
        self.server_s = sum(spent - self.at.get(pid, 0.0) for pid, spent in self._backends().items())

    def _backends(self) -> dict[int, float]:
        if self.server is None:
            return {}
        try:
            children = Path(f"/proc/{self.server}/task/{self.server}/children").read_text().split()
        except OSError:
            return {}
        found = {}
        for pid in {int(child) for child in children} - self.besides:
            try:
                found[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
            except OSError:
                continue
        return found


def closed(
    ops: Sequence[Op], seconds: float, server: int | None = None, besides: Sequence[int] = ()
) -> Answer:
    """Each op again and again in a thread of its own. What ends after the time is up does not count."""
    counts, late = [0] * len(ops), [0] * len(ops)
    faults: list[Exception] = []
    meter = Meter(server, besides)
    ends = 0.0

    def begin() -> None:
        nonlocal ends
        meter.start()
        ends = time.monotonic() + seconds

    start = threading.Barrier(len(ops), action=begin)

    def work(nth: int, op: Op) -> None:
        try:
            for _ in range(WARM_UP):
                op()
            start.wait()
            while time.monotonic() < ends:
                op()
                if time.monotonic() < ends:
                    counts[nth] += 1
                else:
                    late[nth] += 1
        except threading.BrokenBarrierError:
            return
        except Exception as fault:  # noqa: BLE001  raised below, from the thread that asked
            faults.append(fault)
            start.abort()

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(ops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meter.stop()
    if faults:
        raise faults[0]
    return told(sum(counts), sum(late), seconds, meter)


async def closed_async(
    ops: Sequence[AsyncOp], seconds: float, server: int | None = None, besides: Sequence[int] = ()
) -> Answer:
    """As `closed`, each op in a task of one event loop."""
    counts, late = [0] * len(ops), [0] * len(ops)
    meter = Meter(server, besides)

    async def warm(op: AsyncOp) -> None:
        for _ in range(WARM_UP):
            await op()

    await asyncio.gather(*map(warm, ops))
    meter.start()
    ends = time.monotonic() + seconds

    async def work(nth: int, op: AsyncOp) -> None:
        while time.monotonic() < ends:
            await op()
            if time.monotonic() < ends:
                counts[nth] += 1
            else:
                late[nth] += 1

    await asyncio.gather(*(work(*each) for each in enumerate(ops)))
    meter.stop()
    return told(sum(counts), sum(late), seconds, meter)


async def paced(op: AsyncOp, per_s: float, seconds: float) -> Answer:
    """An open loop: a command is due every 1/`per_s` s, however long the answers take.

    Its latency runs from when it was due, so what the generator itself is late counts too.
    """
    latencies: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        await op()
        latencies.append(time.monotonic() - due)

    for _ in range(WARM_UP):
        await op()
    began = time.monotonic()
    for nth in range(int(per_s * seconds)):
        due = began + nth / per_s
        await asyncio.sleep(max(due - time.monotonic(), 0))
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.gather(*tasks)
    took_s = time.monotonic() - began
    return {"commands": len(latencies), "seconds": took_s} | percentiles(latencies)


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """In milliseconds, by nearest rank."""
    ranked = sorted(latencies)
    at = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {
        name: round(ranked[min(int(len(ranked) * share), len(ranked) - 1)] * 1e3, 3)
        for name, share in at.items()
    }


def told(commands: int, late: int, seconds: float, meter: Meter) -> Answer:
    every = max(commands + late, 1)
    return {
        "commands": commands,
        "per_s": commands / seconds,
        "client_cpu_us": meter.cpu_s / every * 1e6,
        "server_cpu_us": meter.server_s / every * 1e6 if meter.server else None,
    }
