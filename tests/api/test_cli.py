"""The command line, as people run it: a program beside a running system, judged by output and exit code."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api import audits, cli
from api.demo import SOURCES
from infra.settings import Settings
from tests.api.conftest import System, paper

PROGRAM = Path(sys.executable).with_name("counterfoil")
CORNERS = Path(__file__).parents[1] / "data" / "retail_small" / "corners.csv"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
RUN_S_MAX = 60

needs_system = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """All of standard output: with --json nothing else may be there."""
        return json.loads(self.out)


Program = Callable[..., Ended]


def run(home: Path, *arguments: str) -> Ended:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=variables | {"COUNTERFOIL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The same in this process: starting another would be most of the time of what ends at once."""

    def run_here(home: Path, *arguments: str) -> Ended:
        monkeypatch.setenv("COUNTERFOIL_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["counterfoil", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return Ended(int(ended.value.code or 0), told.out, told.err)

    return run_here


@pytest.fixture(scope="module")
def counterfoil(system: System) -> Program:
    """In the running system's home."""
    return lambda *arguments: run(system.settings.home, *arguments)


@pytest.fixture
def tenant() -> str:
    return f"cli-{uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def shop(counterfoil: Program) -> str:
    """A tenant that has the corners, and keeps them as they are."""
    tenant = f"cli-{uuid4().hex[:12]}"
    assert counterfoil("import", "retail", str(CORNERS), "--tenant", tenant).code == 0
    return tenant


def position(system: System) -> int:
    return int(httpx.get(f"{system.running.api}/ready", timeout=10).json()["position"])


def admin(system: System) -> psycopg.Connection[Any]:
    assert system.settings.postgres_dsn is not None
    return psycopg.connect(system.settings.postgres_dsn, autocommit=True, options="-c search_path=ledger_0")


# ── import ────────────────────────────────────────────────────────────────────────────────────────


@needs_system
def test_a_file_is_imported_once_packed_or_not(
    system: System, counterfoil: Program, tenant: str, tmp_path: Path
) -> None:
    first = counterfoil("import", "retail", str(CORNERS), "--tenant", tenant, "--json")
    assert first.code == 0
    told = first.json()
    counts = {"invoices": 7, "lines": 13, "imported": 7, "already_imported": 0, "failed": [], "stopped": None}
    assert told == counts | {"seconds": told["seconds"], "lines_per_s": told["lines_per_s"]}
    before = position(system)

    packed = tmp_path / "corners.csv.gz"
    packed.write_bytes(gzip.compress(CORNERS.read_bytes()))
    told = counterfoil("import", "retail", str(packed), "--tenant", tenant, "--json").json()
    assert (told["imported"], told["already_imported"], told["failed"]) == (0, 7, [])

    again = counterfoil("import", "retail", str(CORNERS), "--tenant", tenant)
    assert (again.code, again.out) == (0, "")
    assert "0 invoices imported, 7 already imported, 0 failed; 13 lines" in again.err
    assert position(system) == before


@needs_system
def test_an_invoice_that_was_changed_is_named_and_the_others_go_in(
    counterfoil: Program, tenant: str, tmp_path: Path
) -> None:
    assert counterfoil("import", "retail", str(CORNERS), "--tenant", tenant, "--no-wait").code == 0
    changed = tmp_path / "changed.csv"
    new = "14,600008,22423,REGENCY CAKESTAND 3 TIER,1,2011-01-08 13:00:00,12.75,12347,Iceland\n"
    changed.write_text(CORNERS.read_text().replace("DESIGNS,48,", "DESIGNS,49,") + new)
    failed = {"invoice": "600001", "line": 2, "reason": "was imported before with other content"}

    ended = counterfoil("import", "retail", str(changed), "--tenant", tenant, "--json")
    told = ended.json()
    assert ended.code == 1
    assert (told["imported"], told["already_imported"], told["failed"]) == (1, 6, [failed])

    ended = counterfoil("import", "retail", str(changed), "--tenant", tenant)
    assert (ended.code, ended.out) == (1, "")
    assert "changed.csv: invoice 600001 (line 2) was imported before with other content" in ended.err


def line(*, quantity: str = "1", price: str = "2.55") -> str:
    return f"700001,85123A,HEART,{quantity},2011-01-01 09:00:00,{price},,EIRE\n"


GOOD = f"{HEADER}\n{line()}"
LONG = gzip.compress("".join([GOOD, *(line(price=f"{cents / 100}") for cents in range(20_000))]).encode())
BAD: dict[str, tuple[bytes | str | None, str]] = {
    "cut.csv.gz": (LONG[: len(LONG) // 2], r"line [0-9]{4,}: cannot be read any further"),
    "column.csv": (GOOD.replace("Quantity", "Amount"), r"line 1, column Quantity: is missing in the header"),
    "quantity.csv": (GOOD + line(quantity="six"), r"line 3, column Quantity: 'six' is not a whole number"),
    "price.csv": (GOOD + line(price="2,55"), r"line 3: 9 fields, and the header has 8"),
    "unknown.csv": (None, "there is no such file"),
    "sheet.xls": (GOOD, r"its name must end in one of \.csv, \.csv\.gz, \.csv\.xz"),
}
"""The last line is the wrong one, where a line is: nothing before it may have been written."""


def bad_file(name: str, at: Path) -> tuple[Path, str]:
    content, message = BAD[name]
    path = at / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path, message


@needs_system
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_place_and_nothing_of_it_is_written(
    name: str, system: System, here: Callable[..., Ended], tenant: str, tmp_path: Path
) -> None:
    path, message = bad_file(name, tmp_path)
    before = position(system)
    as_json = ("--json",) if name in {"cut.csv.gz", "unknown.csv"} else ()
    ended = here(system.settings.home, "import", "retail", str(path), "--tenant", tenant, *as_json)
    assert (ended.code, ended.out) == (1, "")
    assert re.search(f"^counterfoil: {re.escape(str(path))}[,:] {message}", ended.err, re.MULTILINE), (
        ended.err
    )
    assert position(system) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "retail", "no.csv", "--tenant", "shop"], "no.csv: there is no such file"),
        (["import", "retail", str(CORNERS), "--tenant", "A B"], "--tenant 'A B': use lower-case letters"),
        (
            ["import", "retail", str(CORNERS), "--tenant", "shop", "--currency", "gbp"],
            "--currency 'gbp': use three capital letters",
        ),
        (["report", "retail", "--tenant", "shop", "--currency", "gbp"], "--currency 'gbp': use three"),
    ],
)
def test_no_engine_is_started_for_what_cannot_be_right(
    arguments: list[str], message: str, here: Callable[..., Ended], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    ended = here(home, *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert f"counterfoil: {message}" in ended.err
    assert not home.exists()


# ── report ────────────────────────────────────────────────────────────────────────────────────────


@needs_system
def test_a_report_tells_the_same_figures_three_times(counterfoil: Program, shop: str) -> None:
    ended = counterfoil(
        "report", "retail", "--tenant", shop, "--json", "--units", "84077", "--units", "22423"
    )
    assert ended.code == 0
    told = ended.json()
    assert list(told) == ["log", "postgres", "clickhouse"]
    assert told["log"] == told["postgres"] == told["clickhouse"]
    assert told["log"] == {
        "lines": 13,
        "orders": 4,
        "returns": 1,
        "net_revenue": "-10998.809999",
        "by_month": {"2010-12": "29.220", "2011-01": "-11028.029999"},
        "by_country": {"Iceland": "13.250", "EIRE": "2.550001", "United Kingdom": "-11014.610"},
        "top_customers": {"17850": "47.450", "12347": "13.250"},
        "net_units": {"84077": 30, "22423": 0},
    }
    shown = counterfoil("report", "retail", "--tenant", shop)
    assert shown.code == 0
    row = next(row for row in shown.out.splitlines() if "net revenue" in row)
    assert row.count("-10998.809999") == len(SOURCES)


# ── audits ────────────────────────────────────────────────────────────────────────────────────────


@needs_system
def test_verify_agrees_and_says_which_table_does_not(system: System, counterfoil: Program, shop: str) -> None:
    shown = counterfoil("verify")
    assert shown.code == 0
    assert re.search(r"^everything agrees: [0-9,]+ positions, [0-9,]+ rows compared", shown.out, re.MULTILINE)
    ended = counterfoil("verify", "--tenant", shop, "--json")
    assert ended.code == 0
    told = ended.json()
    assert (told["ok"], told["findings"], told["parked"]) == (True, [], [])
    assert told["rows"]["clickhouse.sale_lines_v1"] == 13
    with admin(system) as conn:
        conn.execute("UPDATE orders_v1 SET country = country || '!' WHERE tenant = %s", (shop,))
        try:
            ended = counterfoil("verify", "--json")
        finally:
            conn.execute("UPDATE orders_v1 SET country = rtrim(country, '!') WHERE tenant = %s", (shop,))
    assert ended.code == 1
    assert ended.json()["ok"] is False
    assert {"orders_v1" in finding["where"] for finding in ended.json()["findings"]} == {True}


@needs_system
def test_a_rebuild_switches_to_the_next_version_and_says_what_it_compared(
    system: System, counterfoil: Program, shop: str
) -> None:
    before = version(system, "capacity")
    ended = counterfoil("rebuild", "capacity", "--reason", "a test", "--json")
    assert ended.code == 0, ended.err
    told = ended.json()
    assert (told["ok"], told["switched"], told["rows_differing"]) == (True, True, 0)
    assert (told["projection"], told["version"]) == ("capacity", before + 1)
    assert told["rows"] > 0
    assert version(system, "capacity") == before + 1

    refused = counterfoil("rebuild", "nothing", "--reason", "a test")
    assert (refused.code, refused.out) == (1, "")
    assert "counterfoil: no projection is named 'nothing'; there are catalog, capacity" in refused.err


POOL_FACTS = ["pool-opened", "places-taken", "places-returned", "stock-adjusted"]


def version(system: System, projection: str) -> int:
    with admin(system) as conn:
        row = conn.execute(
            "SELECT version FROM projections WHERE engine = 'postgres' AND name = %s", (projection,)
        ).fetchone()
    assert row is not None
    return int(row[0])


@needs_system
def test_a_streams_state_is_told_as_it_was_at_a_position(counterfoil: Program, shop: str) -> None:
    now = counterfoil("state", "pool-84077", "--tenant", shop)
    assert now.code == 0
    facts = now.json()["facts"]
    assert [fact["name"].removeprefix("capacity.") for fact in facts] == POOL_FACTS
    assert now.json()["states"]["Pool"]["used"] == 48 - 8 + 10  # sold, brought back, written off
    first, second = (fact["position"] for fact in facts[:2])
    then = counterfoil("state", "pool-84077", "--tenant", shop, "--at", str(second), "--json").json()
    assert (then["at"], then["version"], then["position"]) == (second, 2, second)
    assert then["states"]["Pool"]["used"] == 48
    too_early = counterfoil("state", "pool-84077", "--tenant", shop, "--at", str(first - 1), "--json")
    assert (too_early.code, too_early.out) == (1, "")
    assert f"at position {first - 1}; it begins at position {first}" in too_early.err


# ── the doctor ────────────────────────────────────────────────────────────────────────────────────


@needs_system
def test_the_doctor_finds_a_healthy_system_healthy(system: System, counterfoil: Program, shop: str) -> None:
    shown, ended = counterfoil("doctor"), counterfoil("doctor", "--json")
    assert (shown.code, ended.code) == (0, 0)
    assert shown.out.splitlines()[-1] == "status: ready"
    assert "postgres answers, clickhouse answers, kafka answers" in shown.out
    told = ended.json()
    assert list(told) == ["ready", "parked", "elsewhere", "memory_mib"]
    assert (told["ready"]["status"], told["parked"], told["elsewhere"]) == ("ready", [], [])
    assert told["ready"]["position"] >= 13
    assert set(told["memory_mib"]) == {"supervisor", *system.running.children}
    assert all(mib > 0 for mib in told["memory_mib"].values())
    assert all(each["projection"] in shown.out for each in told["ready"]["projections"])


@needs_system
def test_a_fact_that_cannot_be_projected_is_seen_until_it_is_mended(
    system: System, counterfoil: Program, tenant: str
) -> None:
    """Its bytes are damaged before the relay has seen them, and put back later, as by a mended program."""
    client = system.shop.of(tenant)
    assert client.post("/offers", {"offer": "mug", "title": "Mug"}).status_code == 201
    with admin(system) as conn:
        with system.frozen("relay"):
            placed = client.post("/orders", paper())
            assert placed.status_code == 201, placed.text
            stream = f"{tenant}/order-{placed.json()['id']}"
            row = conn.execute(
                "SELECT state, notification_id FROM stored_events WHERE originator_id = %s", (stream,)
            ).fetchone()
            assert row is not None
            state, at = row
            conn.execute("UPDATE stored_events SET state = %s WHERE originator_id = %s", (b"?" * 20, stream))
        try:
            ready = until(system, lambda ready: parked_for(ready, "ordering") > 0)  # others may be first
            assert (ready["status"], parked_for(ready, "ordering")) == ("degraded", 1)
            ended, shown = counterfoil("doctor", "--json"), counterfoil("doctor")
            assert (ended.code, shown.code) == (1, 1)
            mine = [fact for fact in ended.json()["parked"] if fact["projection"] == "ordering"]
            assert [(fact["stream"], fact["position"]) for fact in mine] == [(stream, at)]
            assert f"parked: {stream} at {at} for ordering: Unreadable" in shown.out
            assert shown.out.splitlines()[-1] == "status: degraded"
        finally:
            conn.execute("UPDATE stored_events SET state = %s WHERE originator_id = %s", (state, stream))
    until(system, lambda ready: ready["parked"] == 0 and ready["status"] == "ready")
    ended = counterfoil("doctor", "--json")
    assert (ended.code, ended.json()["parked"]) == (0, [])
    assert counterfoil("verify", "--tenant", tenant).code == 0


def parked_for(ready: dict[str, Any], projection: str) -> int:
    return sum(each["parked"] for each in ready["projections"] if each["projection"] == projection)


def until(system: System, true: Callable[[dict[str, Any]], bool], timeout_s: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ready: dict[str, Any] = httpx.get(f"{system.running.api}/ready", timeout=10).json()
        if true(ready):
            return ready
        time.sleep(0.1)
    raise AssertionError(ready)


@needs_system
def test_the_doctor_speaks_of_a_system_that_does_not(
    system: System, here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "READY_S_MAX", 0.5)
    with system.frozen("api"), system.frozen("postgres"):
        ended = here(system.settings.home, "doctor", "--json")
    assert ended.code == 1
    told = ended.json()
    assert told["ready"] == {"status": f"the API does not answer at {system.running.api} (ReadTimeout)"}
    assert told["parked"] is None
    assert set(told["memory_mib"]) == {"supervisor", *system.running.children}


@pytest.mark.parametrize(
    "arguments",
    [
        ("relay", "--ledger", "uk"),
        ("verify", "--ledger", "uk"),
        ("rebuild", "ordering", "--reason", "test", "--ledger", "uk"),
        ("ledger", "move", "uk", "--to", "postgresql://postgres:x@127.0.0.1:1/counterfoil"),
    ],
)
def test_a_ledger_that_nobody_named_is_refused_before_anything_starts(
    here: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COUNTERFOIL_LEDGERS", '{"eu": {"tenants": ["acme"]}}')
    ended = here(tmp_path / "home", *arguments)
    assert ended.code == 1
    assert "no ledger is named 'uk'; there are: 0, eu" in ended.err
    assert not (tmp_path / "home" / "up.log").exists()


def test_the_roles_of_up_are_one_api_and_followers_for_each_ledger(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, workers=2, ledgers={"eu": {"tenants": ["acme"]}})
    assert [role.name for role in cli.roles(settings)] == [
        *("api", "relay", "worker-1", "worker-2", "deadlines"),
        *("relay-eu", "worker-eu-1", "worker-eu-2", "deadlines-eu"),
    ]
