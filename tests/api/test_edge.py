from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from starlette.testclient import TestClient

from api.app import create, create_commands, create_queries
from api.edge import SAFE, UNKNOWN
from infra.engines.home import environment
from infra.engines.server import free_port
from infra.runtime import Runtime
from infra.settings import BadSetting, Settings
from tests.api.conftest import Shop, System, carry, paper
from tests.api.test_wall import told

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SHOP_ORIGIN, THIEF_ORIGIN = "https://shop.example", "https://thief.example"
STRONG = "0123456789abcdef0123456789abcdef"


# ── an id, and its trace ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/health", "/api/v1/offers", "/nothing", "/docs", "/problems/sold-out"])
def test_every_answer_carries_an_id_and_safe_headers(http: TestClient, path: str) -> None:
    answers = [http.get(path) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
    assert SAFE.keys() - {"Content-Security-Policy"} <= {name.title() for name in answers[0].headers}
    assert "default-src 'none'" in answers[0].headers["content-security-policy"]
    assert "strict-transport-security" not in answers[0].headers


def test_a_bug_is_answered_with_them_too(api_settings: Settings) -> None:
    app = create(api_settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a mistake")

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/broken", headers={"X-Request-Id": "mine"})
    told(answer, 500, "internal")
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_browsers_are_held_to_https_where_it_came_by_https(api_settings: Settings) -> None:
    with TestClient(create(api_settings), base_url="https://shop.example") as client:
        assert "max-age=63072000" in client.get("/health").headers["strict-transport-security"]


@pytest.mark.parametrize("given", ["order-7_a.B", "a" * 64])
def test_a_clients_own_id_is_kept(http: TestClient, given: str) -> None:
    assert http.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", 'a"', "ana@example.org", "a\tb"])
def test_another_kind_of_id_is_not(http: TestClient, given: str) -> None:
    assert http.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] != given


def test_a_command_s_facts_say_which_request_and_which_trace_brought_them(
    shop: Shop, api_settings: Settings
) -> None:
    shop.http.headers.update({"X-Request-Id": "mine", "traceparent": TRACE})
    assert shop.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    shop.http.headers.update({"traceparent": TRACE.upper()})
    answer = shop.post("/offers", {"offer": "cup", "title": "Cup"})
    with closing(Runtime(api_settings).log()) as log:
        first, _, second, _ = log.recorded("demo", 1, 4)
    assert (first.envelope.request, first.envelope.trace) == ("mine", TRACE)
    assert (second.envelope.request, second.envelope.trace) == (answer.headers["x-request-id"], None)


def test_the_same_request_sent_again_under_another_id_is_still_the_same(shop: Shop) -> None:
    bodies = []
    for request in ("one", "two"):
        shop.http.headers["X-Request-Id"] = request
        bodies.append(shop.post("/offers", {"offer": "mug", "title": "Mug"}, key="k"))
    assert [each.headers.get("idempotent-replayed") for each in bodies] == [None, "true"]
    assert bodies[0].json() == bodies[1].json()


# ── what is told of requests ──────────────────────────────────────────────────────────────────────


def told_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "counterfoil.requests"]


def test_a_request_s_line_has_nothing_of_anybody_s(
    api_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "counterfoil.requests")
    telling = api_settings.model_copy(update={"log_requests": True})
    with TestClient(create(telling)) as client:
        shop = Shop(client, telling.api_token())
        shop.get("/orders/9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11?email=ana@example.org")
        client.get(
            "/ana@example.org%0D%0AGET%20/forged", headers={"X-Request-Id": "mine", "traceparent": TRACE}
        )
    lines = [json.loads(line) for line in told_of(caplog)]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/api/v1/orders/{order_id}", 404),
        (UNKNOWN, 404),
    ]
    assert (lines[1]["request"], lines[1]["trace"]) == ("mine", TRACE)
    assert not [word for word in ("ana", "9f2d7c0e", telling.api_token()) if word in str(lines)]


