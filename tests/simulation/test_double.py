"""The simulated database is held to what Postgres does: by the log's contract, and verdict by verdict."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import psycopg
import pytest

from infra import eventstore, turns
from infra.connection import Connection, Statement
from infra.groupcommit import APPEND, Asked, Batch, Ticket
from tests.infra.test_log_contract import (  # noqa: F401  collected here, and run on this module's ledger
    test_a_claim_is_the_same_for_the_same_value_only,
    test_a_conflict_answers_with_the_newer_facts_of_the_streams_concerned_and_no_others,
    test_a_key_that_was_not_used_is_not_spent,
    test_a_spent_key_says_what_it_was_used_for_whatever_is_sent_with_it,
    test_a_stream_at_any_other_version_than_was_read_is_a_conflict,
    test_a_streams_name_is_taken_as_it_is,
    test_a_turn_is_given_back_when_it_fails,
    test_an_append_is_all_or_nothing,
    test_an_append_without_facts_takes_no_position_and_moves_no_time,
    test_facts_are_recorded_with_their_place_their_time_and_who_asked,
    test_positions_are_gap_free_in_commit_order_and_a_tailing_reader_skips_nothing,
    test_reading_gives_each_streams_facts_past_a_version_in_order,
    test_reading_sees_only_ones_own_tenant,
    test_recorded_time_never_decreases,
    test_the_same_stream_of_another_tenant_is_another_stream,
    test_two_writers_of_one_stream_take_turns,
    test_versions_are_contiguous_in_a_stream_and_positions_in_the_ledger,
    test_what_was_only_read_is_pinned_as_well,
    test_writing_goes_on_within_a_turn,
)
from tests.ledgers import InPostgres, Log
from tests.simulation import sql
from tests.simulation.connections import prepared
from tests.simulation.database import Database, Session
from tests.simulation.direct import InSimulated

BATCHES = 150


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[InSimulated]:
    made = InSimulated()
    monkeypatch.setattr(eventstore, "Connection", made.connecting())
    monkeypatch.setattr(turns, "Connection", made.connecting())
    monkeypatch.setattr(Statement, "rows", prepared)
    yield made
    made.close()


@pytest.fixture
def log(ledger: InSimulated) -> Log:
    return ledger.open()


# ── the append, verdict by verdict ────────────────────────────────────────────────────────────────────────


def invented(random: Random, versions: dict[str, int], number: int) -> Asked:
    """A command on a few of few streams, at versions that are mostly right, under keys that come again."""
    tenant = random.choice(("acme", "zeta"))
    streams = random.sample([f"{tenant}/pool-{name}" for name in "abcd"], random.randint(0, 3))
    wrong = random.random() < 0.25
    reads = {
        stream: max(0, versions.get(stream, 0) + (random.randint(-2, 2) if wrong else 0))
        for stream in streams
    }
    spends = random.random() < 0.85
    written = random.choices(streams, k=random.randint(0, 4)) if streams and spends else []
    for stream in written:
        versions[stream] = versions.get(stream, 0) + 1
    key = random.randint(0, number) if random.random() < 0.1 else number
    return Asked(
        tenant,
        random.choice(("ana", "ben")),
        f"k{key}",
        random.randbytes(4),
        "Ask",
        random.randint(-5, 5) * 1_000_000 + number,
        spends,
        reads,
        [(stream, random.choice(("a.b", "c.d")), random.randbytes(5)) for stream in written],
        (),
        Ticket(),
    )


def batched(random: Random, versions: dict[str, int], number: int) -> Batch:
    """As the queue would: of what agrees, in order."""
    batch = Batch()
    for nth in range(random.randint(1, 6)):
        batch.take(invented(random, versions, number * 10 + nth))
    return batch


def plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [
        tuple(
            [tuple(map(_plain, fact)) for fact in value] if isinstance(value, list) else _plain(value)
            for value in row
        )
        for row in rows
    ]


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def stored_in(conn: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    queries = {
        "facts": "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
        " ORDER BY 1",
        "commands": "SELECT tenant, actor, key, digest, command, first_position, facts FROM commands"
        " ORDER BY 1, 2, 3",
        "head": "SELECT position, at_us, epoch FROM head",
    }
    return {
        name: plain(conn.execute(query.encode(), binary=True).fetchall()) for name, query in queries.items()
    }


def simulated(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {
        "facts": [(*key, *row) for key, row in sorted(database.tables["stored_events"].items())],
        "commands": [(*key, *row) for key, row in sorted(database.tables["commands"].items())],
        "head": list(database.tables["head"].values()),
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_same_batches_get_the_same_verdicts_from_postgres(stored: InPostgres, seed: int) -> None:
    random, versions = Random(seed), dict[str, int]()
    connection = Connection(stored.settings.role_dsn("app"), stored.schema)
    session = Session(Database())
    outcomes = set()
    for number in range(BATCHES):
        batch = batched(random, versions, number)
        arguments = batch.arguments(random.choice((1, 1, 1, 1, 2)), stamped=True)
        theirs = plain(
            connection.retrying(lambda conn: APPEND.rows(conn, arguments))  # noqa: B023
        )
        given = [sql.decoded(oid, each) for oid, each in zip(APPEND.oids, arguments, strict=True)]
        ours = plain(sql.execute(session, APPEND.sql.decode(), given).rows)
        session.commit()
        assert ours == theirs, f"batch {number}: {batch.asked}"
        outcomes |= {row[0] for row in theirs}
        if random.random() < 0.2:  # else one wrong guess makes all that follow wrong
            versions = {stream: session.version_of(stream) or 0 for stream in session.database.streams}
    with stored.admin() as conn:
        assert simulated(session.database) == stored_in(conn)
    connection.close()
    assert outcomes == {"all", "restored", "appended", "spent", "stale", "undone"}
