"""What was rebuilt, when and why."""

from __future__ import annotations

from datetime import datetime

from domain.audit import ProjectionRebuilt
from domain.facts import Recorded
from domain.values import Value
from projections.rows import Projection, Put, Query, RowOp, Table


class RebuildRow(Value):
    projection: str
    version: int
    rows: int
    rows_differing: int
    reason: str
    actor: str
    recorded_at: datetime
    position: int


REBUILDS = Table("rebuilds", RebuildRow, key=("position",))

REBUILD_LIST = Query(
    RebuildRow,
    (("audit", REBUILDS),),
    "SELECT * FROM {rebuilds} WHERE position > %(after)s AND position <= %(through)s"
    " ORDER BY position LIMIT %(limit)s",
)


def project(recorded: Recorded) -> list[RowOp]:
    match recorded.event:
        case ProjectionRebuilt() as rebuilt:
            row = RebuildRow(
                projection=rebuilt.projection,
                version=rebuilt.version,
                rows=rebuilt.rows,
                rows_differing=rebuilt.rows_differing,
                reason=rebuilt.reason,
                actor=recorded.envelope.actor,
                recorded_at=recorded.at,
                position=recorded.position,
            )
            return [Put(REBUILDS, row)]
        case _:
            return []


PROJECTION = Projection("audit", (ProjectionRebuilt,), (REBUILDS,), project)
