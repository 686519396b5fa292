"""The doors of a whole running system: broker, relay, worker and both read models, as `up` has them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api.conftest import Shop, System, paper
from tests.api.test_wall import told

pytestmark = pytest.mark.slow
ENGINES = ("postgres", "clickhouse")


@pytest.fixture
def shop(system: System, request: pytest.FixtureRequest) -> Shop:
    """A tenant of the test's own."""
    shop = system.shop.of(f"t{abs(hash(request.node.name)) % 10**12}")
    assert shop.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    return shop


def test_a_command_is_seen_in_both_engines_by_whoever_asks_for_its_position(shop: Shop) -> None:
    for nth in range(1, 6):
        at = shop.post("/orders", paper(f"n{nth}", price="0.333")).headers["counterfoil-position"]
        for engine in ENGINES:
            answer = shop.get(
                f"/reports/retail?currency=EUR&engine={engine}&units=mug",
                Counterfoil_At_Least=at,
                Prefer="wait=30",
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["net_revenue"] == f"{nth * 0.666:.3f}"
            assert answer.json()["net_units"] == {"mug": 2 * nth}
            assert int(answer.headers["counterfoil-complete-through"].split(":")[1]) >= int(at.split(":")[1])


def test_both_engines_tell_the_same_now_and_then(shop: Shop) -> None:
    papers = [
        ("/orders", paper("1", country="Norway")),
        ("/orders", paper("2", customer=None, placed_at="2010-12-31T23:59:59")),
        ("/returns", paper("C1", quantity=-3)),
        ("/bad-debts", paper("A1", price="-1.5")),
        ("/stock-adjustments", paper("S1", quantity=-7, price="0")),
        ("/orders", paper("3", currency="GBP")),
        ("/orders", paper("4", price="999999999999.999999")),
    ]
    positions = [shop.post(path, body).headers["counterfoil-position"] for path, body in papers]
    for at in positions:
        for path in (
            f"/reports/retail?currency=EUR&units=mug&as_of={at}",
            *(
                f"/reports/revenue?currency=EUR&by={by}&as_of={at}"
                for by in ("total", "month", "country", "customer")
            ),
        ):
            one, other = (shop.get(f"{path}&engine={engine}", Prefer="wait=30").json() for engine in ENGINES)
            one.pop("engine", None)
            assert other.pop("engine", "clickhouse") == "clickhouse"
            assert one == other


def test_while_the_worker_is_frozen_nobody_is_told_old_figures_as_new(shop: Shop, system: System) -> None:
    with system.frozen("worker-1"):
        placed = shop.post("/orders", paper(), key="k")
        at, path = placed.headers["counterfoil-position"], f"/orders/{placed.json()['id']}"
        for asked in (path, "/orders", "/reports/retail?engine=clickhouse", "/pools"):
            problem = told(
                shop.get(asked, Counterfoil_At_Least=at, Prefer="wait=1"), 503, "projection-behind"
            )
            assert problem["projections"][0]["lag"] > 0
        with ThreadPoolExecutor(1) as waiting:
            answer = waiting.submit(shop.get, path, Counterfoil_At_Least=at, Prefer="wait=30")
            time.sleep(1)
            assert not answer.done()
            system.frozen("worker-1").__exit__()
            assert answer.result(40).status_code == 200
    for engine in ENGINES:
        caught_up = shop.get(
            f"/reports/retail?currency=EUR&engine={engine}", Counterfoil_At_Least=at, Prefer="wait=30"
        )
        assert caught_up.json()["orders"] == 1


def test_while_the_relay_is_frozen_the_same(shop: Shop, system: System) -> None:
    with system.frozen("relay"):
        at = shop.post("/orders", paper()).headers["counterfoil-position"]
        told(shop.get("/orders", Counterfoil_At_Least=at, Prefer="wait=1"), 503, "projection-behind")
    assert shop.get("/orders", Counterfoil_At_Least=at, Prefer="wait=30").status_code == 200


def test_a_frozen_clickhouse_holds_up_its_own_questions_alone(shop: Shop, system: System) -> None:
    with system.frozen("clickhouse"):
        at = shop.post("/orders", paper()).headers["counterfoil-position"]
        answer = shop.get("/orders", Counterfoil_At_Least=at, Prefer="wait=20")
        assert answer.status_code == 200, answer.text
        refused = shop.get("/reports/retail?engine=clickhouse", Counterfoil_At_Least=at, Prefer="wait=1")
        assert refused.status_code == 503
    fresh = shop.get(
        "/reports/retail?engine=clickhouse&currency=EUR", Counterfoil_At_Least=at, Prefer="wait=30"
    )
    assert fresh.json()["orders"] == 1


def test_partitions_that_nothing_is_written_to_hold_nobody_back(shop: Shop, system: System) -> None:
    """Rebuilds were never recorded, so no partition of `audit` has anything, and orders come all the time."""
    at = shop.post("/orders", paper()).headers["counterfoil-position"]
    began = time.monotonic()
    for path in ("/orders", "/balances", "/offers", "/pools"):
        assert shop.get(path, Counterfoil_At_Least=at, Prefer="wait=20").status_code == 200
    assert time.monotonic() - began < 15
    ready = system.shop.http.get("/ready").json()
    audit = next(each for each in ready["projections"] if each["projection"] == "audit")
    assert audit["complete_through"] == ready["through"]