def test_requests_are_told_of_only_if_asked_for(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "counterfoil.requests")
    http.get("/health")
    assert not told_of(caplog)


def test_metrics_count_by_route_and_say_how_far_everything_is(shop: Shop, api_settings: Settings) -> None:
    assert shop.post("/orders", paper()).status_code == 404
    assert shop.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    carry(api_settings)
    for path in ("/api/v1/offers", "/api/v1/offers?limit=7", "/made-up-by-a-client", "/another"):
        shop.get(path) if path.startswith("/api") else shop.http.get(path)
    shop.http.request("BREW", "/health")
    answer = shop.http.get("/metrics", headers={"Authorization": f"Bearer {shop.token}"})
    assert answer.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    counted = "counterfoil_http_requests_total"
    assert lines[f'{counted}{{method="GET",route="/api/v1/offers",status="200"}}'] == "2.0"
    assert lines[f'{counted}{{method="POST",route="/api/v1/orders",status="404"}}'] == "1.0"
    assert lines[f'{counted}{{method="GET",route="{UNKNOWN}",status="404"}}'] == "2.0"
    assert "made-up" not in answer.text
    assert "BREW" not in answer.text
    assert lines['counterfoil_log_position{ledger="0"}'] == "2.0"
    assert (
        lines['counterfoil_projection_lag_facts{engine="postgres",ledger="0",projection="catalog"}'] == "0.0"
    )
    assert lines['counterfoil_engine_up{engine="clickhouse",ledger="0"}'] == "0.0"


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_metrics_are_told_to_nobody_without_the_token(http: TestClient, path: str) -> None:
    told(http.get(path), 401, "unauthorized")
    told(http.get(path, headers={"Authorization": "Bearer wrong"}), 401, "unauthorized")


# ── other origins ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sharing(api_settings: Settings) -> TestClient:
    return TestClient(create(api_settings.model_copy(update={"cors_origins": (SHOP_ORIGIN,)})))


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
    return client.options("/api/v1/orders", headers={"Origin": origin} | asked)


def test_a_page_of_a_listed_origin_may_ask_and_read(sharing: TestClient) -> None:
    answer = preflight(sharing, SHOP_ORIGIN)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SHOP_ORIGIN)
    assert "access-control-allow-credentials" not in answer.headers
    simple = sharing.get("/health", headers={"Origin": SHOP_ORIGIN})
    assert simple.headers["access-control-allow-origin"] == SHOP_ORIGIN
    assert "Counterfoil-Position" in simple.headers["access-control-expose-headers"]
    assert "Origin" in simple.headers["vary"]


def test_a_page_of_another_origin_may_not(sharing: TestClient) -> None:
    assert preflight(sharing, THIEF_ORIGIN).status_code == 400
    for answer in (
        preflight(sharing, THIEF_ORIGIN),
        sharing.get("/health", headers={"Origin": THIEF_ORIGIN}),
    ):
        assert "access-control-allow-origin" not in answer.headers


