"""Audit: facts about looking after the log itself."""

from __future__ import annotations

from domain.facts import Event
from domain.values import Code, Text


class ProjectionRebuilt(Event, name="audit.projection-rebuilt"):
    """A read model was made anew from the log and took the place of the old one."""

    projection: Code
    version: int
    rows: int
    rows_differing: int
    reason: Text

    @property
    def stream(self) -> str:
        return f"projection-{self.projection}"


EVENTS = (ProjectionRebuilt,)
