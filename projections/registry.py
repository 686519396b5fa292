"""Every projection there is; a new context appends its own."""

from __future__ import annotations

from projections import analytics, audit, capacity, catalog, ordering, payments
from projections.rows import Engine, Projection

PROJECTIONS: tuple[Projection, ...] = (
    catalog.PROJECTION,
    capacity.PROJECTION,
    ordering.PROJECTION,
    payments.PROJECTION,
    analytics.PROJECTION,
    analytics.SALES,
    audit.PROJECTION,
)


class UnknownProjection(LookupError):
    """No projection has this name."""


def projections_in(engine: Engine) -> tuple[Projection, ...]:
    """Those that fill at least one table of the engine."""
    return tuple(projection for projection in PROJECTIONS if projection.tables_in(engine))


def projection_named(name: str) -> Projection:
    for projection in PROJECTIONS:
        if projection.name == name:
            return projection
    known = ", ".join(projection.name for projection in PROJECTIONS)
    raise UnknownProjection(f"no projection is named {name!r}; there are {known}")
