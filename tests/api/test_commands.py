from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api.retail.importer import Paper, paper_id
from infra.settings import Settings
from tests.api.conftest import NOWHERE, Shop, paper
from tests.api.test_wall import told
from tests.ledgers import InPostgres


@pytest.fixture
def api_settings(stored: InPostgres) -> Settings:
    """Nothing here is projected, so the ledger that is emptied for each test will do."""
    return stored.settings.model_copy(update={"clickhouse": NOWHERE})


@pytest.fixture
def stocked(shop: Shop) -> Shop:
    assert shop.post("/offers", {"offer": "mug", "title": "Mug", "capacity": 10}).status_code == 201
    return shop


def facts(stored: InPostgres) -> int:
    with stored.admin() as conn:
        row = conn.execute("SELECT position FROM head").fetchone()
    assert row is not None
    return int(row[0])


def test_an_order_answers_with_what_was_recorded_and_where(stocked: Shop) -> None:
    answer = stocked.post("/orders", paper(quantity=3, price="2.555"))
    assert answer.status_code == 201
    position = answer.headers["counterfoil-position"]
    assert "idempotent-replayed" not in answer.headers
    assert answer.json() == {
        "id": str(paper_id("demo", "1001", Paper.ORDER)),
        "document": "1001",
        "exact": "7.665",
        "total": {"minor": 767, "currency": "EUR"},
        "version": 1,
        "position": position,
    }
    assert position.startswith("0.1:")


def test_the_same_request_under_the_same_key_happens_once_and_answers_the_same(
    stocked: Shop, stored: InPostgres
) -> None:
    calls: list[tuple[str, Any]] = [
        ("/offers", {"offer": "cup", "title": "Cup", "slug": "a-cup"}),
        ("/pools", {"pool": "hall", "capacity": 5}),
        ("/pools/mug/holds", {"quantity": 1, "ttl_s": 60}),
        ("/orders", paper(contact="ana@example.org", settled=True)),
        ("/returns", paper("C1", quantity=-1)),
        ("/stock-adjustments", paper("S1", quantity=-1, price="0")),
        ("/bad-debts", paper("A1", price="-3")),
    ]
    for nth, (path, body) in enumerate(calls):
        first = stocked.post(path, body, key=f"k{nth}")
        assert first.status_code == 201, first.text
        before = facts(stored)
        again = stocked.post(path, body, key=f"k{nth}")
        assert facts(stored) == before
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers["counterfoil-position"] == first.headers["counterfoil-position"]
        assert again.headers["idempotent-replayed"] == "true"


def test_another_request_under_a_spent_key_is_refused(stocked: Shop) -> None:
    assert stocked.post("/orders", paper(), key="k").status_code == 201
    told(stocked.post("/orders", paper(quantity=1), key="k"), 422, "key-reused")
    told(stocked.post("/pools", {"pool": "x"}, key="k"), 422, "key-reused")
    contact = stocked.post("/orders", paper(contact="a@b.c"), key="k")
    told(contact, 422, "key-reused")


def test_a_hundred_twins_at_once_record_one_order(stocked: Shop, stored: InPostgres) -> None:
    before = facts(stored)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: stocked.post("/orders", paper(), key="k"), range(100)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 99
    assert facts(stored) == before + 2


def test_a_crowd_never_gets_more_places_than_there_are(stocked: Shop) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: stocked.post("/orders", paper(f"n{n}", quantity=1)), range(30)))
    codes = [answer.status_code for answer in answers]
    assert (codes.count(201), codes.count(409)) == (10, 20)


def test_the_same_paper_under_another_key_is_answered_and_not_recorded_again(
    stocked: Shop, stored: InPostgres
) -> None:
    for path, body in (
        ("/orders", paper()),
        ("/returns", paper("C1", quantity=-1)),
        ("/stock-adjustments", paper("S1")),
        ("/bad-debts", paper("A1")),
    ):
        first, before = stocked.post(path, body), facts(stored)
        again = stocked.post(path, body, key=f"another for {path}")
        assert again.status_code == 200
        assert facts(stored) == before
        assert {**again.json(), "position": ""} == {**first.json(), "position": ""}
        replayed = stocked.post(path, body, key=f"another for {path}")
        assert (replayed.status_code, replayed.json()) == (200, again.json())
        changed = stocked.post(path, body | {"country": "Norway"})
        assert changed.status_code == 409
        assert changed.json()["type"].endswith("-exists")


