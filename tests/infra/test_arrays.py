"""Arrays on their way to Postgres: what arrives is what psycopg's own lists would have brought."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from infra.arrays import Array, Blobs, Bools, Instants, Ints4, Ints8, Locals, Numerics, Texts, Uuids
from infra.engines.postgres import EmbeddedPostgres

FIRST, LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001 - local times
ELEMENTS: dict[type[Array], tuple[str, st.SearchStrategy[Any], Sequence[Any]]] = {
    Texts: (
        "text",
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        ("", "x" * 127, "y" * 128, "“ü” 😀", "NULL", "{}", "z" * 70_000),
    ),
    Blobs: ("bytea", st.binary(), (b"", bytes(range(256)), b"\xff" * 70_000)),
    Ints4: ("int", st.integers(-(2**31), 2**31 - 1), (0, -1, -(2**31), 2**31 - 1)),
    Ints8: ("bigint", st.integers(-(2**63), 2**63 - 1), (0, -1, -(2**63), 2**63 - 1)),
    Numerics: ("numeric", st.integers(), (0, -1, 9_999, 10_000, 20_000, -(10**8), 2**200, -(10**40))),
    Bools: ("boolean", st.booleans(), (True, False)),
    Uuids: ("uuid", st.uuids(), (UUID(int=0), UUID(int=2**128 - 1))),
    Instants: (
        "timestamptz",
        st.datetimes(timezones=st.sampled_from([UTC])),
        (FIRST.replace(tzinfo=UTC), LAST.replace(tzinfo=UTC), datetime(1999, 12, 31, 23, tzinfo=UTC)),
    ),
    Locals: ("timestamp", st.datetimes(), (FIRST, LAST)),
}
TOO_LARGE: list[Array] = [
    *(Ints4([2**31]), Ints4([1, -(2**31) - 1]), Ints8([2**63]), Ints8([None, 2**63])),
    *(Texts(["\ud800", "x"]), Instants([FIRST, LAST]), Numerics([10**140_000])),
]


@pytest.fixture(scope="module")
def conn(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.dsn, autocommit=True, options="-c TimeZone=UTC") as conn:
        yield conn


@pytest.mark.parametrize("kind", ELEMENTS)
def test_what_arrives_is_what_went_in_and_what_psycopg_would_bring(
    conn: psycopg.Connection[Any], kind: type[Array]
) -> None:
    name, element, extremes = ELEMENTS[kind]
    arrays: st.SearchStrategy[list[Any]] = st.lists(element | st.none()) | st.lists(element)

    def arrives(values: list[Any]) -> None:
        row = conn.execute(
            f"SELECT %b, %b IS NOT DISTINCT FROM %b::{name}[], pg_typeof(%b)::text".encode(),
            (kind(values), kind(values), values, kind(values)),
            binary=True,
        ).fetchone()
        assert row is not None
        full = {"int": "integer", "timestamptz": "timestamp with time zone"}
        assert row[2] == full.get(name, "timestamp without time zone" if name == "timestamp" else name) + "[]"
        assert row[1]
        assert list(row[0]) == values

    for values in ([], [None], [None] * 3, [*extremes], [extremes[0]] * 300, [None, *extremes, None]):
        arrives(values)
    given(arrays)(arrives)()


@pytest.mark.parametrize("array", TOO_LARGE, ids=lambda array: type(array).__name__)
def test_what_a_type_cannot_hold_is_refused_before_it_is_sent_or_by_the_database(
    conn: psycopg.Connection[Any], array: Array
) -> None:
    with pytest.raises(psycopg.DataError):
        conn.execute("SELECT %b", (array,))


def test_it_costs_less_than_psycopgs_lists(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: a busy machine is no reason to fail."""
    at = datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    columns: list[tuple[type[Array], list[Any]]] = [
        (Texts, [f"pool-{n % 400}" for n in range(2_000)]),
        (Texts, ["acme"] * 2_000),
        (Blobs, [b"%d" % n * 50 for n in range(2_000)]),
        (Ints8, list(range(2**40, 2**40 + 2_000))),
        (Numerics, [n % 50 for n in range(2_000)]),
        (Bools, [n % 2 == 0 for n in range(2_000)]),
        (Uuids, [UUID(int=n) for n in range(2_000)]),
        (Instants, [at + timedelta(seconds=n) for n in range(2_000)]),
    ]
    for kind, values in columns:
        slow_us = _cost_us(list, values)
        fast_us = _cost_us(kind, values)
        with capsys.disabled():
            print(
                f"\n{kind.__name__}: {slow_us:.0f} us -> {fast_us:.0f} us, {slow_us / fast_us:.1f} x", end=""
            )


def _cost_us(kind: Callable[[list[Any]], Any], values: list[Any]) -> float:
    least_s = 1e9
    for _ in range(20):
        began_s = time.process_time()
        Transformer().dump_sequence([kind(values)], [PyFormat.BINARY])
        least_s = min(least_s, time.process_time() - began_s)
    return least_s * 1e6
