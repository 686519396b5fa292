"""One installation with three ledgers on two Postgres clusters, as `counterfoil up` runs it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from kafka import KafkaConsumer

from infra.audit.verify import verify
from infra.engines.home import running
from infra.engines.postgres import EmbeddedPostgres
from infra.migrate import schema_of
from infra.runtime import Runtime
from infra.settings import Settings
from projections.analytics import REVENUE
from projections.ordering import ORDER_LIST
from projections.rows import Engine
from tests.api.conftest import Shop, System, paper, started
from tests.api.test_wall import told
from tests.ledgers import connected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROGRAM = Path(sys.executable).with_name("counterfoil")
TENANTS = {"0": "anybody", "eu": "acme", "us": "bolt"}
ORDERS = 30
CAUGHT_UP_S_MAX = 60.0
ACKNOWLEDGED_S_MAX = 240.0
"""Over a move, and the stop and the start of everything, on a machine that does other things too."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Beside the one that `up` brings."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("cluster"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ledgers(cluster: EmbeddedPostgres) -> dict[str, Any]:
    """Eu in a cluster of its own, us beside the default one."""
    return {"eu": {"tenants": ["acme"], "postgres_dsn": cluster.dsn}, "us": {"tenants": ["bolt"]}}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, ledgers: dict[str, Any]) -> Iterator[System]:
    with started(tmp_path_factory.mktemp("ledgers"), ledgers) as made:
        for tenant in TENANTS.values():
            offer = made.shop.of(tenant).post("/offers", {"offer": "mug", "title": "Mug"})
            assert offer.status_code == 201
        yield made


def runtimes(system: System) -> dict[str, Runtime]:
    whole = Runtime(system.settings)
    return {name: whole.of_ledger(name) for name in system.settings.ledger_names}


def caught_up(system: System) -> None:
    """Every projection of every ledger has what its log has."""
    deadline = time.monotonic() + CAUGHT_UP_S_MAX
    while time.monotonic() < deadline:
        ready = system.shop.http.get("/ready").json()
        if all(
            lag["complete_through"] >= each["position"]
            for each in (ready, *ready["further_ledgers"])
            for lag in each["projections"]
        ):
            return
        time.sleep(0.1)
    raise AssertionError(json.dumps(ready, indent=1))


def require_whole(system: System) -> None:
    """Each read model, in both stores, is the fold of its own log; and no log has a gap or a stranger."""
    caught_up(system)
    for name, runtime in runtimes(system).items():
        found = asyncio.run(verify(runtime))
        assert found.ok, (name, found.findings)
        assert not any(found.behind.values())


def facts(runtime: Runtime) -> list[tuple[int, str]]:
    """(position, tenant) of a log, in its order."""
    with connected(runtime.settings.role_dsn("owner"), schema_of(runtime.settings)) as conn:
        return conn.execute(
            "SELECT notification_id, split_part(originator_id, '/', 1) FROM stored_events ORDER BY 1"
        ).fetchall()


def place_orders(shop: Shop, prefix: str, count: int = ORDERS) -> list[str]:
    """The positions told."""
    answers = [shop.post("/orders", paper(f"{prefix}{nth}"), key=f"{prefix}{nth}") for nth in range(count)]
    assert {answer.status_code for answer in answers} == {201}
    return [answer.headers["counterfoil-position"] for answer in answers]