def test_a_paper_without_a_number_takes_it_from_the_key(stocked: Shop) -> None:
    assert stocked.post("/orders", paper(None), key="order 77").json()["document"] == "order 77"
    for key in ("with/slash", "k" * 200):
        number = stocked.post("/orders", paper(None), key=key).json()["document"]
        assert len(number) == 32
        assert stocked.post("/orders", paper(None), key=key).json()["document"] == number


def test_a_hold_is_confirmed_or_released_once(stocked: Shop) -> None:
    def held() -> str:
        answer = stocked.post("/pools/mug/holds", {"quantity": 5, "ttl_s": 600})
        assert answer.status_code == 201
        return f"/pools/mug/holds/{answer.json()['hold_id']}"

    first, second = held(), held()
    told(stocked.post("/pools/mug/holds", {"quantity": 1, "ttl_s": 60}), 409, "sold-out")
    assert stocked.post(f"{first}/confirm").status_code == 200
    assert stocked.post(f"{second}/release").status_code == 200
    for path in (first, second):
        for end in ("confirm", "release"):
            told(stocked.post(f"{path}/{end}"), 404, "hold-unknown")
    told(stocked.post("/orders", paper(quantity=6)), 409, "sold-out")
    assert stocked.post("/orders", paper(quantity=5)).status_code == 201


def test_a_hold_dies_at_its_deadline(stocked: Shop) -> None:
    path = "/pools/mug/holds"
    hold = stocked.post(path, {"quantity": 10, "ttl_s": 1}).json()["hold_id"]
    told(stocked.post(path, {"quantity": 1, "ttl_s": 60}), 409, "sold-out")
    time.sleep(1.1)
    assert stocked.post(path, {"quantity": 1, "ttl_s": 60}).status_code == 201
    told(stocked.post(f"{path}/{hold}/confirm"), 404, "hold-unknown")


def test_a_contact_is_sealed_before_it_is_a_fact(stocked: Shop, stored: InPostgres) -> None:
    assert stocked.post("/orders", paper(contact="ana@example.org")).status_code == 201
    with stored.admin() as conn:
        for (state,) in conn.execute("SELECT state FROM stored_events"):
            assert b"ana@example" not in state
        (box,) = conn.execute(
            "SELECT data->'contact'->>'box' FROM facts WHERE name = 'ordering.order-placed'"
        ).fetchone() or ("",)
    assert len(box) > 20


def test_a_command_needs_a_key_of_printable_characters(stocked: Shop) -> None:
    headers = stocked.headers
    for path in ("/orders", "/pools", "/bad-debts", "/pools/mug/holds"):
        told(stocked.http.post(f"/api/v1{path}", json=paper(), headers=headers), 400, "key-missing")
    for key in ("k" * 201, "tab\there", "é"):
        with_key = [*headers.items(), ("Idempotency-Key", key)]
        raw = [(name.encode(), value.encode()) for name, value in with_key]
        answer = stocked.http.post("/api/v1/pools", json={"pool": "x"}, headers=raw)
        told(answer, 400, "bad-key")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/orders", paper(lines=[]), "#/lines"),
    ("/orders", paper(quantity=2**31), "#/lines/0/quantity"),
    ("/orders", paper(quantity="2"), "#/lines/0/quantity"),
    ("/orders", paper(quantity=2.0), "#/lines/0/quantity"),
    ("/orders", paper(price="2.5555555"), "#/lines/0/unit_price"),
    ("/orders", paper(price="1e3"), "#/lines/0/unit_price"),
    ("/orders", paper(price="NaN"), "#/lines/0/unit_price"),
    ("/orders", paper(currency="eur"), "#/currency"),
    ("/orders", paper(placed_at="2011-02-30T10:00:00"), "#/placed_at"),
    ("/orders", paper(placed_at="2011-02-03T10:00:00Z"), "#/placed_at"),
    ("/orders", paper(placed_at=1_300_000_000), "#/placed_at"),
    ("/orders", paper(placed_at="1850-01-01T00:00:00"), "#/placed_at"),
    ("/orders", paper(document="a/b"), "#/document"),
    ("/orders", paper(country="x" * 201), "#/country"),
    ("/orders", paper(contact="nobody"), "#/contact"),
    ("/orders", paper(surprise=1), "#/surprise"),
    ("/orders", paper() | {"a/b~c": 1}, "#/a~1b~0c"),
    ("/orders", paper(customer="a\0b"), "#/customer"),
    ("/pools", {"pool": "", "capacity": 1}, "#/pool"),
    ("/pools", {"pool": "x", "capacity": -1}, "#/capacity"),
    ("/pools/mug/holds", {"quantity": 0, "ttl_s": 60}, "#/quantity"),
    ("/pools/mug/holds", {"quantity": 1, "ttl_s": 86_401}, "#/ttl_s"),
    ("/offers", {"offer": "x", "title": "x", "delivery": "magic"}, "#/delivery"),
]


