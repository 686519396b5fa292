"""Refusals and faults become RFC 9457 problem documents, in one place, under names that stay."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.edge import carried
from commands.handling import BadKey, KeyReused
from commands.log import Busy
from domain.refusals import Conflict, Forbidden, Invalid, NotFound, Refusal
from infra.connection import LedgerMoved, LogUnavailable
from infra.queries import Lag, PositionUnknown, ProjectionBehind, StoreUnavailable, StreamParked
from infra.tenancy import TenantElsewhere

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
ERRORS_MAX = 50
"""Mistakes named in one answer: a body of thousands of lines may have one on each."""
log = logging.getLogger("counterfoil.api")


class Problem(Exception):
    """What the HTTP edge itself has to say; its docstring is the title."""

    status: ClassVar[int] = 500


class RouteUnknown(Problem):
    """There is nothing at this address."""

    status = 404


class MethodNotAllowed(Problem):
    """This address does not take this method."""

    status = 405


class InvalidRequest(Problem):
    """The request does not have the form this address takes; `errors` says where."""

    status = 422


class BodyUnreadable(Problem):
    """The request's body cannot be read."""

    status = 400


class BodyTooLarge(Problem):
    """The request's body is larger than one request may be."""

    status = 413


class Unauthorized(Problem):
    """A valid `Authorization: Bearer` token is needed."""

    status = 401


class TooManyRequests(Problem):
    """You have asked as often as you may for now; ask again after `Retry-After` seconds."""

    status = 429


class TenantUnnamed(Problem):
    """The header `Counterfoil-Tenant` has to name a tenant: a-z, 0-9, `-` and `_`, at most 63."""

    status = 400


class KeyMissing(Problem):
    """A command needs the header `Idempotency-Key`: whatever is sent again under it happens once."""

    status = 400


class PositionUnreadable(Problem):
    """A position looks like 0.1:8123; take it whole from an answer of this API."""

    status = 400


class PositionOfAnotherLedger(Problem):
    """The position belongs to another ledger; ask that one, or ask without it."""

    status = 400


class PositionOfAnotherEpoch(Problem):
    """The ledger was restored or moved since; forget the position and read again without it."""

    status = 409


class CursorUnreadable(Problem):
    """The cursor is not one of this list; begin again without it."""

    status = 400


class Internal(Problem):
    """Something is wrong on our side; the request may be sent again under the same key."""

    status = 500


STATUS: dict[type[Exception], int] = {
    KeyReused: 422,
    BadKey: 400,
    NotFound: 404,
    Conflict: 409,
    Invalid: 422,
    Forbidden: 403,
    Refusal: 409,
    PositionUnknown: 400,
    Busy: 503,
    LogUnavailable: 503,
    StoreUnavailable: 503,
    ProjectionBehind: 503,
    StreamParked: 503,
    TenantElsewhere: 503,
}
"""The first that fits decides."""
EDGE: tuple[type[Problem], ...] = (
    RouteUnknown,
    MethodNotAllowed,
    InvalidRequest,
    BodyUnreadable,
    BodyTooLarge,
    Unauthorized,
    TooManyRequests,
    TenantUnnamed,
    KeyMissing,
    PositionUnreadable,
    PositionOfAnotherLedger,
    PositionOfAnotherEpoch,
    CursorUnreadable,
    Internal,
)
FAULTS: tuple[type[Exception], ...] = (
    Busy,
    LogUnavailable,
    LedgerMoved,
    StoreUnavailable,
    ProjectionBehind,
    StreamParked,
    TenantElsewhere,
    PositionUnknown,
)
ABSTRACT = {Refusal, NotFound, Conflict, Invalid, Forbidden}
ROOMS = ("domain.", "commands.", "infra.", "api.")


