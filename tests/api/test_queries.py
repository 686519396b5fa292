from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import psycopg
import pytest

from infra.migrate import schema_of
from infra.settings import Settings
from tests.api.conftest import Shop, carry, paper
from tests.api.test_wall import told


@pytest.fixture
def stocked(shop: Shop, api_settings: Settings) -> Shop:
    assert shop.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    carry(api_settings)
    return shop


def admin(settings: Settings) -> psycopg.Connection[Any]:
    assert settings.postgres_dsn is not None
    options = f"-c search_path={schema_of(settings)}"
    return psycopg.connect(settings.postgres_dsn, autocommit=True, options=options)


def numbers(answer: Any) -> list[str]:
    return [item["document"] for item in answer.json()["items"]]


def test_an_answer_at_least_as_new_as_a_position_waits_for_it_and_is_never_silently_stale(
    stocked: Shop, api_settings: Settings
) -> None:
    placed = stocked.post("/orders", paper())
    at, path = placed.headers["counterfoil-position"], f"/orders/{placed.json()['id']}"
    began = time.monotonic()
    answer = stocked.get(path, Counterfoil_At_Least=at, Prefer="respond-async, wait=1")
    assert 1 <= time.monotonic() - began < 4
    problem = told(answer, 503, "projection-behind")
    assert answer.headers["retry-after"] == "1"
    assert problem["asked"] == 4
    (lag,) = problem["projections"]
    assert (lag["projection"], lag["complete_through"], lag["lag"]) == ("ordering", 2, 2)
    assert stocked.get(path).status_code == 404  # without the position: as things are, and marked so
    assert stocked.get("/orders").headers["counterfoil-complete-through"] == "0.1:2"
    carry(api_settings)
    answer = stocked.get(path, Counterfoil_At_Least=at)
    assert answer.json()["document"] == "1001"
    assert answer.headers["counterfoil-complete-through"] == "0.1:4"
    assert answer.json()["position"] == "0.1:3"


def test_a_position_is_read_strictly(stocked: Shop) -> None:
    for text in (
        "3",
        "0.1",
        "0.1:",
        "0:1:3",
        "0.1:03",
        "0.1:-1",
        "0.0:1",
        "0.1:1x",
        "0.1:" + "9" * 19,
        "é.1:1",
    ):
        headers = [*stocked.headers.items(), ("Counterfoil-At-Least", text)]
        raw = [(name.encode(), value.encode()) for name, value in headers]
        told(stocked.http.get("/api/v1/orders", headers=raw), 400, "position-unreadable")
    told(stocked.get("/orders", Counterfoil_At_Least="1.1:1"), 400, "position-of-another-ledger")
    told(stocked.get("/orders", Counterfoil_At_Least="0.2:1"), 409, "position-of-another-epoch")
    told(stocked.get("/orders", Counterfoil_At_Least="0.1:99"), 400, "position-unknown")
    told(stocked.get("/orders?as_of=0.1:99"), 400, "position-unknown")
    assert stocked.get("/orders", Counterfoil_At_Least="0.1:0").status_code == 200


def test_a_restore_makes_old_positions_old(stocked: Shop, api_settings: Settings) -> None:
    with admin(api_settings) as conn:
        conn.execute("UPDATE head SET epoch = 2")
    time.sleep(0.1)
    told(stocked.get("/orders", Counterfoil_At_Least="0.1:1"), 409, "position-of-another-epoch")
    assert stocked.post("/orders", paper()).headers["counterfoil-position"] == "0.2:4"


def test_pages_follow_one_another_without_gap_or_repeat_while_orders_come_in(
    stocked: Shop, api_settings: Settings
) -> None:
    def place(*papers: str) -> None:
        for number in papers:
            assert stocked.post("/orders", paper(number)).status_code == 201
        carry(api_settings)

    place(*"abcde")
    page = stocked.get("/orders?limit=2")
    seen = numbers(page)
    extra = iter("fgh")
    while page.json()["next"]:
        assert page.headers["link"] == f'<{page.json()["next"]}>; rel="next"'
        if (number := next(extra, None)) is not None:
            place(number)
        page = stocked.get(page.json()["next"])
        seen += numbers(page)
    assert seen == list("abcdefgh")
    assert "link" not in page.headers
    assert numbers(stocked.get("/orders?limit=200")) == seen


