from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from api import problems
from api.app import COMMANDS, QUERIES, create
from api.dependencies import BODY_BYTES_MAX
from api.problems import catalogue
from infra.settings import Settings
from tests.api.conftest import NO_POSTGRES, NOWHERE, Shop, carry, paper

ROUTES = [
    (
        method,
        f"/api/v1{route.path}".replace("{pool}", "mug")
        .replace("{hold_id}", "9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11")
        .replace("{order_id}", "9f2d7c0e-6f1c-5a35-8a5e-3f1f7f6b2b11"),
    )
    for router in (*COMMANDS, *QUERIES)
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
]


def told(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document, which it has to be in every respect."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/problems/{kind}"
    assert body["status"] == status
    assert body["title"]
    assert unquote(body["instance"]) == answer.request.url.path
    return body


def test_there_are_routes_to_guard() -> None:
    assert len(ROUTES) >= 19


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/api/v1/nothing"), ("POST", "/api/v1")])
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic {token}", "{token}", "Bearer {token}x"]
)
def test_nothing_is_told_without_the_token(
    walled: TestClient, token: str, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Counterfoil-Tenant": "demo", "Idempotency-Key": "k"}
    if authorization is not None:
        headers["Authorization"] = authorization.replace("{token}", token)
    answer = walled.request(method, path, headers=headers, content=b"{")
    told(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("tenant", [None, "", "Demo", "a/b", "-a", "a" * 64, "dém"])
def test_every_request_names_a_tenant(
    walled: TestClient, token: str, method: str, path: str, tenant: str | None
) -> None:
    headers: dict[str, Any] = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k"}
    if tenant is not None:
        headers["Counterfoil-Tenant"] = tenant.encode()
    told(walled.request(method, path, headers=headers), 400, "tenant-unnamed")


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Behind the wall there is nothing at all, and nobody gets to see that."""
    nothing = Settings(
        home=tmp_path_factory.mktemp("home"),
        postgres_dsn=NO_POSTGRES,
        clickhouse=NOWHERE,
        kafka=None,
        limit_strangers=0,  # a hundred of them knock here in a second, from one address
    )
    with TestClient(create(nothing)) as client:
        yield client


@pytest.fixture(scope="module")
def token(walled: TestClient) -> str:
    found: str = walled.app.state.runtime.settings.api_token()  # type: ignore[attr-defined]
    return found


def test_another_tenants_things_do_not_exist(shop: Shop, api_settings: Settings) -> None:
    other = shop.of("other")
    assert shop.post("/offers", {"offer": "mug", "title": "Mug", "capacity": 10}).status_code == 201
    placed = shop.post("/orders", paper(settled=True))
    held = shop.post("/pools/mug/holds", {"quantity": 1, "ttl_s": 600}).json()
    assert shop.post("/returns", paper("C1", quantity=-1)).status_code == 201
    carry(api_settings)
    at = placed.headers["counterfoil-position"]
    for method, path in ROUTES:
        if method == "GET" and "orders/" not in path and "reports" not in path and "projections" not in path:
            assert other.get(path).json()["items"] == [], path
    told(other.get(f"/orders/{placed.json()['id']}", Counterfoil_At_Least=at), 404, "order-unknown")
    assert other.get("/reports/retail?currency=EUR").json()["lines"] == 0
    for end in ("confirm", "release"):
        told(other.post(f"/pools/mug/holds/{held['hold_id']}/{end}"), 404, "hold-unknown")
    told(other.post("/pools/mug/holds", {"quantity": 1, "ttl_s": 600}), 404, "pool-unknown")
    told(other.post("/orders", paper()), 404, "pool-unknown")
    # The same names are free for another tenant, under the same keys.
    assert other.post("/offers", {"offer": "mug", "title": "Other"}, key="key-1").status_code == 201
    assert other.post("/orders", paper()).json()["id"] != placed.json()["id"]
    assert shop.get(f"/orders/{placed.json()['id']}").json()["document"] == "1001"


def test_what_is_not_there_and_what_is_not_taken_are_problems_too(shop: Shop) -> None:
    told(shop.get("/nothing"), 404, "route-unknown")
    told(shop.http.get("/nothing"), 404, "route-unknown")
    answer = shop.http.delete("/api/v1/orders", headers=shop.headers)
    told(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"
    told(shop.http.get("/pages/none.js"), 404, "route-unknown")
    told(shop.http.get("/pages/../app.py"), 404, "route-unknown")
    told(shop.http.get("/problems/nothing"), 404, "route-unknown")


def test_a_bug_is_a_problem_that_gives_nothing_away(
    shop: Shop, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(http.app.state.ledgers.open["0"].handler, "handling", broken)  # type: ignore[attr-defined]
    answer = shop.post("/pools", {"pool": "mug"})
    told(answer, 500, "internal")
    assert "swordfish" not in answer.text


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_not_read_and_not_written(shop: Shop, declared: bool) -> None:
    body = b'{"pool": "mug", "x": "' + b"x" * BODY_BYTES_MAX + b'"}'
    content: Any = body if declared else iter([body[:1000], body[1000:]])
    headers = shop.headers | {"Idempotency-Key": "k", "Content-Type": "application/json"}
    told(shop.http.post("/api/v1/pools", content=content, headers=headers), 413, "body-too-large")
    assert shop.post("/pools", {"pool": "mug"}).status_code == 201


def test_every_refusal_of_the_program_is_in_the_catalogue_under_a_name_of_its_own(shop: Shop) -> None:
    names = catalogue()
    assert {"sold-out", "key-reused", "projection-behind", "internal", "order-exists"} <= names.keys()
    assert len(set(names.values())) == len(names)
    index = shop.http.get("/problems").text
    for name, failure in names.items():
        assert f'href="/problems/{name}"' in index
        page = shop.http.get(f"/problems/{name}")
        assert page.status_code == 200
        assert f"HTTP {problems.status(failure)}" in page.text


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/retail", "/problems", "/pages/retail.js", "/pages/style.css"]
)
def test_pages_load_nothing_from_elsewhere(http: TestClient, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe-inline" not in policy or path == "/docs"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if path.endswith((".js", ".css")):
        return
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
    for source in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert http.get(f"/swagger/{source}").status_code == 200


def test_health_is_about_the_process_and_readiness_about_the_engines(http: TestClient) -> None:
    assert http.get("/health").json() == {"status": "up"}
    answer = http.get("/ready")
    assert answer.status_code == 200
    ready = answer.json()
    assert ready["status"] == "degraded"
    assert ready["engines"] == {"postgres": True, "clickhouse": False, "kafka": False}
    assert {(each["projection"], each["lag"]) for each in ready["projections"]} >= {("ordering", 0)}


def test_without_the_logs_database_it_is_not_ready_and_says_so_at_once(template: Settings) -> None:
    gone = template.model_copy(update={"postgres_dsn": NO_POSTGRES, "clickhouse": NOWHERE})
    with TestClient(create(gone), raise_server_exceptions=False) as client:
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["status"] == "unavailable"
        assert client.get("/health").status_code == 200
        refused = Shop(client, gone.api_token()).get("/orders")
        told(refused, 503, "store-unavailable")
        assert refused.headers["retry-after"] == "1"
        assert "127.0.0.1" not in refused.text
