"""The whole system, loading a shop's December, while its processes are killed, frozen and lied to."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from infra.ledger import LEASE_S
from tests.e2e import lossy_relay
from tests.e2e.chaos.caller import calling
from tests.e2e.chaos.conftest import YEAR
from tests.e2e.chaos.judge import judge
from tests.e2e.chaos.system import Loading, System, persisting, system
from tests.e2e.proxy import ProxiedBroker, proxied

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2_400)]

LOAD_S_MAX = 240.0
"""For December; the year is ten times as long."""
RELAY, WORKER, DEADLINES = "streams.relay", "streams.app", "streams.deadlines"
KILLABLE = ("api", "relay", "relay-2", "worker-1", "worker-2", "broker", "postgres", "clickhouse", "loader")


def _patience_s(load: Loading) -> float:
    return LOAD_S_MAX * (10 if load.file == YEAR else 1)


def settle(made: System, load: Loading) -> None:
    """Let everything come to rest, then look at everything."""
    load.finish(_patience_s(load))
    quiet_s = made.until_quiet()
    began = time.monotonic()
    found = judge(made, "year" if load.file == YEAR else "december")
    print(f"quiet after {quiet_s:.1f} s, judged in {time.monotonic() - began:.1f} s: {found}")


def test_killed_at_any_moment_it_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, shop: Path, chance: random.Random
) -> None:
    """By kill -9, two rounds of everybody, in any order; the broker comes back empty each time."""
    roles = {"api": "api.cli api", "relay": RELAY, "relay_2": RELAY, "worker_1": WORKER, "worker_2": WORKER}
    with system(tmp_path, **roles, deadlines=DEADLINES) as made:
        with persisting(made, shop, 0.006) as load, calling(made) as caller:
            load.begin()
            for _ in range(2):
                for victim in chance.sample(KILLABLE, len(KILLABLE)):
                    time.sleep(chance.uniform(0.5, 2.5))
                    if victim == "loader":
                        load.kill()
                    elif not made.send(victim, signal.SIGKILL):
                        print("not running:", end=" ")
                    print(victim, end=", ")
                    load.done()
            load.finish(_patience_s(load))
        print(f"\n{caller.placed} orders by API, asked again {caller.again} times, {caller.read} read back")
        assert caller.placed > 20
        settle(made, load)


def test_relays_frozen_and_workers_coming_and_going_change_nothing(
    tmp_path: Path, shop: Path, chance: random.Random
) -> None:
    """A relay stopped for longer than its lease wakes up beside its successor; two to four workers."""
    roles = {"relay": RELAY, "relay_2": RELAY, "worker_1": WORKER, "worker_2": WORKER}
    with system(tmp_path, **roles) as made, persisting(made, shop, 0.006) as load:
        load.begin()
        for extra in (1, 2, 0):
            frozen = chance.choice(("relay", "relay-2"))
            assert made.send(frozen, signal.SIGSTOP)
            stopped_at = time.monotonic()
            while len(made.extra) < extra:
                made.join_ready(f"worker-{len(made.extra) + 3}", WORKER)
            while len(made.extra) > extra:
                made.leave(chance.choice(sorted(made.extra)), chance.choice((signal.SIGTERM, signal.SIGKILL)))
            time.sleep(max(0.0, stopped_at + LEASE_S + chance.uniform(1, 3) - time.monotonic()))
            assert made.send(frozen, signal.SIGCONT)
            print(f"{frozen} frozen, {2 + extra} workers", end=", ")
            time.sleep(chance.uniform(0.5, 2.5))
        settle(made, load)


def test_records_lost_doubled_and_reordered_change_nothing(
    tmp_path: Path, shop: Path, chance: random.Random
) -> None:
    os.environ[lossy_relay.SEED] = str(chance.randrange(2**32))
    try:
        with (
            system(tmp_path, relay="tests.e2e.lossy_relay", worker_1=WORKER, worker_2=WORKER) as made,
            persisting(made, shop, 0.002) as load,
        ):
            settle(made, load)
            made.send("relay", signal.SIGTERM)
            time.sleep(1)
            print((tmp_path / "logs" / "relay.log").read_text().strip().splitlines()[-1])
    finally:
        del os.environ[lossy_relay.SEED]


def test_connections_cut_in_the_middle_of_anything_change_nothing(
    tmp_path: Path, shop: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = ProxiedBroker(tmp_path / "broker")
    with proxied(broker, chance) as proxy:
        monkeypatch.setenv("COUNTERFOIL_KAFKA", f"127.0.0.1:{proxy.port}")
        with (
            system(tmp_path / "home", relay=RELAY, worker_1=WORKER, worker_2=WORKER) as made,
            persisting(made, shop, 0.004) as load,
        ):
            load.begin()
            for _ in range(5):
                time.sleep(chance.uniform(1, 5))
                proxy.cut()
            settle(made, load)
        print(f"{proxy.cuts} connections cut, {proxy.carried_bytes:,} bytes carried")
