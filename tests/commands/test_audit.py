"""What was done to the read models is itself on record, as often as it was done."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from commands.audit import RecordRebuild
from domain.audit import ProjectionRebuilt
from tests.spec import given

REBUILD = RecordRebuild(projection="orders", version=2, rows=12, rows_differing=1, reason="a wrong sum")
REBUILT = ProjectionRebuilt(projection="orders", version=2, rows=12, rows_differing=1, reason="a wrong sum")


def test_a_rebuild_is_on_record_with_its_reason() -> None:
    given().when(REBUILD).then(REBUILT)


def test_a_second_rebuild_of_the_same_projection_is_another_fact() -> None:
    facts = given(REBUILT).when(REBUILD).then(REBUILT).facts()
    assert [(fact.stream, fact.version) for fact in facts] == [
        ("projection-orders", 1),
        ("projection-orders", 2),
    ]


@pytest.mark.parametrize("projection", ["", "a/b", "x" * 65])
def test_a_projections_name_makes_a_streams_name(projection: str) -> None:
    with pytest.raises(ValidationError):
        RecordRebuild(projection=projection, version=1, rows=0, rows_differing=0, reason="")
