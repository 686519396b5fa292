"""A stream as it was at a position: its facts, and the states that rules would have seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from commands.snapshots import State
from domain.capacity import Adjustment, Pool
from domain.catalog import Claim, Offer
from domain.facts import Recorded
from domain.ordering import Paper
from domain.payments import Payment
from infra.runtime import Runtime

STATES: dict[str, tuple[type[State], ...]] = {
    "order-": (Paper,),
    "return-": (Paper,),
    "pool-": (Pool,),
    "payment-": (Payment,),
    "adjustment-": (Adjustment,),
    "offer-": (Offer,),
    "claim-": (Claim,),
}
"""By what a stream's name begins with; a new context appends its own."""


class StreamUnknown(LookupError):
    """No stream of this name has a fact at or before this position, for this tenant."""


@dataclass(frozen=True, slots=True)
class StreamState:
    tenant: str
    stream: str
    at: int | None
    """None: as it is now."""
    facts: tuple[Recorded, ...]
    states: dict[str, State]
    """By the state's name; none where no rule has a state of such streams. Holds past their deadline are
    still among a pool's: they count from the next fact on, or at any `now` a rule compares them with."""

    def as_json(self) -> dict[str, Any]:
        last = self.facts[-1]
        return {
            "tenant": self.tenant,
            "stream": self.stream,
            "at": self.at,
            "version": last.version,
            "position": last.position,
            "facts": [_fact(recorded) for recorded in self.facts],
            "states": {name: _plain(_told(state)) for name, state in self.states.items()},
        }


def _told(state: State) -> dict[str, Any]:
    """Its fields, those apart that are only there to be quick."""
    told = {each.name for each in fields(state) if each.repr}  # type: ignore[arg-type]
    return {name: value for name, value in asdict(state).items() if name in told}  # type: ignore[call-overload]


def _fact(recorded: Recorded) -> dict[str, Any]:
    return {
        "version": recorded.version,
        "position": recorded.position,
        "at": _time(recorded.at),
        "actor": recorded.envelope.actor,
        "key": recorded.envelope.key,
        "name": recorded.event.name,
        "data": recorded.event.model_dump(mode="json"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return _time(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _time(at: datetime) -> str:
    return at.isoformat() if at.tzinfo is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def fold(tenant: str, stream: str, at: int | None, facts: list[Recorded]) -> StreamState:
    """What these facts of one stream come to, up to a position."""
    until = [fact for fact in facts if at is None or fact.position <= at]
    if not until:
        begins = f"; it begins at position {facts[0].position}" if facts else ""
        when = "" if at is None else f" at position {at}"
        raise StreamUnknown(f"{tenant!r} has no stream {stream!r}{when}{begins}")
    kinds = next((kinds for prefix, kinds in STATES.items() if stream.startswith(prefix)), ())
    states = {kind.__name__: kind() for kind in kinds}
    for state in states.values():
        for fact in until:
            state.apply(fact.event)
    return StreamState(tenant, stream, at, tuple(until), states)


async def state(runtime: Runtime, stream: str, *, tenant: str, at: int | None = None) -> StreamState:
    """Read in the app's role, behind the tenant's wall; sealed fields stay sealed.

    Raises StreamUnknown, Unreadable for a fact this program cannot read, LogUnavailable.
    """
    log = runtime.log()
    try:
        facts = await asyncio.to_thread(log.read, tenant, {stream: 0})
    finally:
        log.close()
    return fold(tenant, stream, at, facts)
