"""What every request meets first: an id, its trace, a count, safe headers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from domain.facts import REQUEST, TRACE

SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Of every answer that does not say otherwise; pages bring a policy of their own."""
HTTPS_ONLY = "max-age=63072000; includeSubDomains"
"""Two years, as browsers' lists ask for: where a proxy says that it was reached by HTTPS."""
API = "/api/v1"
UNKNOWN = "unknown"
"""The route of what matches none: an address that anybody may make up is neither counted nor logged."""

log = logging.getLogger("counterfoil.requests")


class Came(NamedTuple):
    """How a request came: by its own id, and as part of whose trace."""

    request: str
    trace: str | None


def came(scope: Scope) -> Came:
    """As `Edge` found it."""
    found: Came = scope["state"]["came"]
    return found


def carried(scope: Scope) -> dict[str, str]:
    """What every answer has, unless its route says otherwise."""
    headers = {"X-Request-Id": came(scope).request, **SAFE}
    return headers | {"Strict-Transport-Security": HTTPS_ONLY} if scope["scheme"] == "https" else headers


class Edge:
    """Stands before everything but the framework's own answer to a bug, which asks for these headers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        new_id: Callable[[], str],
        telling: bool = False,
        proxied: bool = False,
    ) -> None:
        self.app, self.metrics, self.new_id, self.telling = app, metrics, new_id, telling
        self.proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        if self.proxied and headers.get("x-forwarded-proto", "").lower() == "https":
            scope["scheme"] = "https"
        known = Came(
            given if REQUEST.fullmatch(given) else self.new_id(), parent if TRACE.fullmatch(parent) else None
        )
        scope.setdefault("state", {})["came"] = known
        began, status = time.perf_counter(), 500

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                for name, value in carried(scope).items():
                    out.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, answering)
        finally:
            spent_s, route = time.perf_counter() - began, _route(scope)
            self.metrics.answered(scope["method"], route, status, spent_s)
            if self.telling:
                log.info("%s", json.dumps(_line(scope, known, route, status, spent_s)))


def _route(scope: Scope) -> str:
    """As the code has it, ids left out: what a request names is nobody's business in a log."""
    found: str = getattr(scope.get("route"), "path", UNKNOWN)
    return f"{API}{found}" if scope["path"].startswith(f"{API}/") and found != UNKNOWN else found


def _line(scope: Scope, known: Came, route: str, status: int, spent_s: float) -> dict[str, Any]:
    """No address, no name, no query: nothing in it is anybody's."""
    line = {
        "request": known.request,
        "method": scope["method"],
        "route": route,
        "status": status,
        "ms": round(spent_s * 1e3, 1),
    }
    return line if known.trace is None else line | {"trace": known.trace}
