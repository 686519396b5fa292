"""Who is counted how at the HTTP doors, and the headers that say where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from commands.handling import Actor
from infra.limits import Limit, Standing
from infra.runtime import Runtime

READING = {"GET", "HEAD", "OPTIONS"}
NETWORK_BITS = 64
"""Of an IPv6 address: what one customer of a provider is given, with 2^64 addresses in it."""
UNNAMED = "-"
"""In a tenant's place; no tenant is called so."""
QUOTA_HEADERS = {
    "RateLimit-Policy": {
        "description": "What is counted: q requests in w seconds.",
        "schema": {"type": "string"},
        "example": '"commands";q=60000;w=60',
    },
    "RateLimit": {
        "description": "Where you stand: r more requests now; this window ends in t seconds.",
        "schema": {"type": "string"},
        "example": '"commands";r=59999;t=60',
    },
}
"""OpenAPI's `components.headers`: draft-ietf-httpapi-ratelimit-headers. Absent where the limit is off."""
DECLARED = {name: {"$ref": f"#/components/headers/{name}"} for name in QUOTA_HEADERS}


@dataclass(frozen=True, slots=True)
class Counted:
    """One request, counted: what its answer says of that, and how long to wait if it was not let through."""

    headers: dict[str, str]
    wait_s: int | None = None

    def on(self, send: Send) -> Send:
        """The same, with the headers on whatever answer comes."""
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]

        async def saying(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *raw]
            await send(message)

        return saying


class Quotas:
    """An installation's limits; one that is set to 0 counts nothing. Raises BadSetting."""

    def __init__(self, runtime: Runtime) -> None:
        settings = runtime.settings
        self.trusted_proxies = settings.trusted_proxies
        self.commands = runtime.limit("commands", settings.limit_commands)
        self.queries = runtime.limit("queries", settings.limit_queries)
        self.strangers = runtime.limit("strangers", settings.limit_strangers)

    async def count(self, actor: Actor, method: str) -> Counted:
        """A request with a valid token."""
        limit = self.queries if method in READING else self.commands
        return await _counted(limit, f"{actor.tenant}/{actor.name}")

    async def count_stranger(self, scope: Scope, headers: Headers) -> Counted:
        """A request without."""
        return await _counted(self.strangers, address(scope, headers, self.trusted_proxies))


async def _counted(limit: Limit | None, who: str) -> Counted:
    if limit is None:
        return Counted({})
    standing = await limit.take(who)
    headers = {"RateLimit-Policy": limit.policy, "RateLimit": limit.told(standing)}
    return Counted(headers, None if standing.admitted else _at_least_one(standing))


def _at_least_one(refused: Standing) -> int:
    return max(1, refused.wait_s)


def address(scope: Scope, headers: Headers, trusted_proxies: int) -> str:
    """Whom a request without a token is counted for: the peer, or whom the first trusted proxy names.

    Each proxy adds its peer to the end of X-Forwarded-For: what is before the last `trusted_proxies` of them
    is anybody's to write. A header that is shorter, or has no address there, did not come through them all.
    """
    peer = scope.get("client")
    told = ",".join(headers.getlist("x-forwarded-for")).split(",") if trusted_proxies else []
    named = _network(told[-trusted_proxies]) if len(told) >= trusted_proxies > 0 else None
    return named or _network(peer[0] if peer else "") or "unknown"


def _network(text: str) -> str | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or ip_network((found, NETWORK_BITS), strict=False))


def with_quotas(answers: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Declare to OpenAPI that each of a route's answers says where the client stands."""
    return {
        status: {**answer, "headers": {**answer.get("headers", {}), **DECLARED}}
        for status, answer in answers.items()
    }
