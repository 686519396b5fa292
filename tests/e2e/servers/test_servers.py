"""The whole system on Apache Kafka and Debian's PostgreSQL: a real shop's month, and what befalls servers.

As infra/deploy deploys it: the node's properties are compose.yaml's, the roles are made by roles.sh, and
every role has an address of its own. Only ClickHouse is the embedded one, because no package brings a server
that is recent enough. Each test imports a part of December 2010 while something happens, and then asks for
everything that has to hold (tests/e2e/chaos/judge.py); the last one imports the whole month.

What was found, and holds for any Kafka (3.9.1, defaults but for compose.yaml's):
- Session timeout of workers: 6 s is the least a broker takes (group.min.session.timeout.ms) and held on two
  cores at a load of 15; 30 s is deployed, because it costs nothing. A dead worker's partitions move when its
  replacement joins, at the latest after 10 s (broker_rebalance_timeout in streams/app.py), and until then the
  others read them from the log, a second or two late.
- A node that was killed waits for the end of its own last session: 9 s by default, 3 s in these tests.
- A topic that was just made has no id for a moment, and a deleted one costs the relay its 15 s of delivery.
- Offsets are a hint: after a rebalance Faust commits a quiet partition's only with its next record.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from api.report import report
from infra.bus import Bus
from infra.engines.postgres import EmbeddedPostgres
from infra.runtime import Runtime
from streams.topics import PARTITIONS, topics
from tests.e2e.chaos.judge import judge
from tests.e2e.chaos.loader import CURRENCY, TENANT
from tests.e2e.chaos.system import System, loading
from tests.e2e.servers.kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

HALF = PARTITIONS * len(topics("0")) // 2
"""A worker's partitions, of two."""
UNDER_WAY = 200
"""Positions of an import after which something happens to it."""
OUTAGE_S = 2.0
WAIT_S_MAX = 90.0
UNIT_CODE = "84077"


def test_the_log_is_kept_by_debians_postgres_in_roles_that_compose_makes(made: System) -> None:
    with made.database() as conn:
        version = conn.execute("SELECT version(), current_setting('server_version_num')::int").fetchone()
        assert version is not None
        assert "Debian" in version[0]
        assert version[1] >= 150_000
    until(lambda: connected(made) == ["counterfoil_app", "counterfoil_worker"], "the roles are connected")


def test_kafka_carries_the_facts_and_the_group_acknowledges_every_record(
    made: System, slices: list[Path]
) -> None:
    until(lambda: members(made) == [HALF, HALF], "both workers are at work")
    imported(made, slices[0])
    until(lambda: acknowledged(made) == written(made) > 0, "the group has acknowledged everything")


def test_kafka_killed_and_back_with_its_data_is_the_same_broker_and_nothing_is_sent_again(
    made: System, kafka: ApacheKafka, slices: list[Path]
) -> None:
    identity = identified(made)
    rewinds = said(made, "relay", "is new")
    with under_way(made, slices[1]):
        os.kill(kafka.pid, signal.SIGKILL)
        time.sleep(OUTAGE_S)
        kafka.start()
    settled(made)
    assert identified(made) == identity == relayed_to(made)
    assert said(made, "relay", "is new") == rewinds


def test_topics_that_are_deleted_are_made_anew_and_filled_with_what_somebody_misses(
    made: System, slices: list[Path]
) -> None:
    settled(made)
    identity = identified(made)
    with under_way(made, slices[2]):
        for name in ("worker-1", "worker-2"):
            made.send(name, signal.SIGSTOP)
        with admin(made) as client:
            client.delete_topics(topics("0"))
        until(lambda: relayed_to(made) not in {identity, ""}, "the relay has noticed")
        for name in ("worker-1", "worker-2"):
            made.send(name, signal.SIGCONT)
    settled(made)
    assert identified(made) == relayed_to(made) != identity
    assert written(made) > 0


def test_a_killed_worker_is_replaced_and_its_partitions_move(made: System, slices: list[Path]) -> None:
    killed = made.pid("worker-1")
    with under_way(made, slices[3]):
        made.send("worker-1", signal.SIGKILL)
    settled(made)
    assert made.pid("worker-1") not in {None, killed}
    until(lambda: members(made) == [HALF, HALF], "the new one has its half, and the dead one nothing")