def ran(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`counterfoil` beside the system, with the same settings."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}
    own = {
        "COUNTERFOIL_HOME": str(system.settings.home),
        "COUNTERFOIL_LEDGERS": json.dumps(
            {
                name: each.model_dump(mode="json", exclude_none=True)
                for name, each in system.settings.ledgers.items()
            }
        ),
    }
    return subprocess.run(
        [PROGRAM, *arguments], env=variables | own, capture_output=True, text=True, timeout=90
    )


def test_every_ledger_has_followers_of_its_own(system: System) -> None:
    found = running(system.settings.home)
    assert found is not None
    assert set(found.children) - {"postgres", "broker", "clickhouse", "api"} == {
        *("relay", "worker-1", "deadlines"),
        *(f"{role}-{name}" for name in ("eu", "us") for role in ("relay", "deadlines")),
        *("worker-eu-1", "worker-us-1"),
    }


def test_commands_in_all_at_once_each_log_gap_free_and_each_read_model_the_fold_of_its_own(
    system: System,
) -> None:
    with ThreadPoolExecutor(len(TENANTS)) as threads:
        shops = [system.shop.of(tenant) for tenant in TENANTS.values()]
        positions = list(threads.map(lambda shop: place_orders(shop, "at-once-"), shops))
    for (name, runtime), mine in zip(runtimes(system).items(), positions, strict=True):
        assert {position.partition(":")[0] for position in mine} == {f"{name}.1"}
        log = facts(runtime)
        assert [position for position, _ in log] == list(range(1, len(log) + 1))
        assert {tenant for _, tenant in log} == {TENANTS[name]}
    require_whole(system)


def test_topics_are_apart(system: System) -> None:
    place_orders(system.shop.of("acme"), "topic-", 1)
    caught_up(system)
    consumer = KafkaConsumer(bootstrap_servers=system.settings.kafka, group_id=None)
    try:
        ours = {topic for topic in consumer.topics() if topic.startswith("counterfoil.")}
    finally:
        consumer.close()
    assert {topic.split(".")[1] for topic in ours} == set(TENANTS)
    for name, runtime in runtimes(system).items():
        with connected(runtime.settings.role_dsn("owner"), schema_of(runtime.settings)) as conn:
            heads = {topic for (topic,) in conn.execute("SELECT topic FROM relay_head")}
        assert heads
        assert {topic.split(".")[1] for topic in heads} == {name}


def test_a_relay_that_stands_still_delays_its_own_ledger_alone(system: System) -> None:
    acme, anybody, bolt = (system.shop.of(tenant) for tenant in ("acme", "anybody", "bolt"))
    with system.frozen("relay-eu"):
        (late,) = place_orders(acme, "frozen-", 1)
        for shop in (anybody, bolt):
            (at,) = place_orders(shop, "frozen-", 1)
            assert shop.get("/orders", Counterfoil_At_Least=at, Prefer="wait=10").status_code == 200
        told(acme.get("/orders", Counterfoil_At_Least=late, Prefer="wait=1"), 503, "projection-behind")
    assert acme.get("/orders", Counterfoil_At_Least=late, Prefer="wait=30").status_code == 200


def test_a_tenant_is_not_found_through_another_ledger_in_either_store(system: System) -> None:
    """Asked past the API, which would not let it: by name, of every ledger's read models."""
    place_orders(system.shop.of("acme"), "apart-", 1)
    caught_up(system)

    async def rows(runtime: Runtime) -> tuple[int, int]:
        async with runtime.queries() as queries:
            listed = await queries.run(ORDER_LIST, "acme", {"after": 0, "limit": 10})
            summed = await queries.run(REVENUE[Engine.CLICKHOUSE], "acme", {"currency": "EUR", "limit": 10})
            return len(listed.rows[0]), len(summed.rows[0])

    found = {name: asyncio.run(rows(runtime)) for name, runtime in runtimes(system).items()}
    assert min(found.pop("eu")) > 0
    assert found == {"0": (0, 0), "us": (0, 0)}


def test_the_command_line_finds_the_tenants_ledger(system: System) -> None:
    place_orders(system.shop.of("acme"), "cli-", 1)
    state = ran(system, "state", "offer-mug", "--tenant", "acme", "--json")
    assert json.loads(state.stdout)["tenant"] == "acme", state.stderr
    report = ran(system, "report", "retail", "--tenant", "acme", "--currency", "EUR", "--json")
    assert json.loads(report.stdout)["log"]["orders"] > 0, report.stderr
    caught_up(system)
    verified = json.loads(ran(system, "verify", "--json").stdout)
    assert set(verified["ledgers"]) == set(TENANTS)
    alone = json.loads(ran(system, "verify", "--tenant", "acme", "--json").stdout)
    assert alone["ok"]
    assert alone["head"] == len(facts(runtimes(system)["eu"]))
    rebuilt = ran(system, "rebuild", "ordering", "--ledger", "eu", "--reason", "test", "--json")
    assert json.loads(rebuilt.stdout)["switched"], rebuilt.stderr
    doctor = json.loads(ran(system, "doctor", "--json").stdout)
    assert [each["ledger"] for each in doctor["ready"]["further_ledgers"]] == ["eu", "us"]
    assert doctor["elsewhere"] == []


def test_a_file_is_imported_into_its_tenants_ledger(system: System) -> None:
    corners = Path(__file__).parents[1] / "data" / "retail_small" / "corners.csv"
    before = {name: len(facts(runtime)) for name, runtime in runtimes(system).items()}
    done = ran(system, "import", "retail", str(corners), "--tenant", "bolt", "--json")
    assert done.returncode == 0, done.stderr
    after = {name: len(facts(runtime)) for name, runtime in runtimes(system).items()}
    assert after["us"] > before.pop("us")
    assert {name: after[name] for name in before} == before


def test_up_refuses_an_assignment_away_from_the_facts(system: System) -> None:
    """Judged by the same `prepare`, against the running ledgers."""
    done = subprocess.run(
        [PROGRAM, "migrate"],
        env=os.environ
        | {
            "COUNTERFOIL_HOME": str(system.settings.home),
            "COUNTERFOIL_POSTGRES_DSN": str(system.settings.postgres_dsn),
            "COUNTERFOIL_CLICKHOUSE": str(system.settings.clickhouse),
            "COUNTERFOIL_LEDGERS": '{"us": {"tenants": ["acme"]}}',
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "tenant 'acme' lives in ledger 'eu', which is not named" in done.stderr
    assert "tenant 'bolt' has facts in ledger 'us': assign it there, not to '0'" in done.stderr


# ── moving ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Client:
    """Places one order after another, each until it is acknowledged, always under its own key."""

    tenant: str
    token: str
    base: list[str | None]
    """Where the API is now; None while it is down."""
    stop: threading.Event
    positions: dict[str, list[str]] = field(default_factory=dict)
    """What each key was answered, once and then once more."""
    refused: list[str] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(timeout=30) as http:
            nth = 0
            while not self.stop.is_set():
                self.positions[f"moved-{nth}"] = [self.place(http, f"moved-{nth}")]
                nth += 1
                self.stop.wait(0.1)
            for key, told in self.positions.items():
                told.append(self.place(http, key))

    def place(self, http: httpx.Client, key: str) -> str:
        deadline = time.monotonic() + ACKNOWLEDGED_S_MAX
        while time.monotonic() < deadline:
            if (base := self.base[0]) is not None:
                shop = Shop(http, self.token, self.tenant)
                try:
                    answer = http.post(
                        f"{base}/api/v1/orders",
                        json=paper(key),
                        headers=shop.headers | {"Idempotency-Key": key},
                    )
                except httpx.HTTPError:
                    answer = None
                if answer is not None and answer.status_code == 201:
                    return str(answer.headers["counterfoil-position"])
                if answer is not None:
                    assert answer.status_code == 503, answer.text
                    self.refused.append(answer.json()["type"])
            time.sleep(0.05)
        raise AssertionError(f"{key} was never acknowledged")


def test_a_ledger_moves_to_another_cluster_while_clients_write(
    tmp_path_factory: pytest.TempPathFactory, cluster: EmbeddedPostgres
) -> None:
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE moved_to")
    there = f"{cluster.dsn.rpartition('/')[0]}/moved_to"
    home = tmp_path_factory.mktemp("moving")
    base: list[str | None] = [None]
    stop, quiet = threading.Event(), threading.Event()
    with started(home, {"us": {"tenants": ["bolt"]}}) as before:
        for tenant in ("bolt", "anybody"):
            assert before.shop.of(tenant).post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
        base[0] = before.running.api
        movers = [
            Client("bolt", before.shop.token, base, stop),
            Client("anybody", before.shop.token, base, quiet),
        ]
        threads = [threading.Thread(target=client.run) for client in movers]
        for thread in threads:
            thread.start()
        time.sleep(3)
        refused = ran(before, "ledger", "move", "us", "--to", there)
        assert refused.returncode == 1
        assert "--under-load" in refused.stderr
        moved = ran(before, "ledger", "move", "us", "--to", there, "--under-load", "--json")
        assert moved.returncode == 0, moved.stderr
        assert json.loads(moved.stdout)["epoch"] == 2
        time.sleep(2)
        ready = before.shop.http.get("/ready").json()
        assert ready["further_ledgers"][0]["closed"] == "moved"
        assert not ready["further_ledgers"][0]["relay_active"], "its relay has gone, whatever restarts it"
        told(before.shop.of("bolt").get("/orders"), 503, "ledger-moved")
        assert before.shop.of("anybody").get("/orders").status_code == 200
        assert movers[1].refused == [], "the other ledger notices nothing"
        quiet.set()
        threads[1].join(60)
        with connected(Settings(**addresses(before)).of_ledger("us").role_dsn("owner"), "ledger_us") as conn:
            frozen = conn.execute("SELECT count(*) FROM stored_events").fetchone()
        base[0] = None
    with started(home, {"us": {"tenants": ["bolt"], "postgres_dsn": there}}) as after:
        base[0] = after.running.api
        time.sleep(3)
        stop.set()
        threads[0].join(ACKNOWLEDGED_S_MAX)
        require_whole(after)
        log = facts(runtimes(after)["us"])
        assert frozen is not None
        assert json.loads(moved.stdout)["position"] == frozen[0] < len(log)
        bolt = movers[0]
        assert set(bolt.refused) == {"/problems/ledger-moved"}
        assert len(bolt.positions) > 10
        assert all(len(told_twice) == 2 for told_twice in bolt.positions.values())
        places = [tuple(position.partition(":")[2] for position in each) for each in bolt.positions.values()]
        assert all(first == again for first, again in places), "the same key, the same fact"
        assert len(set(places)) == len(places), "and each its own"
        report = ran(after, "report", "retail", "--tenant", "bolt", "--currency", "EUR", "--json")
        figures = json.loads(report.stdout)
        assert figures["log"] == figures["postgres"] == figures["clickhouse"]
        assert figures["log"]["orders"] == len(bolt.positions), "none lost, none twice"
        stale = next(position for each in bolt.positions.values() for position in each if ".1:" in position)
        told(
            after.shop.of("bolt").get("/orders", Counterfoil_At_Least=stale), 409, "position-of-another-epoch"
        )


def addresses(system: System) -> dict[str, Any]:
    return {
        "home": system.settings.home,
        "postgres_dsn": system.settings.postgres_dsn,
        "ledgers": system.settings.ledgers,
    }