def test_every_list_has_pages(stocked: Shop, api_settings: Settings) -> None:
    for code in ("cup", "jug", "Ütze %&/+".replace("/", ""), "a b"):
        assert stocked.post("/offers", {"offer": code, "title": code}).status_code == 201
    for number in ("C1", "C2", "C3"):
        assert stocked.post("/returns", paper(number, quantity=-1)).status_code == 201
    carry(api_settings)
    for path in ("/offers", "/pools", "/returns"):
        whole = stocked.get(f"{path}?limit=200").json()["items"]
        found, onward = [], f"{path}?limit=1"
        while onward:
            page = stocked.get(onward).json()
            found += page["items"]
            onward = page["next"]
        assert found == whole
        assert len(found) >= 3


@pytest.mark.parametrize("key", ["x", None, -1, 2**63, 1.5, True, {}, ["a"]])
def test_a_cursor_that_was_not_given_out_is_refused(stocked: Shop, key: Any) -> None:
    made = urlsafe_b64encode(json.dumps(["orders", key]).encode()).decode()
    told(stocked.get(f"/orders?cursor={made}"), 400, "cursor-unreadable")


@pytest.mark.parametrize("cursor", ["%20", "AAAA", "é", "eyJ9", "WyJvZmZlcnMiLCIiXQ"])
def test_a_cursor_of_nothing_or_of_another_list_is_refused(stocked: Shop, cursor: str) -> None:
    told(stocked.get(f"/orders?cursor={cursor}"), 400, "cursor-unreadable")


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=1.5"])
def test_a_parameter_of_the_wrong_form_is_named(stocked: Shop, query: str) -> None:
    problem = told(stocked.get(f"/orders?{query}"), 422, "invalid-request")
    assert problem["errors"][0]["parameter"] == "limit"


def test_a_client_that_has_the_answer_is_told_so(stocked: Shop, api_settings: Settings) -> None:
    placed = stocked.post("/orders", paper()).json()
    carry(api_settings)
    entity = stocked.get(f"/orders/{placed['id']}")
    assert entity.headers["etag"] == '"v1"'
    for path in (f"/orders/{placed['id']}", "/orders", "/balances", "/reports/retail"):
        first = stocked.get(path)
        tag = first.headers["etag"]
        for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            again = stocked.get(path, If_None_Match=known)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert again.headers["counterfoil-complete-through"]
        assert stocked.get(path, If_None_Match='"other"').status_code == 200
    tag = stocked.get("/orders").headers["etag"]
    stocked.post("/orders", paper("1002"))
    carry(api_settings)
    assert stocked.get("/orders", If_None_Match=tag).status_code == 200


def test_any_answer_can_be_had_as_it_was_at_a_position(stocked: Shop, api_settings: Settings) -> None:
    first = stocked.post("/orders", paper("1", quantity=2)).headers["counterfoil-position"]
    second = stocked.post("/returns", paper("C1", quantity=-1)).headers["counterfoil-position"]
    carry(api_settings)
    then = stocked.get("/reports/retail?currency=EUR&units=mug")
    assert then.json()["net_revenue"] == "2.550"
    stocked.post("/orders", paper("2", quantity=100))
    carry(api_settings)
    for path in (
        "/reports/retail?currency=EUR&units=mug",
        "/pools",
        "/orders",
        "/returns",
        "/balances",
        "/offers",
    ):
        joined = "&" if "?" in path else "?"
        at_second = stocked.get(f"{path}{joined}as_of={second}")
        assert at_second.status_code == 200, at_second.text
        assert at_second.text != stocked.get(path).text or path in ("/returns", "/offers", "/balances")
        assert at_second.headers["counterfoil-complete-through"] != second
    at_second = stocked.get(f"/reports/retail?currency=EUR&units=mug&as_of={second}")
    assert at_second.json() == then.json()
    at_first = stocked.get(f"/reports/retail?currency=EUR&units=mug&as_of={first}").json()
    assert (at_first["net_revenue"], at_first["returns"], at_first["net_units"]) == ("5.100", 0, {"mug": 2})
    assert numbers(stocked.get(f"/returns?as_of={first}")) == []
    assert stocked.get("/orders?as_of=0.1:0").json()["items"] == []