def test_postgres_stopped_at_once_and_started_again_keeps_what_was_acknowledged(
    made: System, debian: EmbeddedPostgres, slices: list[Path]
) -> None:
    with under_way(made, slices[4]):
        os.kill(debian.pid, signal.SIGQUIT)  # "immediate": no checkpoint, recovery from the WAL
        time.sleep(OUTAGE_S)
        debian.start()
    settled(made)


def test_december_2010_is_what_was_published_in_the_log_in_postgres_and_in_clickhouse(
    made: System, slices: list[Path]
) -> None:
    imported(made, slices[-1])
    found = judge(made)
    assert (found["lines"], found["net_revenue"]) == (42_481, "748957.020")
    assert made.running.api is not None
    told = report(made.running.api, Runtime(made.settings), TENANT, CURRENCY, [UNIT_CODE])
    assert told["log"] == told["postgres"] == told["clickhouse"]
    assert told["log"]["net_revenue"] == "748957.020"


# ── what happens ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def under_way(made: System, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An import that has begun; what the block does happens to it, and afterwards it has ended well."""
    began = head(made)
    with loading(made, file) as loader:
        until(lambda: head(made) > began + UNDER_WAY, "the import is under way")
        assert loader.poll() is None, "the import was over before anything could happen to it"
        yield loader
        assert loader.wait(WAIT_S_MAX) == 0, (made.home / "loader.log").read_text()[-2_000:]


def imported(made: System, file: Path) -> None:
    with loading(made, file) as loader:
        assert loader.wait(WAIT_S_MAX) == 0, (made.home / "loader.log").read_text()[-2_000:]
    settled(made)


def settled(made: System) -> None:
    """Everything is everywhere, once."""
    made.until_quiet()
    judge(made, None)


def until(call: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline_s:
        with suppress(KafkaError):  # a coordinator that is loading its group, for one
            if call():
                return
        time.sleep(0.1)
    pytest.fail(f"not so after {WAIT_S_MAX:.0f} s: {what}")


# ── what they say ─────────────────────────────────────────────────────────────────────────────────


def head(made: System) -> int:
    with made.database() as conn:
        row = conn.execute("SELECT position FROM head").fetchone()
        assert row is not None
        return int(row[0])


def connected(made: System) -> list[str]:
    """The roles of the house that use the database."""
    query = "SELECT DISTINCT usename FROM pg_stat_activity WHERE usename LIKE 'counterfoil%' ORDER BY 1"
    with made.database() as conn:
        return [str(name) for (name,) in conn.execute(query).fetchall()]


def relayed_to(made: System) -> str:
    """The broker that holds everything, as the relay has it."""
    with made.database() as conn:
        row = conn.execute("SELECT broker FROM relay").fetchone()
        assert row is not None
        return str(row[0])


def identified(made: System) -> str:
    return Bus(str(made.running.kafka), topics("0"), PARTITIONS).identity()


def said(made: System, role: str, words: str) -> int:
    """How often a role has logged this."""
    return (made.home / "logs" / f"{role}.log").read_text().count(words)


@contextmanager
def admin(made: System) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=made.running.kafka)
    try:
        yield client
    finally:
        client.close()


def written(made: System) -> int:
    """Records in our topics."""
    with admin(made) as client:
        return sum(
            ends.offset
            for ends in client.list_partition_offsets(
                dict.fromkeys(places(client), OffsetSpec.LATEST)
            ).values()
        )


def group(made: System) -> str:
    """Of the workers, named after the broker's memory (streams/app.py)."""
    return f"counterfoil-0-{zlib.crc32(relayed_to(made).encode()):08x}"


def acknowledged(made: System) -> int:
    """Records that the workers' group has done with. A hint: after a rebalance Faust may say so late."""
    with admin(made) as client:
        committed = client.list_group_offsets({group(made): None})[group(made)]
        return sum(each.offset for each in committed.values())


def places(client: KafkaAdminClient) -> list[object]:
    return [TopicPartition(topic, partition) for topic in topics("0") for partition in range(PARTITIONS)]


def members(made: System) -> list[int]:
    """How many partitions each member of the workers' group has; none while it is still deciding."""
    with admin(made) as client:
        found = client.describe_groups([group(made)])[group(made)]
        if found["group_state"] != "Stable":
            return []
        assigned = [member["member_assignment"]["assigned_partitions"] for member in found["members"]]
        return [sum(len(each["partitions"]) for each in mine) for mine in assigned]
