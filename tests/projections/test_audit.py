"""What was rebuilt, when, by whom and why."""

from __future__ import annotations

from domain.audit import ProjectionRebuilt
from projections.audit import REBUILDS
from tests.projections.tables import after
from tests.spec import T0


def test_every_rebuild_is_a_row_of_its_own_with_its_reason() -> None:
    once = ProjectionRebuilt(
        projection="ordering", version=2, rows=12, rows_differing=1, reason="a wrong sum"
    )
    shown = after(once, once.model_copy(update={"version": 3, "rows_differing": 0}))
    assert [
        (row["position"], row["version"], row["reason"], row["actor"]) for row in shown.rows(REBUILDS)
    ] == [
        (1, 2, "a wrong sum", "ana"),
        (2, 3, "a wrong sum", "ana"),
    ]
    assert shown.rows(REBUILDS)[0]["recorded_at"] == T0
