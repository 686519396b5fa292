"""Stored facts stay readable: one golden file for every name and version there ever was.

A new fact or version: add its sample, run `python -m tests.domain.test_golden`, commit the file. An
existing file is never written again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from domain.facts import Event
from domain.registry import CONTEXTS, EVENTS, UnknownName, event_named
from domain.values import Money
from tests.domain.samples import SAMPLES

FOLDER = Path(__file__).parents[1] / "golden" / "events"


class Golden(NamedTuple):
    """A fact as some version of the program stored it."""

    name: str
    class_version: int
    stream: str
    data: dict[str, Any]

    @property
    def stored(self) -> bytes:
        return json.dumps(self.data, separators=(",", ":"), ensure_ascii=False).encode()


def read(path: Path) -> Golden:
    return Golden(**json.loads(path.read_text()))


def golden_path(name: str, version: int) -> Path:
    return FOLDER / f"{name}.v{version}.json"


GOLDEN = [read(path) for path in sorted(FOLDER.iterdir())]


def survives(golden: Golden, event_type: type[Event]) -> None:
    """What a stored fact is owed: to be read and, if its version is of today, written as the same bytes."""
    event = event_type.from_stored(golden.stored, golden.class_version)
    assert event.stream == golden.stream
    assert event_type.from_stored(event.stored(), event_type.class_version) == event
    if golden.class_version == event_type.class_version:
        assert event.model_dump_json(exclude_unset=True).encode() == golden.stored


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.name}.v{golden.class_version}")
def test_a_stored_fact_is_read_back_and_written_as_the_same_bytes(golden: Golden) -> None:
    survives(golden, EVENTS[golden.name])


@pytest.mark.parametrize("name", EVENTS)
def test_every_version_of_every_registered_fact_has_a_golden_file(name: str) -> None:
    assert all(golden_path(name, version).exists() for version in range(1, EVENTS[name].class_version + 1))


def test_every_golden_file_is_of_a_registered_fact() -> None:
    assert {golden.name for golden in GOLDEN} == set(EVENTS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_fact_is_stored_today_as_its_golden_file_says(sample: Event) -> None:
    golden = read(golden_path(sample.name, sample.class_version))
    assert sample.stored() == golden.stored
    assert type(sample).from_stored(golden.stored, golden.class_version) == sample


def test_every_fact_has_a_sample_with_every_field_filled() -> None:
    assert {sample.name for sample in SAMPLES} == set(EVENTS)
    assert all(sample.model_fields_set == set(type(sample).model_fields) for sample in SAMPLES)


# ── negative controls: what must not pass ─────────────────────────────────────────────────────────

OLD = Golden("test.ticket-issued", 1, "ticket-7", {"ticket": "7", "price_cents": 1250})


class TicketIssued(Event, name="test.ticket-issued"):
    ticket: str
    price_cents: int

    @property
    def stream(self) -> str:
        return f"ticket-{self.ticket}"


class Shrunk(Event, name="test.ticket-issued"):
    """Lost a field, without a version."""

    ticket: str

    @property
    def stream(self) -> str:
        return f"ticket-{self.ticket}"


class Retyped(TicketIssued, name="test.ticket-issued"):
    """Changed a type, without a version."""

    price_cents: str  # type: ignore[assignment]


class Demanding(TicketIssued, name="test.ticket-issued"):
    """Got a field that yesterday's facts lack, without a default."""

    seat: str


class Reordered(Event, name="test.ticket-issued"):
    """The same fields, written in another order."""

    price_cents: int
    ticket: str

    @property
    def stream(self) -> str:
        return f"ticket-{self.ticket}"


class Extended(TicketIssued, name="test.ticket-issued"):
    """Got an optional field with a default: that is free."""

    seat: str | None = None


class Raised(Event, name="test.ticket-issued", version=3):
    """Changed its shape twice, and says how yesterday's facts are read."""

    ticket: str
    price: Money
    holder: str

    @property
    def stream(self) -> str:
        return f"ticket-{self.ticket}"

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        """v1 kept bare cents; every sale was in euros."""
        state["price"] = {"minor": state.pop("price_cents"), "currency": "EUR"}

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        state["holder"] = "unknown"


def test_the_fact_itself_survives() -> None:
    survives(OLD, TicketIssued)


@pytest.mark.parametrize("broken", [Shrunk, Retyped, Demanding])
def test_a_changed_shape_without_a_version_is_caught(broken: type[Event]) -> None:
    with pytest.raises(ValidationError):
        survives(OLD, broken)


def test_other_bytes_for_the_same_fact_are_caught() -> None:
    with pytest.raises(AssertionError):
        survives(OLD, Reordered)


def test_an_optional_field_with_a_default_is_free() -> None:
    survives(OLD, Extended)


def test_a_raised_version_reads_every_older_one() -> None:
    survives(OLD, Raised)
    survives(
        OLD._replace(class_version=2, data={"ticket": "7", "price": {"minor": 1250, "currency": "EUR"}}),
        Raised,
    )
    read_today = Raised.from_stored(OLD.stored, 1)
    assert read_today == Raised(ticket="7", price=Money(minor=1250, currency="EUR"), holder="unknown")


def test_a_version_without_its_upcaster_is_caught() -> None:
    class Forgetful(Raised, name="test.ticket-issued", version=4):
        pass

    with pytest.raises(AttributeError):
        survives(OLD, Forgetful)


def test_a_fact_from_a_newer_program_is_refused_not_guessed() -> None:
    with pytest.raises(ValueError, match="newer than this program"):
        TicketIssued.from_stored(OLD.stored, 2)


# ── the registry ──────────────────────────────────────────────────────────────────────────────────


def test_a_stored_name_is_its_context_and_words_and_never_a_module_path() -> None:
    for name, event in EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", name)
        assert event.context() in CONTEXTS


def test_an_unknown_name_is_said_and_never_imported() -> None:
    for name in ("os:system", "domain.ordering:OrderPlaced", "capacity.pool-fact", "payments.money-fact", ""):
        with pytest.raises(UnknownName):
            event_named(name)


def write(samples: Sequence[Event]) -> None:
    for sample in samples:
        path = golden_path(sample.name, sample.class_version)
        if not path.exists():
            golden = Golden(sample.name, sample.class_version, sample.stream, json.loads(sample.stored()))
            path.write_text(json.dumps(golden._asdict(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(SAMPLES)
