"""The HTTP doors on real engines: with a carrier of our own for one test, or a whole running system."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create
from infra.engines.home import Running, environment, running
from infra.readmodel import PostgresSink
from infra.runtime import Runtime
from infra.settings import Settings
from projections.registry import projections_in
from projections.rows import Engine
from streams.projector import Projecting, Projector
from streams.topics import runs

NOWHERE = "http://nobody:nothing@127.0.0.1:1/x"
NO_POSTGRES = "postgresql://nobody:nothing@127.0.0.1:1/x"
START_S_MAX = 120.0


@dataclass
class Shop:
    """A client that speaks for one tenant."""

    http: httpx.Client
    token: str
    tenant: str = "demo"
    spent: list[int] = field(default_factory=list)

    def of(self, tenant: str) -> Shop:
        return Shop(self.http, self.token, tenant, self.spent)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Counterfoil-Tenant": self.tenant}

    def post(self, path: str, body: Any = None, *, key: str | None = None, **kwargs: Any) -> httpx.Response:
        self.spent.append(0)
        named = {"Idempotency-Key": key or f"key-{len(self.spent)}"}
        return self.http.post(f"/api/v1{path}", json=body, headers=self.headers | named, **kwargs)

    def get(self, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.get(
            path if path.startswith("/api") else f"/api/v1{path}", headers=self.headers | named
        )


def paper(
    number: str | None = "1001", *, quantity: Any = 2, price: Any = "2.55", **more: Any
) -> dict[str, Any]:
    body = {
        "document": number,
        "customer": "17850",
        "country": "France",
        "currency": "EUR",
        "placed_at": "2011-01-04T10:00:00",
        "lines": [{"code": "mug", "title": "Mug", "quantity": quantity, "unit_price": price}],
    }
    return {name: value for name, value in (body | more).items() if value is not None}


def carry(settings: Settings) -> None:
    """Publish and project everything, as the relay and a worker would, without a broker between them."""

    async def carrying() -> None:
        runtime = Runtime(settings)
        desk, log, rows = runtime.ledger(), runtime.ledger(), runtime.ledger()
        try:
            fence = await desk.take_over()
            assert fence is not None
            through, _, heads = await desk.relayed()
            head = (await desk.head()).position
            followers = [Projecting(each) for each in projections_in(Engine.POSTGRES)]
            projector = Projector(settings.ledger, log, PostgresSink(rows), followers)
            while through < head:
                facts = await desk.facts(through, head)
                published = list(runs(settings.ledger, facts, heads))
                through = facts[-1].position
                await desk.advance(fence, through, heads)
                await projector.take(published)
            await desk.resign(fence)
        finally:
            for ledger in (desk, log, rows):
                await ledger.close()

    asyncio.run(carrying())


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """A ledger of the test's own; no broker, no ClickHouse."""
    return settings.model_copy(update={"clickhouse": NOWHERE})


@pytest.fixture
def http(api_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create(api_settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def shop(http: TestClient, api_settings: Settings) -> Shop:
    return Shop(http, api_settings.api_token())


# ── a whole system ────────────────────────────────────────────────────────────────────────────────


@dataclass
class System:
    settings: Settings
    running: Running
    shop: Shop

    def pid(self, role: str) -> int:
        found = running(self.settings.home)
        assert found is not None
        return found.children[role]

    def frozen(self, role: str) -> Frozen:
        return Frozen(self.pid(role))


class Frozen:
    """A process that does nothing for a while and knows nothing of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """`counterfoil up`: engines, relay, worker, deadlines and API, each a process of its own."""
    with started(tmp_path_factory.mktemp("system")) as made:
        yield made


@contextmanager
def started(home: Path, ledgers: dict[str, Any] | None = None) -> Iterator[System]:
    """`counterfoil up` in that home, with these further ledgers, until the end of the block."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}
    variables["COUNTERFOIL_LEDGERS"] = json.dumps(ledgers or {})
    with (home / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "up", "--quiet"],
            env=variables | {"COUNTERFOIL_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        found = _answering(home, up)
        settings = Settings(
            home=home,
            postgres_dsn=found.postgres_dsn,
            kafka=found.kafka,
            clickhouse=found.clickhouse,
            ledgers=ledgers or {},
        )
        assert found.api is not None
        with httpx.Client(base_url=found.api, timeout=60) as client:
            yield System(settings, found, Shop(client, settings.api_token()))
    finally:
        up.send_signal(signal.SIGINT)
        try:
            up.wait(30)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()


def _answering(home: Any, up: subprocess.Popen[bytes]) -> Running:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert up.poll() is None, (home / "up.log").read_text()
        found = running(home)
        if found is not None and found.api is not None and _ready(found.api):
            return found
        time.sleep(0.2)
    raise AssertionError(json.dumps(environment(found) if found else None))


def _ready(api: str) -> bool:
    try:
        answer = httpx.get(f"{api}/ready", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["status"] == "ready"
