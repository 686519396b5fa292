"""A bare Faust agent: JSON decode and a count by name, nothing else. `bare BROKER FACTS TOPIC...`

Facts come one a record, or many (the relay's own records). Prints the seconds from the first record to
the last.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import faust
import uvloop

from infra.mapper import HEADER
from streams.app import shorten_fetch_wait
from streams.topics import unpack

WAIT_S_MAX = 300.0
SMALL = "small"
"""How the topics of one fact a record begin."""


async def main(broker: str, facts: int, topics: list[str]) -> dict[str, Any]:
    shorten_fetch_wait()
    app = faust.App(
        f"bare-{time.time_ns()}",
        broker=f"kafka://{broker}",
        store="memory://",
        datadir=tempfile.mkdtemp(prefix="counterfoil-bare-"),
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        stream_wait_empty=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
        value_serializer="raw",
        key_serializer="raw",
    )
    counts: Counter[str] = Counter()
    done = asyncio.Event()
    first_s = last_s = spent_s = 0.0
    seen = 0

    async def agent(stream: Any) -> None:
        nonlocal first_s, last_s, spent_s, seen
        async for event in stream.events():
            if not seen:
                first_s, spent_s = time.monotonic(), time.process_time()
            if event.message.topic.startswith(SMALL):
                counts[json.loads(event.value)["name"]] += 1
                seen += 1
            else:
                for fact in unpack(event.message.topic, event.message.partition, event.value).facts:
                    *_, length = HEADER.unpack_from(fact.state)
                    json.loads(fact.state[HEADER.size + length :])
                    counts[fact.name] += 1
                    seen += 1
            if seen >= facts:
                last_s, spent_s = time.monotonic(), time.process_time() - spent_s
                done.set()

    app.agent(app.topic(*topics, value_type=bytes, key_type=bytes, internal=False), name="bare")(agent)
    await app.start()
    await asyncio.wait_for(done.wait(), WAIT_S_MAX)
    await app.stop()
    return {"seconds": last_s - first_s, "cpu_s": spent_s, "facts": seen, "names": counts}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))))
