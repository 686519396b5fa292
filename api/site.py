"""What is not under /api/v1: health and readiness, the documents, the pages. No page loads from elsewhere."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.staticfiles import StaticFiles

from api.dependencies import ledgers_of
from api.metrics import Metrics
from api.problems import InvalidRequest, RouteUnknown, catalogue, document, problems
from infra.tenancy import Served

PAGES = Path(str(resources.files("api").joinpath("pages")))
SWAGGER = Path(fastapi_offline.__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Swagger UI writes style elements of its own.
DOCS_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace(
        "style-src 'self'", "style-src 'self' 'unsafe-inline'"
    ),
}
READY = {
    "status": "ready",
    "ledger": "0",
    "engines": {"postgres": True, "clickhouse": True, "kafka": True},
    "relay_active": True,
    "epoch": 1,
    "position": 8123,
    "through": 8123,
    "closed": None,
    "parked": 0,
    "projections": [
        {
            "projection": "ordering",
            "engine": "postgres",
            "version": 1,
            "complete_through": 8123,
            "lag": 0,
            "lag_s": 0.0,
            "parked": 0,
        }
    ],
    "further_ledgers": [],
}

router = APIRouter()


@router.get(
    "/health",
    tags=["operations"],
    responses={200: {"content": {"application/json": {"example": {"status": "up"}}}}},
)
async def health() -> dict[str, str]:
    """The process is up; says nothing about the engines."""
    return {"status": "up"}


@router.get(
    "/ready",
    tags=["operations"],
    response_model=dict[str, Any],
    responses={
        200: {"content": {"application/json": {"example": READY}}},
        503: {
            "description": "No log's database answers: neither commands nor queries can be served.",
            "content": {"application/json": {"example": {**READY, "status": "unavailable"}}},
        },
    },
)
async def ready(request: Request) -> JSONResponse:
    """Whether requests can be served, and how far every projection is: of the default ledger, and of each of
    `further_ledgers` where there are any.

    `ready`, or `degraded` when an engine is away, no relay runs, a fact is parked or a ledger moves: what
    does not need it is still answered. 503 only when no log's database answers.
    """
    served = await ledgers_of(request).every()
    first, *further = await asyncio.gather(*(_standing(each) for each in served))
    statuses = {each["status"] for each in (first, *further)}
    status = statuses.pop() if len(statuses) == 1 else "degraded"
    body = {**first, "status": status, "further_ledgers": further}
    return JSONResponse(body, 503 if status == "unavailable" else 200, {"Cache-Control": "no-store"})


async def _standing(served: Served) -> dict[str, Any]:
    """Of one ledger."""
    state = await served.queries.readiness()
    parked = sum(lag.parked for lag in state.lags) + state.reactions_parked
    status = "ready"
    if not all(state.engines.values()) or not state.relay_active or parked or state.closed:
        status = "degraded"
    if not state.engines["postgres"]:
        status = "unavailable"
    return {
        "status": status,
        "ledger": served.runtime.settings.ledger,
        "engines": state.engines,
        "relay_active": state.relay_active,
        "epoch": state.epoch,
        "position": state.position,
        "through": state.through,
        "closed": state.closed,
        "parked": parked,
        "projections": [asdict(lag) for lag in state.lags],
    }


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """For Prometheus, which sends the installation's token."""
    served = await ledgers_of(request).every()
    states = await asyncio.gather(*(each.queries.readiness() for each in served))
    standing = [(each.runtime.settings.ledger, state) for each, state in zip(served, states, strict=True)]
    told: Metrics = request.app.state.metrics
    return Response(
        told.text(standing), headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE_LATEST
    )


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    app: FastAPI = request.app
    return JSONResponse(app.openapi(), headers={"Cache-Control": "no-cache"})


@router.get("/", include_in_schema=False)
async def landing() -> FileResponse:
    return _page("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    return FileResponse(PAGES / "docs.html", headers=DOCS_HEADERS)


@router.get("/retail", include_in_schema=False)
async def retail_page() -> FileResponse:
    return _page("retail.html")


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> FileResponse:
    return _page("mark.svg")


@router.get("/problems", include_in_schema=False)
async def problem_index() -> HTMLResponse:
    rows = "".join(_row(failure) for failure in catalogue().values())
    return _written(
        "Problems",
        "<p>Whatever is refused is answered as <code>application/problem+json</code> (RFC 9457) with one of"
        " these types. Types never change their names.</p>"
        "<table><thead><tr><th scope=col>Type<th scope=col>Status"
        f"<th scope=col>Meaning</thead><tbody>{rows}</tbody></table>",
    )


@router.get(
    "/problems/{name}",
    tags=["operations"],
    response_class=HTMLResponse,
    responses={
        200: {"content": {"text/html": {"example": "<h1>sold-out</h1>"}}},
        **problems(RouteUnknown, InvalidRequest),
    },
)
async def problem_page(name: str) -> HTMLResponse:
    """What a problem type means."""
    failure = catalogue().get(name)
    if failure is None:
        raise RouteUnknown(f"no problem is called {name[:60]!r}")
    told = document(failure)
    words = " ".join(line.strip() for line in (failure.__doc__ or "").strip().splitlines())
    return _written(
        name,
        f"<p class=status>HTTP {told['status']}</p><p>{_marked(words)}</p>"
        '<p><a href="/problems">All problems</a></p>',
    )


def _row(failure: type[Exception]) -> str:
    told = document(failure)
    name = told["type"].rpartition("/")[2]
    link = f'<a href="{told["type"]}"><code>{name}</code></a>'
    return f"<tr><td>{link}<td>{told['status']}<td>{_marked(told['title'])}"


def _marked(words: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))


def _written(heading: str, content: str) -> HTMLResponse:
    frame = (PAGES / "frame.html").read_text()
    return HTMLResponse(
        frame.replace("{heading}", escape(heading)).replace("{content}", content), headers=HEADERS
    )


def _page(name: str) -> FileResponse:
    return FileResponse(PAGES / name, headers=HEADERS)


class Files(StaticFiles):
    """Files with the pages' headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def mount(app: FastAPI) -> None:
    app.mount("/pages", Files(directory=PAGES), name="pages")
    app.mount("/swagger", Files(directory=SWAGGER), name="swagger")
