"""Every fact Counterfoil can store, by its stored name: closed, so a name is never imported."""

from __future__ import annotations

from domain import audit, capacity, catalog, ordering, payments
from domain.facts import Event

CONTEXTS = ("catalog", "capacity", "ordering", "payments", "audit")
"""Each has a topic; a new context is appended here and below."""

EVENTS: dict[str, type[Event]] = {
    event.name: event
    for event in (*catalog.EVENTS, *capacity.EVENTS, *ordering.EVENTS, *payments.EVENTS, *audit.EVENTS)
}


class UnknownName(ValueError):
    """A stored fact bears a name that this program does not know."""


def event_named(name: str) -> type[Event]:
    """The class of a stored name, or UnknownName."""
    try:
        return EVENTS[name]
    except KeyError:
        raise UnknownName(f"no fact is named {name[:80]!r}") from None