def test_by_default_no_other_origin_may(http: TestClient) -> None:
    answer = http.get("/health", headers={"Origin": SHOP_ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ── in production ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def guarded(api_settings: Settings) -> Settings:
    given = {"production": True, "secret": api_settings.secret}
    return Settings(
        **(api_settings.model_dump(exclude_unset=True) | given),
        COUNTERFOIL_API_TOKEN=STRONG,
        COUNTERFOIL_SEALING_KEY=STRONG[::-1],
    )


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/openapi.json", "/swagger/swagger-ui.css"])
def test_in_production_the_documents_are_there_for_whoever_has_the_token(
    guarded: Settings, path: str
) -> None:
    client = TestClient(create(guarded))
    told(client.get(path, follow_redirects=False), 404, "route-unknown")
    answer = client.get(path.rstrip("/"), headers={"Authorization": f"Bearer {STRONG}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "COUNTERFOIL_SECRET is not set"),
        ({"secret": "0" * 64}, "COUNTERFOIL_SECRET is too simple"),
        ({"COUNTERFOIL_API_TOKEN": "changeme" * 4, "secret": STRONG}, "COUNTERFOIL_API_TOKEN is too simple"),
        ({"COUNTERFOIL_API_TOKEN": STRONG}, "COUNTERFOIL_SEALING_KEY is not set"),
    ],
)
def test_production_makes_no_secret_by_itself_and_takes_no_poor_one(
    tmp_path: Path, given: dict[str, str], said: str
) -> None:
    settings = Settings(home=tmp_path, production=True, _env_file=None, **given)
    with pytest.raises(BadSetting, match=said):
        assert settings.api_token() + settings.sealing_key().hex()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PRODUCTION": "1"}, "COUNTERFOIL_SECRET is not set: in production give it at least 32"),
        ({"POSTGRES_DSN": ""}, "COUNTERFOIL_POSTGRES_DSN is not set"),
        ({"CORS_ORIGINS": "*"}, "COUNTERFOIL_CORS_ORIGINS: 0: '*': name each origin"),
        ({"CORS_ORIGINS": "https://shop.example/"}, "without a path"),
    ],
)
def test_a_bad_configuration_stops_the_start_with_one_line(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}
    given = {f"COUNTERFOIL_{name}": value for name, value in ({"HOME": str(tmp_path)} | variables).items()}
    ended = subprocess.run(
        [sys.executable, "-m", "api.cli", "api"],
        env=clean | given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


# ── two doors, and closing them ───────────────────────────────────────────────────────────────────


def test_each_door_knows_nothing_of_the_other_s_addresses(api_settings: Settings) -> None:
    with (
        TestClient(create_commands(api_settings)) as commands,
        TestClient(create_queries(api_settings)) as queries,
    ):
        sending, asking = (Shop(door, api_settings.api_token()) for door in (commands, queries))
        position = sending.post("/offers", {"offer": "mug", "title": "Mug"}).headers["counterfoil-position"]
        carry(api_settings)
        shown = asking.get("/offers", counterfoil_at_least=position).json()["items"]
        assert [each["offer"] for each in shown] == ["mug"]
        told(sending.get("/offers"), 405, "method-not-allowed")
        told(asking.post("/offers", {"offer": "cup", "title": "Cup"}), 405, "method-not-allowed")


@contextmanager
def head_locked(settings: Settings) -> Iterator[None]:
    """As by another writer's commit that takes long."""
    assert settings.postgres_dsn is not None
    options = f"-c search_path={Runtime(settings).schema}"
    with psycopg.connect(settings.postgres_dsn, options=options) as conn:
        conn.execute("SELECT 1 FROM head FOR UPDATE")
        yield


@pytest.mark.timeout(120)
def test_what_is_being_answered_when_told_to_stop_is_answered(system: System) -> None:
    """A second door beside the running system: a command that waits for the log's head, then SIGTERM."""
    port = free_port()
    argv = [sys.executable, "-m", "api.cli", "api", "--only", "commands"]
    door = subprocess.Popen(
        argv, env=os.environ | environment(system.running) | {"COUNTERFOIL_API_PORT": str(port)}
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while True:
                try:
                    assert client.get("/health").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            shop = Shop(client, system.settings.api_token(), "drained")
            assert shop.post("/offers", {"offer": "warm", "title": "Warm"}).status_code == 201
            answers: list[httpx.Response] = []
            with head_locked(system.settings):
                body = {"offer": "late", "title": "Late"}
                asking = threading.Thread(
                    target=lambda: answers.append(shop.post("/offers", body, key="late"))
                )
                asking.start()
                time.sleep(0.5)
                door.send_signal(signal.SIGTERM)
                time.sleep(1.0)
                assert door.poll() is None
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=2)
            asking.join(20)
            assert [each.status_code for each in answers] == [201]
            assert door.wait(10) in (0, -signal.SIGTERM)
    finally:
        if door.poll() is None:
            door.kill()
            door.wait()
