"""What one worker takes in: a real worker process on a broker that holds everything already."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from infra.engines.footprint import tree
from infra.mapper import HEADER
from streams.topics import PARTITIONS, topics
from tests.benchmarks.bare import SMALL
from tests.benchmarks.figure import Figure, Wrong
from tests.benchmarks.ingest import LOAD, TENANT
from tests.benchmarks.retail import Part
from tests.benchmarks.system import LOOK_S, System, left, say, system

RELAY, WORKER, NOTING = "streams.relay", "streams.app", "tests.benchmarks.worker"
WORKER_S_MAX = 300.0
SMALL_FACTS_MAX = 40_000
BUILT = ("postgres", "clickhouse")
SAMPLE = "SELECT topic, state FROM stored_events ORDER BY notification_id LIMIT %s"


def worker(made: System) -> dict[str, float]:
    """Seconds from a fresh worker's first records to its last commit, for each engine; its processor time."""
    with made.database() as conn, made.child(NOTING, output=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise Wrong(f"the worker did not start; see {made.home}/logs/{NOTING}.log")
        first_s, cpu_s = float(said), _cpu_s(process.pid)
        ends: dict[str, float] = {}
        while len(ends) < len(BUILT):
            if process.poll() is not None or time.monotonic() - first_s > WORKER_S_MAX:
                raise Wrong(f"the worker did not finish; see {made.home}/logs/{NOTING}.log")
            for engine in BUILT:
                if engine not in ends and not left(conn, engine)[1]:
                    ends[engine] = time.monotonic() - first_s
            time.sleep(LOOK_S)
        ends["cpu"] = _cpu_s(process.pid) - cpu_s
    return ends


def _cpu_s(pid: int) -> float:
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def fill_small(made: System, round_: int) -> tuple[str, int]:
    """A topic with one fact a record, as JSON."""
    topic = f"{SMALL}-{round_}"
    bootstrap = made.runtime.kafka
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, num_partitions=PARTITIONS, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=5, batch_size=256 * 1024, compression_type="lz4"
    )
    count = 0
    with made.database() as conn:
        for name, state in conn.execute(SAMPLE, (SMALL_FACTS_MAX,)):
            *_, length = HEADER.unpack_from(state)
            body = {"name": name, "data": json.loads(state[HEADER.size + length :])}
            producer.send(topic, partition=count % PARTITIONS, value=json.dumps(body).encode())
            count += 1
    producer.flush()
    producer.close()
    return topic, count


def bare(made: System, facts: int, names: list[str]) -> float:
    """Facts a second of a bare Faust agent."""
    told = made.told("tests.benchmarks.bare", made.runtime.kafka, str(facts), *names)
    if told["facts"] != facts:
        raise Wrong(f"the bare agent saw {told['facts']} facts of {facts}")
    return facts / float(told["seconds"])


def measure(folder: Path, part: Part, rounds: int) -> Figure:
    figure = Figure(
        "projector", "facts a second of one worker, into Postgres and ClickHouse", "facts/s", 20_000, True
    )
    with system(folder / "projector") as made:
        with made.child(RELAY), made.child(WORKER):
            made.told(LOAD, str(part.file), TENANT)
            made.until_quiet()
        right = made.fingerprint()
        with made.database() as conn:
            row = conn.execute("SELECT position FROM head").fetchone()
            assert row is not None
            facts = int(row[0])
        for nth in range(rounds):
            made.empty_read_models()
            alone = made.told("tests.benchmarks.alone")
            made.empty_read_models()
            refill_s = made.refill_broker()
            topic, count = fill_small(made, nth)
            thin = bare(made, count, [topic])
            fat = bare(made, facts, topics(made.settings.ledger))
            took = worker(made)
            if made.fingerprint() != right:
                raise Wrong("the worker built other tables than before")
            built_s = max(took[engine] for engine in BUILT)
            figure.round(
                facts / built_s,
                {
                    "bare Faust agent, one fact a record": thin,
                    "bare Faust agent, the relay's records": fat,
                    "Projector alone, into Postgres": facts / alone["seconds"],
                },
            )
            say(f"projector {nth + 1}/{rounds}: {facts / built_s:,.0f} facts/s, bare {thin:,.0f}")
    figure.details = {
        "facts": facts,
        "facts/s into Postgres": round(facts / took["postgres"]),
        "processor us/fact, both engines": round(took["cpu"] / facts * 1e6, 1),
        "alone, processor us/fact": {
            name: round(alone[f"{name}_us"], 1) for name in ("pack", "unpack", "cpu")
        },
        "relay, from its start, into an empty broker, facts/s": round(facts / refill_s),
    }
    return figure