def kind(failure: type[Exception]) -> str:
    """The stable name: SoldOut is sold-out."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", failure.__name__).lower()


def status(failure: type[Exception]) -> int:
    if issubclass(failure, Problem):
        return failure.status
    return next((code for base, code in STATUS.items() if issubclass(failure, base)), 500)


def title(failure: type[Exception]) -> str:
    text = (failure.__doc__ or kind(failure)).strip().splitlines()[0]
    text = text.removeprefix("A fault, not a refusal: ").removeprefix("A fault: ")
    return text[:1].upper() + text[1:]


def document(failure: type[Exception]) -> dict[str, Any]:
    return {"type": f"/problems/{kind(failure)}", "title": title(failure), "status": status(failure)}


def catalogue() -> dict[str, type[Exception]]:
    """Every problem there is, by name."""
    found = [failure for failure in _refusals(Refusal) if failure.__module__.startswith(ROOMS)]
    return {kind(failure): failure for failure in sorted({*EDGE, *FAULTS, *found}, key=kind)}


def _refusals(base: type[Refusal]) -> Iterator[type[Exception]]:
    for refusal in base.__subclasses__():
        if refusal not in ABSTRACT:
            yield refusal
        yield from _refusals(refusal)


# ── OpenAPI ───────────────────────────────────────────────────────────────────────────────────────

SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457. Some types have members of their own beside these.",
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["/problems/sold-out"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string", "examples": ["#/lines/0/quantity"]},
                    "parameter": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def problems(*failures: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """Declare what a route may refuse to OpenAPI, grouped by status."""
    grouped: dict[int | str, dict[str, Any]] = {}
    for failure in sorted(failures, key=kind):
        told = document(failure)
        answer = grouped.setdefault(
            told["status"],
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        answer["content"][MEDIA_TYPE]["examples"][kind(failure)] = {"summary": told["title"], "value": told}
        answer["description"] = f"{answer['description']} {told['title']}".strip()
        if told["status"] in (429, 503):
            answer["headers"] = {
                "Retry-After": {
                    "description": "Seconds.",
                    "schema": {"type": "integer"},
                    "example": RETRY_AFTER_S,
                }
            }
    return grouped


# ── answers ───────────────────────────────────────────────────────────────────────────────────────


def answer(
    path: str,
    failure: type[Exception],
    detail: str | None = None,
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = document(failure)
    if detail:
        body["detail"] = detail
    body["instance"] = quote(path, safe="/~!$&'()*+,;=:@")
    kept = {"Cache-Control": "no-store", **(headers or {})}
    if body["status"] == 503:
        kept.setdefault("Retry-After", str(RETRY_AFTER_S))
    if body["status"] == 401:
        kept.setdefault("WWW-Authenticate", "Bearer")
    return JSONResponse({**body, **(members or {})}, body["status"], kept, MEDIA_TYPE)


def _refused(request: Request, refusal: Exception) -> JSONResponse:
    detail = str(refusal.args[0]) if refusal.args else None
    return answer(request.url.path, type(refusal), detail)


def _faulty(request: Request, fault: Exception) -> JSONResponse:
    """A fault's own words may name hosts and users: they go to the log alone."""
    cause = f": {fault.__cause__}" if fault.__cause__ else ""
    log.warning("%s: %s: %s%s", request.url.path, type(fault).__name__, fault, cause)
    return answer(request.url.path, type(fault))


def _behind(request: Request, behind: Exception) -> JSONResponse:
    assert isinstance(behind, ProjectionBehind)
    members = {"asked": behind.asked, "projections": [lag_of(lag) for lag in behind.lags]}
    detail = f"position {behind.asked} is not there yet; ask again, or raise `Prefer: wait=SECONDS`"
    return answer(request.url.path, ProjectionBehind, detail, members)


def lag_of(lag: Lag) -> dict[str, Any]:
    return {
        "projection": lag.projection,
        "engine": lag.engine,
        "version": lag.version,
        "complete_through": lag.complete_through,
        "lag": lag.lag,
        "lag_s": lag.lag_s,
        "parked": lag.parked,
    }


def _invalid(request: Request, invalid: Exception) -> JSONResponse:
    assert isinstance(invalid, RequestValidationError)
    errors = list(_mistakes(invalid.errors()))
    return answer(request.url.path, InvalidRequest, errors[0]["detail"], {"errors": errors[:ERRORS_MAX]})


def _mistakes(errors: Iterable[Any]) -> Iterator[dict[str, str]]:
    for error in errors:
        source, *parts = error["loc"]
        words = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "json_invalid":
            yield {"pointer": "#", "detail": f"not JSON: {error.get('ctx', {}).get('error', words)}"}
        elif source == "body":
            steps = [str(part).replace("~", "~0").replace("/", "~1") for part in parts]
            yield {"pointer": "#" + "".join(f"/{step}" for step in steps), "detail": words}
        else:
            yield {"parameter": ".".join(map(str, parts)) or str(source), "detail": words}


def _http(request: Request, raised: Exception) -> JSONResponse:
    assert isinstance(raised, HTTPException)
    by_status = {404: RouteUnknown, 405: MethodNotAllowed, 413: BodyTooLarge, 400: BodyUnreadable}
    headers = dict(raised.headers or {})
    if raised.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return answer(request.url.path, by_status.get(raised.status_code, Internal), headers=headers)


def _methods(request: Request) -> set[str]:
    """All that the address takes; starlette names only those of the first route that has it."""
    return {
        method
        for method in ("GET", "POST")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }


def _bug(request: Request, bug: Exception) -> JSONResponse:
    counted = request.scope["state"].get("counted")
    headers = carried(request.scope) | (counted.headers if counted else {})
    return answer(request.url.path, Internal, headers=headers)  # starlette logs it


def install(app: FastAPI) -> None:
    for failure in (Refusal, Problem):
        app.add_exception_handler(failure, _refused)
    for fault in FAULTS:
        app.add_exception_handler(fault, _faulty)
    app.add_exception_handler(PositionUnknown, _refused)
    app.add_exception_handler(ProjectionBehind, _behind)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)
