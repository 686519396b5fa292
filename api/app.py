"""The HTTP doors: commands and queries as two apps, or both behind one address with one OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from api import analytics, audit, capacity, catalog, ordering, payments, problems, site
from api.dependencies import Wall
from api.edge import API, Edge
from api.limits import QUOTA_HEADERS, Quotas
from api.metrics import Metrics
from infra.runtime import Runtime, new_id
from infra.settings import Settings
from infra.tenancy import Ledgers

VERSION = "0.1.0"
COMMANDS = (catalog.commands, capacity.commands, ordering.commands, payments.commands)
QUERIES = (
    catalog.queries,
    capacity.queries,
    ordering.queries,
    payments.queries,
    analytics.queries,
    audit.queries,
)
REQUIRED_HEADERS = {
    "Idempotency-Key": (r"^[ -~]{1,200}$", "order-536365"),
    "Counterfoil-Tenant": (r"^[a-z0-9][a-z0-9_-]{0,62}$", "demo"),
}
"""Looked for by hand, so that their absence is a problem with a name; with pattern and example."""
EXAMPLES: dict[str, Any] = {
    "Counterfoil-At-Least": "0.1:8123",
    "prefer": "wait=10",
    "as_of": "0.1:8123",
    "limit": 50,
    "cursor": "WyJvcmRlcnMiLDgxMjNd",
    "units": ["84077"],
    "currency": "GBP",
    "engine": "clickhouse",
    "by": "month",
}
SENT = ["Authorization", "Content-Type", "Counterfoil-At-Least", "Counterfoil-Tenant", "Idempotency-Key"]
SENT += ["If-Match", "If-None-Match", "Prefer", "Traceparent", "X-Request-Id"]
ANSWERED = ["Counterfoil-Complete-Through", "Counterfoil-Parked", "Counterfoil-Position", "ETag"]
ANSWERED += ["Idempotent-Replayed", "Link", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"]
"""Headers that a page of another origin may send, and may read."""
PREFLIGHT_S = 600
DESCRIPTION = """
Commands are POSTs: each needs an `Idempotency-Key` and answers with a `Counterfoil-Position`. Queries are
GETs: sent with that position as `Counterfoil-At-Least`, the answer includes what the command did, or is a
503 that says how far things are. What is refused is an RFC 9457 problem; [all of them](/problems). Requests
are counted: `RateLimit` says how many more there may be, and what is over is a 429 with `Retry-After`.

Everything needs the installation's token and names a tenant. That is a first wall until the `identity`
context brings people and roles: whoever has the token is the operator of every tenant.
"""


def create(settings: Settings | None = None) -> FastAPI:
    """Everything behind one address: `uvicorn --factory api.app:create`."""
    return _app(Runtime(settings or Settings()), (*COMMANDS, *QUERIES), "Counterfoil")


def create_commands(settings: Settings | None = None) -> FastAPI:
    """What changes something, to be served apart."""
    return _app(Runtime(settings or Settings()), COMMANDS, "Counterfoil commands")


def create_queries(settings: Settings | None = None) -> FastAPI:
    """What tells something, to be served apart."""
    return _app(Runtime(settings or Settings()), QUERIES, "Counterfoil queries")


def _app(runtime: Runtime, routers: Sequence[APIRouter], title: str) -> FastAPI:
    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with runtime.counting(), Ledgers(runtime) as app.state.ledgers:
            yield

    app = FastAPI(
        title=title,
        version=VERSION,
        description=DESCRIPTION,
        lifespan=running,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_name,
    )
    app.state.runtime = runtime
    for router in routers:
        app.include_router(router, prefix=API)
    app.include_router(site.router)
    site.mount(app)
    problems.install(app)
    settings = runtime.settings
    app.state.metrics = Metrics()
    # The last one stands first.
    app.add_middleware(
        Wall, token=settings.api_token(), quotas=Quotas(runtime), production=settings.production
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=SENT,
            expose_headers=ANSWERED,
            max_age=PREFLIGHT_S,
        )
    app.add_middleware(
        Edge,
        metrics=app.state.metrics,
        new_id=new_id,
        telling=settings.log_requests,
        proxied=settings.trusted_proxies > 0,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _name(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["schemas"]["Problem"] = problems.SCHEMA
        schema["components"]["headers"] = QUOTA_HEADERS
        for path in schema["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", ()):
                    _finish(parameter)
        app.openapi_schema = schema
    return app.openapi_schema


def _finish(parameter: dict[str, Any]) -> None:
    name = parameter["name"]
    if name in REQUIRED_HEADERS:
        parameter["required"] = True
        pattern, parameter["example"] = REQUIRED_HEADERS[name]
        parameter["schema"] = {"type": "string", "pattern": pattern}
    elif name in EXAMPLES:
        parameter["example"] = EXAMPLES[name]
