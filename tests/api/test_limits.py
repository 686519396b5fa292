"""Limits at the doors: who is counted with whom, what every answer says of it, and what is over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis
from starlette.testclient import TestClient

from api.app import create
from api.dependencies import Wall
from api.limits import Quotas
from infra.limits import Limit
from infra.settings import Settings
from tests.api.conftest import NO_POSTGRES, NOWHERE, Shop
from tests.api.test_wall import told
from tests.redis_server import RedisServer

POLICY = re.compile(r'"([a-z]+)";q=(\d+);w=60')
STANDING = re.compile(r'"([a-z]+)";r=(\d+);t=([1-9]|[1-5]\d|60)')
Door = Callable[..., Shop]


@pytest.fixture
def door(template: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The app with these settings, for a client at an address. Without engines what passes is a 503."""
    with ExitStack() as opened:

        def opening(
            *, address: str = "192.0.2.1", of: Settings | None = None, app: Any = None, **settings: Any
        ) -> Shop:
            base = of or Settings(
                home=tmp_path_factory.mktemp("home"), postgres_dsn=NO_POSTGRES, clickhouse=NOWHERE
            )
            base = base.model_copy(update=settings)
            client = TestClient(app or create(base), client=(address, 50000), raise_server_exceptions=False)
            return Shop(opened.enter_context(client) if app is None else client, base.api_token())

        yield opening


def counted(answer: httpx.Response) -> tuple[str, int, int]:
    """What an answer says that is counted, how much of it may be, and how much remains."""
    policy = POLICY.fullmatch(answer.headers["ratelimit-policy"])
    standing = STANDING.fullmatch(answer.headers["ratelimit"])
    assert policy, answer.headers
    assert standing, answer.headers
    assert policy[1] == standing[1]
    return policy[1], int(policy[2]), int(standing[2])


def quotas(shop: Shop) -> Quotas:
    found: Quotas = next(each for each in shop.http.app.user_middleware if each.cls is Wall).kwargs["quotas"]  # type: ignore[attr-defined]
    return found


