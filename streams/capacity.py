"""What capacity does about holds: it has their end put on record when their deadline comes."""

from __future__ import annotations

from commands.capacity import ExpireHold
from commands.handling import Command
from domain.capacity import PlacesHeld
from domain.facts import Recorded
from domain.values import Permission
from streams.reactions import Deadline, Reaction


def react(recorded: Recorded) -> list[Command | Deadline]:
    match recorded.event:
        case PlacesHeld() as held:
            return [Deadline(held.expires_at, ExpireHold(pool=held.pool, hold_id=held.hold_id))]
        case _:
            return []


REACTION = Reaction("capacity", (PlacesHeld,), frozenset({Permission.PLACES_HOLD}), react, from_start=True)