@pytest.mark.parametrize(("path", "body", "pointer"), WRONG)
def test_a_body_of_the_wrong_form_is_told_where_and_leaves_no_mark(
    stocked: Shop, stored: InPostgres, path: str, body: dict[str, Any], pointer: str
) -> None:
    before = facts(stored)
    problem = told(stocked.post(path, body, key="once"), 422, "invalid-request")
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert facts(stored) == before
    assert stocked.post("/pools", {"pool": "fresh"}, key="once").status_code == 201


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b'{"pool": "\\ud800"}', b"[" * 100_000]
)
def test_what_is_not_json_is_a_problem(stocked: Shop, content: bytes) -> None:
    headers = stocked.headers | {"Idempotency-Key": "k", "Content-Type": "application/json"}
    answer = stocked.http.post("/api/v1/pools", content=content, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_refusals_of_the_rules_have_their_names(stocked: Shop) -> None:
    told(stocked.post("/offers", {"offer": "mug", "title": "Mug"}), 409, "offer-already-listed")
    told(stocked.post("/pools", {"pool": "mug"}), 409, "pool-already-open")
    told(stocked.post("/orders", paper(quantity=-1)), 422, "nothing-ordered")
    told(stocked.post("/orders", paper(quantity=11)), 409, "sold-out")
    unknown = paper(lines=[{"code": "cup", "title": "Cup", "quantity": 1, "unit_price": "1"}])
    told(stocked.post("/orders", unknown), 404, "pool-unknown")
    large = paper(quantity=2**31 - 1, price="999999999999")
    told(stocked.post("/orders", large), 409, "amount-too-large")
    assert stocked.post("/offers", {"offer": "a", "title": "A", "slug": "s"}).status_code == 201
    told(stocked.post("/offers", {"offer": "b", "title": "B", "slug": "s"}), 409, "slug-taken")
    many = [{"code": f"c{n}", "title": "", "quantity": 1, "unit_price": "1"} for n in range(2_100)]
    told(stocked.post("/orders", paper(lines=many)), 422, "too-many-streams")


def test_a_database_that_is_away_is_a_fault_and_the_key_makes_the_retry_safe(
    stocked: Shop, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stocked.http.app.state.ledgers.open["0"].handler.log  # type: ignore[attr-defined]
    monkeypatch.setattr("infra.connection.RECONNECT_S_MAX", 0.1)
    for connection in (log.connection, log.group.connection):
        connection.close()
        monkeypatch.setattr(connection, "dsn", "postgresql://x:y@127.0.0.1:1/x")
    answer = stocked.post("/orders", paper(), key="k")
    told(answer, 503, "log-unavailable")
    assert answer.headers["retry-after"]
    assert "127.0.0.1" not in answer.text
    for connection in (log.connection, log.group.connection):
        monkeypatch.setattr(connection, "dsn", api_settings.role_dsn("app"))
    assert stocked.post("/orders", paper(), key="k").status_code == 201