def later(limit: Limit | None, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    assert limit is not None
    clock = limit.here.clock
    monkeypatch.setattr(limit.here, "clock", lambda: clock() + seconds)


def test_every_answer_says_what_is_counted_and_what_remains(door: Door, api_settings: Settings) -> None:
    shop = door(of=api_settings, limit_commands=100, limit_queries=50)
    made = shop.post("/pools", {"pool": "mug"})
    assert (made.status_code, counted(made)) == (201, ("commands", 100, 99))
    again = shop.post("/pools", {"pool": "mug"}, key="another")
    assert (again.status_code, counted(again)) == (409, ("commands", 100, 98))
    listed = shop.get("/pools")
    assert (listed.status_code, counted(listed)) == (200, ("queries", 50, 49))
    same = shop.get("/pools", If_None_Match=listed.headers["etag"])
    assert (same.status_code, counted(same)) == (304, ("queries", 50, 48))
    assert counted(shop.get("/nothing")) == ("queries", 50, 47)
    assert counted(shop.http.get("/api/v1/pools")) == ("strangers", 60, 59)
    unnamed = shop.http.get("/api/v1/pools", headers={"Authorization": f"Bearer {shop.token}"})
    assert (unnamed.status_code, counted(unnamed)) == (400, ("queries", 50, 49))


def test_a_bug_says_it_too(door: Door, api_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = door(of=api_settings)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(shop.http.app.state.ledgers.open["0"].handler, "handling", broken)  # type: ignore[attr-defined]
    answer = shop.post("/pools", {"pool": "mug"})
    assert (answer.status_code, counted(answer)) == (500, ("commands", 60_000, 59_999))


def test_what_is_not_under_the_api_is_not_counted(door: Door) -> None:
    shop = door(limit_strangers=1)
    for path in ("/health", "/docs", "/problems") * 3:
        answer = shop.http.get(path)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


def test_what_is_over_is_a_429_and_the_next_window_lets_through(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = door(limit_commands=3)
    assert [shop.post("/pools", {"pool": "mug"}).status_code for _ in range(3)] == [503] * 3
    refused = shop.post("/pools", {"pool": "mug"})
    body = told(refused, 429, "too-many-requests")
    assert body["detail"] == 'the limit is "commands";q=3;w=60'
    assert counted(refused) == ("commands", 3, 0)
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    assert shop.get("/pools").status_code == 503, "queries are counted apart"
    later(quotas(shop).commands, monkeypatch, int(refused.headers["retry-after"]))
    assert shop.post("/pools", {"pool": "mug"}).status_code == 503


def test_one_tenants_requests_do_not_count_for_another(door: Door) -> None:
    shop = door(limit_queries=2)
    assert [shop.get("/pools").status_code for _ in range(3)] == [503, 503, 429]
    assert counted(shop.of("other").get("/pools")) == ("queries", 2, 1)
    assert shop.get("/pools").status_code == 429


def test_strangers_are_counted_by_address_whatever_they_ask_and_a_token_is_still_let_through(
    door: Door,
) -> None:
    shop = door(limit_strangers=4)
    knocks = [
        shop.http.get("/api/v1/pools"),
        shop.http.post("/api/v1/orders", headers={"Authorization": "Bearer wrong"}),
        shop.http.get("/api/v1/nothing", headers={"Authorization": f"Bearer {shop.token}x"}),
        shop.http.get("/api/v1/pools", headers={"Counterfoil-Tenant": "someone"}),
    ]
    assert [each.status_code for each in knocks] == [401] * 4
    assert [counted(each)[2] for each in knocks] == [3, 2, 1, 0]
    refused = shop.http.get("/api/v1/pools", headers={"Authorization": "Bearer other"})
    told(refused, 429, "too-many-requests")
    assert int(refused.headers["retry-after"]) > 0
    assert "www-authenticate" not in refused.headers
    assert shop.get("/pools").status_code == 503
    elsewhere = door(app=shop.http.app, address="192.0.2.2")  # type: ignore[attr-defined]
    assert elsewhere.http.get("/api/v1/pools").status_code == 401


def test_a_network_of_one_customer_is_one_address(door: Door) -> None:
    shop = door(limit_strangers=1, address="2001:db8:1:2::1")
    neighbour = door(app=shop.http.app, address="2001:db8:1:2:ffff::7")  # type: ignore[attr-defined]
    another = door(app=shop.http.app, address="2001:db8:1:3::1")  # type: ignore[attr-defined]
    found = [each.http.get("/api/v1/pools").status_code for each in (shop, neighbour, another)]
    assert found == [401, 429, 401]


def test_who_was_asked_through_a_proxy_is_believed_only_of_a_trusted_one(door: Door) -> None:
    def knock(shop: Shop, forwarded: str) -> int:
        return shop.http.get("/api/v1/pools", headers={"X-Forwarded-For": forwarded}).status_code

    alone = door(limit_strangers=1)
    assert [knock(alone, f"198.51.100.{each}") for each in range(3)] == [401, 429, 429]

    behind = door(limit_strangers=1, trusted_proxies=1)
    assert [knock(behind, f"198.51.100.{each}") for each in range(3)] == [401] * 3
    assert [knock(behind, f"203.0.113.{each}, 198.51.100.9") for each in range(3)] == [401, 429, 429]
    assert knock(behind, "203.0.113.1, [2001:db8::1]:443") == 401
    assert [knock(behind, "who knows"), knock(behind, "")] == [401, 429], "both are the peer"

    second = door(limit_strangers=1, trusted_proxies=2)
    assert [knock(second, f"203.0.113.1, 198.51.100.9, 10.0.0.{each}") for each in range(3)] == [
        401,
        429,
        429,
    ]
    assert [knock(second, f"198.51.100.{each}") for each in range(10, 13)] == [401, 429, 429], "the peer"


def test_nobody_tries_tokens_where_they_are_not_counted(door: Door) -> None:
    secret = "0123456789abcdef" * 4
    settings = Settings(
        production=True,
        secret=secret,
        given_api_token=secret,
        given_sealing_key=secret,
        postgres_dsn=NO_POSTGRES,
        clickhouse=NOWHERE,
    )
    shop = door(of=settings, limit_strangers=3)
    knocks = [shop.http.get(path) for path in ("/metrics", "/docs", "/openapi.json", "/metrics", "/docs")]
    assert [each.status_code for each in knocks] == [401, 404, 404, 429, 429]
    known = {"Authorization": f"Bearer {shop.token}"}
    for path in ("/docs", "/openapi.json"):
        assert shop.http.get(path, headers=known).status_code == 200


def test_that_a_request_came_by_https_is_believed_only_of_a_trusted_proxy(door: Door) -> None:
    told = {"X-Forwarded-Proto": "https"}
    found = [door(trusted_proxies=number).http.get("/health", headers=told) for number in (0, 1)]
    assert ["strict-transport-security" in each.headers for each in found] == [False, True]


def test_a_limit_of_0_is_none(door: Door) -> None:
    shop = door(limit_commands=0, limit_queries=0, limit_strangers=0)
    found = [
        *(shop.http.get("/api/v1/pools") for _ in range(70)),
        shop.get("/pools"),
        shop.post("/pools", {}),
    ]
    assert {each.status_code for each in found} == {401, 503}
    assert all("ratelimit" not in each.headers for each in found)


def test_two_processes_count_together_and_no_key_holds_a_token(
    door: Door, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.limits.REDIS_S_MAX", 10.0)
    first = door(limit_queries=3, redis=redis_server.url)
    second = door(limit_queries=3, redis=redis_server.url)
    found = [shop.get("/pools").status_code for _ in range(2) for shop in (first, second)]
    assert found == [503, 503, 503, 429]
    first.http.get("/api/v1/pools", headers={"Authorization": "Bearer let-me-guess"})
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as asked:
        assert sorted(asked.keys()) == [
            "counterfoil:{queries/60/demo/operator}",
            "counterfoil:{strangers/60/192.0.2.1}",
        ]


def test_a_redis_that_dies_meanwhile_costs_no_request_and_opens_nothing(
    door: Door, redis_server: RedisServer
) -> None:
    shop = door(limit_queries=5, redis=redis_server.url)
    found = [shop.get("/pools").status_code for _ in range(3)]
    redis_server.kill()
    found += [shop.get("/pools").status_code for _ in range(4)]
    assert found == [503] * 5 + [429] * 2


def test_every_operation_declares_the_headers_and_the_refusal(door: Door) -> None:
    document = door().http.get("/openapi.json").json()
    assert set(document["components"]["headers"]) == {"RateLimit-Policy", "RateLimit"}
    operations = {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/api/v1/")
    }
    assert len(operations) >= 19
    for name, operation in operations.items():
        assert "429" in operation["responses"], name
        assert "Retry-After" in operation["responses"]["429"]["headers"], name
        for status, answer in operation["responses"].items():
            assert {"RateLimit", "RateLimit-Policy"} <= set(answer["headers"]), (name, status)
