"""Every reaction there is, and every command a deadline may issue; a new context appends its own."""

from __future__ import annotations

from commands.capacity import ExpireHold
from commands.handling import Command
from streams import capacity, payments
from streams.reactions import Reaction

REACTIONS: tuple[Reaction, ...] = (payments.REACTION, capacity.REACTION)
DUE_COMMANDS: dict[str, type[Command]] = {command.__name__: command for command in (ExpireHold,)}
