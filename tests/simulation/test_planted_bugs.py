"""Negative controls: each bug made on purpose is caught within a few seeds, by the invariant it breaks."""

from __future__ import annotations

import pytest

from tests.simulation.planted import BUGS
from tests.simulation.run import run

REQUESTS = 200
SEEDS_MAX = 60
"""The first is known to catch it; another change of the code may shift that."""


@pytest.mark.parametrize("name", BUGS)
def test_the_simulation_catches(name: str) -> None:
    bug = BUGS[name]
    caught = (run(seed, REQUESTS, bug) for seed in range(bug.first, bug.first + SEEDS_MAX))
    broken = next((outcome.invariant for outcome in caught if outcome.invariant), "none")
    assert broken.split()[0] in bug.breaks


def test_there_are_at_least_twelve_and_each_says_what_is_wrong() -> None:
    assert len(BUGS) >= 12
    assert all(bug.says for bug in BUGS.values())
