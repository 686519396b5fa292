"""The parts of `make bench-log`, without peers and in seconds: its sums, its limits, its keys."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
import pytest

from domain.capacity import Pool
from infra.engines.postgres import EmbeddedPostgres
from infra.engines.server import tail
from infra.migrate import admin_dsn
from infra.settings import Settings
from tests.benchmarks.log import contenders, ours, races, report
from tests.benchmarks.log.child import Child, Failed
from tests.benchmarks.log.lab import Lab
from tests.benchmarks.log.on_ours import Ours
from tests.benchmarks.log.peers import Peers
from tests.benchmarks.log.plan import planned
from tests.benchmarks.log.preload import life
from tests.benchmarks.log.rotation import EVENTS_AT_FIRST, EVENTS_AT_LAST, Rotation
from tests.benchmarks.log.server import NoShim, compiled
from tests.benchmarks.log.summary import middle, ratio, voided
from tests.benchmarks.log.wire import closed, percentiles

SLOW = (
    "import time; from tests.benchmarks.log.wire import serve; serve({'nap': lambda s: time.sleep(s) or {}})"
)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    assert ratio([10, 40, 90], [5, 10, 30]) == 3
    assert ratio([10, None, 90], [5, 10, 30]) == 2.5
    assert ratio([None], [5]) is None
    assert ratio([1.0, 1.0, 9.0], [1.0, 1.0, 1.0], void=[2]) == 1


def test_a_round_whose_floor_moved_does_not_count() -> None:
    assert voided([100, 101, 130, 99, 70]) == [2, 4]
    assert voided([100, 200]) == []
    assert middle([1, 2, 100], void=[2]) == 1.5


def test_latencies_are_told_in_milliseconds_by_rank() -> None:
    assert percentiles([each / 1_000 for each in range(1, 101)])["p99_ms"] == 100
    assert percentiles([0.002])["p50_ms"] == 2


def test_a_closed_loop_counts_what_ended_in_time_and_raises_what_went_wrong() -> None:
    calls: list[int] = []
    answer = closed([lambda: calls.append(1)] * 2, 0.05)
    assert 0 < answer["commands"] <= len(calls)
    assert answer["per_s"] == answer["commands"] / 0.05

    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        closed([broken, lambda: None], 0.05)


def test_the_streams_of_a_rotation_stay_about_ten_events_long() -> None:
    lengths: dict[int, int] = {}

    def opened() -> int:
        lengths[len(lengths)] = EVENTS_AT_FIRST
        return len(lengths) - 1

    turn = Rotation(opened, 5)
    loaded = []
    for _ in range(1_000):
        stream = turn.next()
        loaded.append(lengths[stream])
        lengths[stream] += 1
    assert max(lengths.values()) == EVENTS_AT_LAST
    assert min(loaded) >= EVENTS_AT_FIRST
    assert 9 <= sum(loaded) / len(loaded) <= 11


def test_a_contender_that_hangs_is_ended_and_named(tmp_path: Path) -> None:
    child = Child("sleeper", [sys.executable, "-c", SLOW], tmp_path / "out")
    assert child.ask("nap", 5, s=0.01) == {}
    with pytest.raises(Failed, match="sleeper took longer than 0 s"):
        child.ask("nap", 0.1, s=60)
    child.close()
    assert not child.alive


def test_a_contender_that_cannot_says_why(tmp_path: Path) -> None:
    child = Child("sleeper", [sys.executable, "-c", SLOW], tmp_path / "out")
    with pytest.raises(Failed, match="TypeError"):
        child.ask("nap", 5, s="long")
    assert "Traceback" in tail(tmp_path / "out")
    child.close()
    with pytest.raises(Failed, match="has ended"):
        Child("nobody", [sys.executable, "-c", "raise SystemExit('not today')"], tmp_path / "nobody")


def test_every_promised_key_is_there_when_nothing_was_measured(tmp_path: Path) -> None:
    lab = Lab(tmp_path, Peers(tmp_path, {"emmett": "no npm on PATH"}))
    lab.left_out |= lab.peers.absent

    def late() -> None:
        raise Failed("raw took longer than 33 s")

    with lab.noting("append, real fsync", "raw"):
        late()
    whole = report.report({}, lab, planned(quick=True, rounds=None), "a machine", 1.0)
    assert {name: whole[name] for name in report.KEYS} == dict.fromkeys(report.KEYS)
    assert whole["left_out"] == {"emmett": "no npm on PATH"}
    assert whole["failures"][0]["contender"] == "raw"
    assert [grid.title for grid in report.grids(whole)] == ["a machine", "not measured"]
    assert "| append, real fsync: raw | raw took longer than 33 s |" in report.page(whole)


def test_a_run_of_a_few_scenarios_keeps_what_others_have_found(tmp_path: Path) -> None:
    lab, plan = Lab(tmp_path, Peers(tmp_path, {})), planned(quick=False, rounds=None)
    rates = {"rounds": {"100": [5.0, 7.0], "900": [6.0, None]}}
    first = report.report({"relay_per_s": 9.0, "seconds": {"relay": 1}}, lab, plan, "a machine, 1:00", 1.0)
    found = {"growth_rate_large_to_small": 0.5, "growth": rates, "seconds": {"growth": 1}}
    second = report.report(found, lab, plan, "a machine, 2:00", 1.0)
    whole = report.merged(first, second)
    assert (whole["relay_per_s"], whole["growth_rate_large_to_small"]) == (9.0, 0.5)
    assert (whole["met"]["relay_per_s"], whole["met"]["growth_rate_large_to_small"]) == (False, False)
    page = report.page(whole)
    assert "### a machine, 1:00" in page
    assert "| 900 | 6, - |" in page
    assert page.endswith("Measured at another time:\n\n- growth: a machine, 2:00\n")


def test_figures_are_made_of_the_contenders_they_name() -> None:
    answers: races.Answers = {
        name: [{"per_s": float(per_s), "client_cpu_us": 1.0, "server_cpu_us": None}] * 3
        for name, per_s in ((contenders.RAW, 100), (contenders.STOCK, 10), (ours.AT_8, 60))
    }
    cell = races.summed(answers, contenders.RAW, voiding=True)
    assert races.between(cell, ours.AT_8, contenders.STOCK) == 6
    assert races.between(cell, ours.AT_8, contenders.RAW) == 0.6
    assert races.between(cell, ours.AT_8, contenders.EMMETT) is None
    assert {ours.AT_8, ours.AT_64, ours.DECIDES} <= {each.name for each in contenders.CONTENDERS}
    assert report.met("append_vs_stock_8", 6) is True
    assert report.met("skipped", 1) is False


def test_the_slower_disk_compiles(tmp_path: Path) -> None:
    try:
        assert compiled(tmp_path).stat().st_size > 0
    except NoShim as why:
        pytest.skip(str(why))


def test_ours_appends_decides_sells_and_is_followed(
    postgres: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> None:
    made = Ours(admin_dsn(settings), str(settings.home))
    assert made.preload(200)["position"] == 200
    assert made.relay(200)["published"] == 200
    assert made.fold(200)["facts"] == 200
    assert made.head()["bytes"] > 0
    for append in (made.library, made.threads, made.asyncio):
        assert append(concurrent=2, seconds=0.05)["commands"] >= 0
    for front in ("threads", "asyncio"):
        assert made.decide(concurrent=2, seconds=0.05, front=front, cold=True)["commands"] >= 0
    made.open_pool("hot")
    accepted = made.hot("hot", concurrent=4, seconds=0.05, server=postgres.pid)["accepted"]
    assert made.stream("hot") == {"facts": accepted + 1, "version": accepted + 1}
    assert made.paced(per_s=100, seconds=0.1)["commands"] == 10
    with psycopg.connect(admin_dsn(settings)) as conn:
        query = next(each.committed for each in contenders.CONTENDERS if each.name == ours.LIBRARY)
        positions = sorted(row[0] for row in conn.execute(query.encode()))
    assert positions == list(range(1, len(positions) + 1))


def test_what_is_preloaded_is_what_the_log_stores() -> None:
    pool = Pool()
    for fact in life("p"):
        pool.apply(fact)
    assert (pool.open, pool.used, pool.holds) == (True, 6 + 3 - 1 + 1, {})
