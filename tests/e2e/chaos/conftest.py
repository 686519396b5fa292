"""A shop's file to load, and a chance that can be had again."""

from __future__ import annotations

import csv
import lzma
import random
import secrets
from pathlib import Path

import pytest

YEAR = Path(__file__).parents[2] / "data/retail_online_uci/online_retail_2010-12-01_2011-12-09.csv.xz"
MONTH = "2010-12"


@pytest.fixture(scope="session")
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is loaded meanwhile: December, or the whole year where it is asked for."""
    if request.config.getoption("--year"):
        return YEAR
    path = tmp_path_factory.mktemp("december") / "december.csv"
    with lzma.open(YEAR, "rt", newline="") as year, path.open("w", newline="") as month:
        rows, kept = csv.reader(year), csv.writer(month)
        columns = next(rows)
        kept.writerow(columns)
        date = columns.index("InvoiceDate")
        kept.writerows(row for row in rows if row[date].startswith(MONTH))
    return path


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--seed")
    return secrets.randbelow(2**32) if given is None else int(given)


@pytest.fixture
def chance(seed: int) -> random.Random:
    print(f"\n--seed {seed} makes this choice of faults again")
    return random.Random(seed)
