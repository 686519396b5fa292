"""Mishaps, as they happen to the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.plan import ACTIVE_RELAY, Mishap
from tests.simulation.roles import Api

if TYPE_CHECKING:
    from tests.simulation.world import World


def happen(world: World, mishap: Mishap) -> None:
    later = world.loop.call_later
    match mishap.kind:
        case "crash":
            world.roles[mishap.what].process.steps_left = mishap.number
        case "freeze":
            relay = world.watch.holder if mishap.what == ACTIVE_RELAY else None
            process = relay or world.roles.get(mishap.what, world.roles["relay-1"]).process
            process.frozen = True
            world.thawed_at_s = max(world.thawed_at_s, world.loop.now_s + mishap.for_s)
            later(mishap.for_s, process.thaw)
        case "database stops":
            world.server.stop()
            later(mishap.for_s, world.server.start)
        case "broker stops":
            world.broker.up = False
            later(mishap.for_s, setattr, world.broker, "up", True)
        case "broker forgets":
            world.broker.forget()
        case "workers change":
            world.broker.rebalance()
        case "poison":
            world.poisoned.add(mishap.what)
            later(mishap.for_s, world.poisoned.discard, mishap.what)
        case "backup":
            world.backup = world.server.database.backup()
        case "restore" if world.backup is not None:
            _restore(world, world.backup)


def _restore(world: World, backup: dict[str, Any]) -> None:
    """As a runbook would have it: followers stop, broker and ClickHouse are emptied, the API goes on."""
    following = [role for role in world.roles.values() if not isinstance(role, Api)]
    for role in following:
        role.stop()
    world.server.stop()
    world.server.database.restore(backup)
    world.server.start()
    world.broker.forget()
    world.blocks.tables.clear()
    world.watch.forget()
    world.restored += 1
    world.clients.excuse()
    for role in following:
        role.start()
