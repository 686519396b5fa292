"""What may be asked of the audit: to put on record what was done to the read models."""

from __future__ import annotations

from collections.abc import Sequence

from commands.handling import Boundary, Command, Moment, Read
from domain.audit import ProjectionRebuilt
from domain.facts import Event
from domain.values import Code, Permission, Text


class Unread:
    """Nothing of the stream matters to the rule; it is read so that its version is pinned."""

    def apply(self, event: Event) -> None:
        """Every fact is welcome."""


class RecordRebuild(Command, permission=Permission.AUDIT):
    """Put a rebuild on record, with its reason."""

    projection: Code
    version: int
    rows: int
    rows_differing: int
    reason: Text

    def read(self, log: Read) -> Boundary:
        return Boundary(projection=log(f"projection-{self.projection}", Unread))

    def decide(self, at: Moment, *, projection: Unread) -> Sequence[Event]:
        return [
            ProjectionRebuilt(
                projection=self.projection,
                version=self.version,
                rows=self.rows,
                rows_differing=self.rows_differing,
                reason=self.reason,
            )
        ]
