"""One API before several ledgers: each tenant finds its own, and no other's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from api.app import create
from infra.migrate import migrate
from infra.moving.standing import close, opened, reopen, retire
from infra.settings import LedgerSettings, Settings
from infra.tenancy import settle, strays
from tests.api.conftest import Shop, carry, paper
from tests.api.test_wall import told
from tests.ledgers import InPostgres


@pytest.fixture
def api_settings(api_settings: Settings) -> Settings:
    """With a second ledger, which has the tenant acme."""
    named = {"eu": LedgerSettings(tenants=frozenset({"acme"}))}
    settings = api_settings.model_copy(update={"ledgers": named})
    migrate(settings.of_ledger("eu"))
    settle(settings)
    return settings


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """Of the default ledger; it and acme have mugs."""
    for each in (shop, shop.of("acme")):
        assert each.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    return shop


@pytest.fixture
def acme(shop: Shop) -> Shop:
    return shop.of("acme")


def carry_all(settings: Settings) -> None:
    for name in settings.ledger_names:
        carry(settings.of_ledger(name))


def ends(settings: Settings) -> list[tuple[int, int]]:
    """Of each ledger: its head's position, and how many facts it has."""
    found = []
    for name in settings.ledger_names:
        with InPostgres(settings.of_ledger(name)).admin() as conn:
            row = conn.execute("SELECT position, (SELECT count(*) FROM stored_events) FROM head").fetchone()
            assert row is not None
            found.append((row[0], row[1]))
    return found


def test_positions_are_each_ledgers_own_and_say_whose(shop: Shop, acme: Shop, api_settings: Settings) -> None:
    before = ends(api_settings)
    for nth in (1, 2):
        for each, ledger in ((shop, "0"), (acme, "eu")):
            answer = each.post("/offers", {"offer": f"mug-{nth}", "title": "Mug"}).headers
            assert answer["counterfoil-position"].startswith(f"{ledger}.1:")
    after = ends(api_settings)
    assert after[0] == after[1] > before[0] == before[1]
    assert all(position == facts for position, facts in after)


def test_a_position_of_another_ledger_is_refused_and_not_waited_for(
    shop: Shop, acme: Shop, api_settings: Settings
) -> None:
    mine, other = (each.post("/orders", paper()).headers["counterfoil-position"] for each in (shop, acme))
    carry_all(api_settings)
    for each, own, foreign, name in ((shop, mine, other, "0"), (acme, other, mine, "eu")):
        assert each.get("/orders", Counterfoil_At_Least=own).status_code == 200
        problem = told(each.get("/orders", Counterfoil_At_Least=foreign), 400, "position-of-another-ledger")
        assert problem["detail"] == f"this one is {name!r}"
        told(each.get(f"/orders?as_of={foreign}"), 400, "position-of-another-ledger")


def test_what_is_in_one_ledger_is_not_found_through_the_other(
    shop: Shop, acme: Shop, api_settings: Settings
) -> None:
    order = acme.post("/orders", paper()).json()["id"]
    carry_all(api_settings)
    assert acme.get(f"/orders/{order}").status_code == 200
    assert len(acme.get("/orders").json()["items"]) == 1
    told(shop.get(f"/orders/{order}"), 404, "order-unknown")
    assert shop.get("/orders").json()["items"] == []


def test_the_same_key_and_paper_are_each_tenants_own(shop: Shop, acme: Shop) -> None:
    answers = [each.post("/orders", paper(), key="k") for each in (shop, acme)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [
        each.post("/orders", paper(), key="k").headers["idempotent-replayed"] for each in (shop, acme)
    ] == [
        "true",
        "true",
    ]


def test_ready_tells_of_every_ledger(shop: Shop, acme: Shop, api_settings: Settings) -> None:
    shop.post("/orders", paper())
    acme.post("/orders", paper("1"))
    acme.post("/orders", paper("2"))
    carry_all(api_settings)
    ready = shop.http.get("/ready").json()
    (further,) = ready["further_ledgers"]
    assert (ready["ledger"], further["ledger"]) == ("0", "eu")
    assert further["position"] > ready["position"] > 0
    for each in (ready, further):
        assert {lag["complete_through"] for lag in each["projections"]} == {each["position"]}


@pytest.fixture
def reassigned(api_settings: Settings, acme: Shop) -> Iterator[Shop]:
    """Acme has facts in eu; this API's settings have forgotten that."""
    assert acme.post("/orders", paper()).status_code == 201
    forgetful = api_settings.model_copy(update={"ledgers": {}})
    with TestClient(create(forgetful), raise_server_exceptions=False) as client:
        yield Shop(client, acme.token, "acme")


def test_a_tenant_whose_ledger_the_settings_forgot_begins_no_second_life(
    reassigned: Shop, api_settings: Settings
) -> None:
    told(reassigned.post("/orders", paper()), 503, "tenant-elsewhere")
    told(reassigned.get("/orders"), 503, "tenant-elsewhere")
    with InPostgres(api_settings).admin() as conn:
        assert conn.execute("SELECT count(*) FROM commands WHERE tenant = 'acme'").fetchone() == (0,)
    assert reassigned.of("anybody").get("/orders").status_code == 200


def test_control_a_ledger_that_does_not_ask_begins_a_second_life_and_the_audit_finds_it(
    reassigned: Shop, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unasked(*_: object) -> None:
        """Whoever comes is served."""

    monkeypatch.setattr("infra.tenancy.require_home", unasked)
    assert reassigned.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    assert strays(api_settings) == [("acme", "0")]


# ── closed ────────────────────────────────────────────────────────────────────────────────────────


def test_a_ledger_on_its_way_is_read_and_not_written_and_the_others_are_both(
    shop: Shop, acme: Shop, api_settings: Settings
) -> None:
    first = acme.post("/orders", paper("1"), key="first")
    carry_all(api_settings)
    with closing(opened(api_settings.of_ledger("eu"))) as conn:
        close(conn, uuid4())
        told(acme.post("/orders", paper("2"), key="second"), 503, "ledger-moved")
        assert acme.get(f"/orders/{first.json()['id']}").status_code == 200
        assert shop.post("/orders", paper("2")).status_code == 201
        ready = shop.http.get("/ready").json()
        assert (ready["closed"], ready["further_ledgers"][0]["closed"]) == (None, "moving")
        assert ready["status"] == "degraded"
        reopen(conn)
    again = acme.post("/orders", paper("2"), key="second")
    assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False), "it left no mark"


def test_a_ledger_that_has_moved_answers_nothing_where_it_was(
    shop: Shop, acme: Shop, api_settings: Settings
) -> None:
    """A replay or a refusal too would be told from what is not the truth any more."""
    assert acme.post("/orders", paper("1"), key="first").status_code == 201
    with closing(opened(api_settings.of_ledger("eu"))) as conn:
        close(conn, uuid4())
        retire(conn)
    time.sleep(0.1)
    told(acme.post("/orders", paper("1"), key="first"), 503, "ledger-moved")
    told(acme.get("/orders"), 503, "ledger-moved")
    assert shop.get("/orders").status_code == 200