def test_figures_are_exact_and_of_one_currency(stocked: Shop, api_settings: Settings) -> None:
    stocked.post("/orders", paper("1", price="0.000001", quantity=3))
    stocked.post("/orders", paper("2", price="999999999999.999999", quantity=1))
    stocked.post("/orders", paper("3", currency="JPY", price="10", quantity=1))
    stocked.post("/bad-debts", paper("A1", price="-5", quantity=1))
    carry(api_settings)
    report = stocked.get("/reports/retail?currency=EUR&units=mug&units=none").json()
    assert report == {
        "lines": 3,
        "orders": 2,
        "returns": 0,
        "net_revenue": "999999999995.000002",
        "by_month": {"2011-01": "999999999995.000002"},
        "by_country": {"France": "999999999995.000002"},
        "top_customers": {"17850": "999999999995.000002"},
        "net_units": {"mug": 5, "none": 0},
    }
    for by, name in (("total", "EUR"), ("month", "2011-01"), ("country", "France"), ("customer", "17850")):
        items = stocked.get(f"/reports/revenue?by={by}&currency=EUR").json()["items"]
        assert items == [{"name": name, "lines": 3, "net_revenue": "999999999995.000002"}]
    assert stocked.get("/reports/revenue?currency=USD").json()["items"] == []


def test_what_is_parked_is_said_everywhere_and_its_own_reader_is_not_lied_to(
    stocked: Shop, api_settings: Settings
) -> None:
    placed = stocked.post("/orders", paper()).json()
    other = stocked.post("/orders", paper("1002")).json()
    carry(api_settings)
    assert "counterfoil-parked" not in stocked.get("/orders").headers
    with admin(api_settings) as conn:
        for nth in range(3):
            conn.execute(
                "INSERT INTO parked VALUES ('postgres', 'ordering', %s, %s, 't', 0, 'broken')",
                (f"demo/order-{placed['id']}", 3 + nth),
            )
        conn.execute(
            "INSERT INTO parked VALUES ('postgres', 'ordering', 'other/order-x', 9, 't', 0, 'a secret')"
        )
    time.sleep(0.1)
    told(stocked.get(f"/orders/{placed['id']}"), 503, "stream-parked")
    assert stocked.get(f"/orders/{other['id']}").status_code == 200
    assert stocked.get("/orders").headers["counterfoil-parked"] == "3"
    assert "counterfoil-parked" not in stocked.get("/balances").headers
    assert stocked.of("other").get("/orders").headers["counterfoil-parked"] == "1"
    ready = stocked.http.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["parked"]) == (200, "degraded", 4)
    page = stocked.get("/parked?limit=2").json()
    assert [item["position"] for item in page["items"]] == ["0.1:3", "0.1:4"]
    assert page["items"][0]["stream"] == f"order-{placed['id']}"
    assert [item["position"] for item in stocked.get(page["next"]).json()["items"]] == ["0.1:5"]
    assert "secret" not in stocked.get("/parked").text


def test_projections_tell_their_version_and_their_lag(stocked: Shop) -> None:
    stocked.post("/orders", paper())
    time.sleep(0.1)
    body = stocked.get("/projections").json()
    assert (body["position"], body["relayed_through"]) == ("0.1:4", "0.1:2")
    lags = {item["projection"]: item for item in body["items"]}
    assert lags["ordering"]["engine"] == "postgres"
    assert (lags["ordering"]["version"], lags["ordering"]["lag"]) == (1, 2)


def test_an_engine_that_is_away_refuses_its_own_questions_alone(stocked: Shop) -> None:
    told(stocked.get("/reports/retail?engine=clickhouse"), 503, "store-unavailable")
    assert stocked.get("/reports/retail?engine=postgres").status_code == 200


def test_a_version_that_was_replaced_since_is_not_asked_again(stocked: Shop, api_settings: Settings) -> None:
    """The switch of a rebuild: a new table is shown, the old one goes, and no request fails over it."""
    assert len(stocked.get("/offers").json()["items"]) == 1
    with admin(api_settings) as conn:
        conn.execute("ALTER TABLE offers_v1 RENAME TO offers_v2")
        conn.execute("UPDATE projections SET version = 2 WHERE name = 'catalog'")
        conn.execute("UPDATE checkpoints SET version = 2 WHERE name = 'catalog'")
    assert len(stocked.get("/offers").json()["items"]) == 1
