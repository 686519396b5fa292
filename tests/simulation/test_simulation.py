"""The whole system, simulated: every invariant holds for every seed, and a seed is always the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import main
from tests.simulation.plan import Mishap, Plan, Request, plan_of
from tests.simulation.planted import BUGS
from tests.simulation.run import run
from tests.simulation.shrink import shrink
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
REQUESTS = 200
FEW = 40


@pytest.mark.parametrize("seed", range(1, 21))
def test_whatever_goes_wrong_nothing_is_lost_doubled_oversold_or_shown_wrongly(seed: int) -> None:
    outcome = run(seed, REQUESTS)
    assert not outcome.invariant, f"{outcome.invariant}: {outcome.found}"
    assert outcome.facts > REQUESTS / 2


def traced(plan: Plan) -> list[tuple[float, str, str]]:
    world = World(plan)
    world.loop.trace = []
    world.run()
    return world.loop.trace


def test_the_same_seed_is_the_same_run_step_by_step() -> None:
    first = traced(plan_of(7, FEW))
    assert len(first) > 1_000
    assert first == traced(plan_of(7, FEW))
    assert first != traced(plan_of(8, FEW))


def test_nor_does_it_depend_on_how_python_hashes() -> None:
    """Sets and dicts of texts come in another order in another process."""
    script = f"from tests.simulation.run import run; print(run(3, {FEW}).fingerprint)"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) == run(3, FEW).fingerprint


def test_runs_differ_in_what_goes_wrong_and_all_of_it_goes_wrong_somewhere() -> None:
    plans = [plan_of(seed, REQUESTS) for seed in range(1, 101)]
    mishaps = {step.kind for plan in plans for step in plan.steps if isinstance(step, Mishap)}
    assert mishaps == {
        "crash",
        "freeze",
        "database stops",
        "broker stops",
        "broker forgets",
        "workers change",
        "poison",
        "backup",
        "restore",
    }
    for name in plans[0].weather.__slots__:
        assert {getattr(plan.weather, name) > 0 for plan in plans} == {True, False}
    kinds = {type(step.command) for plan in plans for step in plan.steps if isinstance(step, Request)}
    assert len(kinds) == 13
    assert any(step.twins > 1 for plan in plans for step in plan.steps if isinstance(step, Request))


def test_a_failure_is_told_with_its_seed_and_the_steps_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request is enough for money that is a float."""
    least = shrink(1, FEW, "I8 money is exact", planted=BUGS["float-money"])
    assert 1 <= len(least.steps) <= 4
    assert "I8" not in least.found
    assert main(["--seed", "1", "--requests", str(FEW), "--planted", "float-money"]) == 1
    told = capsys.readouterr().out
    assert "seed 1: I8 money is exact" in told
    assert "again: python -m tests.simulation --seed 1" in told
    assert "PlaceOrder" in told or "ReturnGoods" in told or "RecordPayment" in told
