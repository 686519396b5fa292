"""What every route is handed: who asks, what happens once only, and how fresh an answer must be."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.edge import API, Came, came
from api.limits import UNNAMED, Counted, Quotas, with_quotas
from api.problems import (
    BodyTooLarge,
    CursorUnreadable,
    InvalidRequest,
    KeyMissing,
    PositionOfAnotherEpoch,
    PositionOfAnotherLedger,
    PositionUnreadable,
    RouteUnknown,
    TenantUnnamed,
    TooManyRequests,
    Unauthorized,
    answer,
    problems,
)
from commands.handling import (
    Actor,
    Answer,
    Ask,
    BadKey,
    Command,
    Handler,
    KeyReused,
    NotPermitted,
    TooManyFacts,
)
from commands.log import Busy
from commands.memory import TooManyStreams
from domain.facts import Recorded
from infra.connection import LedgerMoved, LogUnavailable
from infra.queries import (
    AT_LEAST_S,
    AT_LEAST_S_MAX,
    PositionUnknown,
    ProjectionBehind,
    Queries,
    StoreUnavailable,
    Told,
)
from infra.runtime import Runtime, operator
from infra.tenancy import Ledgers, TenantElsewhere

METRICS = "/metrics/"
DOCUMENTS = ("/docs/", "/swagger/", "/openapi.json/")
BODY_BYTES_MAX = 2 * 1024 * 1024
"""An order of five thousand lines with long titles."""
LIMIT_MAX = 200
LIMIT = 50
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,200}")
POSITION = re.compile(r"([a-z0-9_]{1,40})\.([1-9][0-9]{0,8}):(0|[1-9][0-9]{0,17})")
WAIT = re.compile(r"wait\s*=\s*\"?([0-9]{1,9})\"?", re.IGNORECASE)

T = TypeVar("T")


# ── the first wall ────────────────────────────────────────────────────────────────────────────────


class Wall:
    """Stands before everything under /api/v1, bodies included: the token, a tenant's name, how often.
    Metrics need the token too, and in production the documents: without it there are none.

    A first wall until `identity` exists: whoever has the token is the operator, of every tenant.
    """

    def __init__(self, app: ASGIApp, token: str, quotas: Quotas, *, production: bool) -> None:
        self.app, self.token, self.quotas, self.production = app, token.encode(), quotas, production

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), f"{scope['path']}/"
        inside, hidden = path.startswith(f"{API}/"), self.production and path.startswith(DOCUMENTS)
        if not (inside or hidden or path == METRICS):
            await self.app(scope, receive, send)
        elif not self._known(headers):
            counted = await self.quotas.count_stranger(scope, headers)
            refusal = _over(scope, counted) or answer(scope["path"], RouteUnknown if hidden else Unauthorized)
            await refusal(scope, receive, counted.on(send))
        elif inside:
            await self._inside(scope, receive, send, headers)
        else:
            await self.app(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        named = headers.get("counterfoil-tenant", "")
        tenant = named if TENANT.fullmatch(named) else None
        by = operator(tenant or UNNAMED)
        counted = await self.quotas.count(by, scope["method"])
        refusal = _over(scope, counted)
        if refusal is None and tenant is None:
            refusal = answer(scope["path"], TenantUnnamed)
        if refusal is None and _declared_bytes(headers) > BODY_BYTES_MAX:
            refusal = answer(scope["path"], BodyTooLarge, f"{BODY_BYTES_MAX:,} bytes are the most")
        if refusal is not None:
            await refusal(scope, receive, counted.on(send))
            return
        scope.setdefault("state", {}).update(actor=by, counted=counted)
        await self.app(scope, _limited(receive), counted.on(send))

    def _known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token)


def _over(scope: Scope, counted: Counted) -> JSONResponse | None:
    if counted.wait_s is None:
        return None
    detail = f"the limit is {counted.headers['RateLimit-Policy']}"
    return answer(scope["path"], TooManyRequests, detail, headers={"Retry-After": str(counted.wait_s)})


def _declared_bytes(headers: Headers) -> int:
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _limited(receive: Receive) -> Receive:
    """A body whose length nobody declared is cut off where it becomes too large."""
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_BYTES_MAX:
            raise HTTPException(413)
        return message

    return counting


bearer = HTTPBearer(
    auto_error=False,
    description="The installation's token; the addresses that `counterfoil up` prints carry it.",
)


async def actor(
    request: Request,
    tenant: Annotated[
        str | None,
        Header(alias="Counterfoil-Tenant", description="Whose data; another tenant's does not exist."),
    ] = None,
) -> Actor:
    found: Actor = request.state.actor
    return found


ALLOWED = [Depends(bearer), Depends(actor)]
REFUSED_AT_THE_WALL = (Unauthorized, TooManyRequests, TenantUnnamed, InvalidRequest)


def ledgers_of(request: Request) -> Ledgers:
    ledgers: Ledgers = request.app.state.ledgers
    return ledgers


# ── positions ─────────────────────────────────────────────────────────────────────────────────────


def token(ledger: str, epoch: int, position: int) -> str:
    return f"{ledger}.{epoch}:{position}"


def position_of(text: str, ledger: str, epoch: int) -> int:
    """Read a token strictly: of this ledger, and of its present epoch."""
    matched = POSITION.fullmatch(text)
    if matched is None:
        raise PositionUnreadable(f"{text[:60]!r}")
    if matched[1] != ledger:
        raise PositionOfAnotherLedger(f"this one is {ledger!r}")
    if int(matched[2]) != epoch:
        raise PositionOfAnotherEpoch(f"it is in epoch {epoch} now")
    return int(matched[3])


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asked:
    """One command request."""

    runtime: Runtime
    handler: Handler
    by: Actor
    key: str
    epoch: int
    response: Response
    came: Came

    async def handle(self, command: Command) -> Answer:
        done = await self.handler.handling(
            Ask(command, self.by, self.key, request=self.came.request, trace=self.came.trace)
        )
        self.response.headers["Counterfoil-Position"] = self.token(done.position)
        if done.replayed:
            self.response.headers["Idempotent-Replayed"] = "true"
        return done

    async def paper(self, command: Command, stream: str) -> tuple[Recorded, str]:
        """The paper's own fact, and the position to read at; a 200 if another key recorded it before."""
        done = await self.handle(command)
        if done.facts:
            return done.facts[0], self.token(done.position)
        self.response.status_code = 200
        facts = await asyncio.to_thread(self.handler.log.read, self.by.tenant, {stream: 0})
        return facts[0], self.token(done.position)

    def token(self, position: int) -> str:
        return token(self.runtime.settings.ledger, self.epoch, position)


async def asked(
    request: Request,
    response: Response,
    by: Annotated[Actor, Depends(actor)],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Up to 200 printable characters, yours to choose. The same request under the same key"
            " happens once, whenever it is sent again, and gets the same answer; another request is refused.",
        ),
    ] = None,
) -> Asked:
    if not key:
        raise KeyMissing
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise BadKey(f"{len(key)} characters")
    response.headers["Cache-Control"] = "no-store"
    ledger = await ledgers_of(request).of(by.tenant)
    epoch, known = await ledger.queries.epoch(), came(request.scope)
    return Asked(ledger.runtime, ledger.handler, by, key, epoch, response, known)


AskedOnce = Annotated[Asked, Depends(asked)]

COMMAND_HEADERS = {
    "Counterfoil-Position": {
        "description": "Send it as `Counterfoil-At-Least` with a query to see this command's effect.",
        "schema": {"type": "string"},
        "example": "0.1:8123",
    },
    "Idempotent-Replayed": {
        "description": "`true`: answered from what the key's first request had recorded.",
        "schema": {"type": "string"},
        "example": "true",
    },
}


def commanded(
    example: Any, *refusals: type[Exception], created: bool = True, again: type[BaseModel] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The answers of a command's route. `again`: what a 200 has for a paper that another key recorded."""
    whole = {"headers": COMMAND_HEADERS, "content": {"application/json": {"example": example}}}
    found: dict[int | str, dict[str, Any]] = {201 if created else 200: {"description": "Recorded.", **whole}}
    if again:
        found[200] = {"description": "Recorded before, under another key.", "model": again, **whole}
    return with_quotas(
        found
        | problems(
            *REFUSED_AT_THE_WALL,
            *(KeyMissing, BadKey, KeyReused, NotPermitted, TooManyFacts, TooManyStreams, BodyTooLarge),
            *(Busy, LogUnavailable, StoreUnavailable, LedgerMoved, TenantElsewhere),
            *refusals,
        )
    )


# ── queries ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asking:
    """One query request, with how fresh its answer must be."""

    queries: Queries
    tenant: str
    at_least: int | None
    as_of: int | None
    wait_s: float
    epoch: int
    request: Request

    def token(self, position: int) -> str:
        return token(self.queries.ledger, self.epoch, position)

    def how(self) -> dict[str, Any]:
        """Keyword arguments of `Queries.run`."""
        return {"at_least": self.at_least, "as_of": self.as_of, "wait_s": self.wait_s}

    def answer(
        self, told: Told, body: BaseModel, *, tag: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """With an entity tag, of the content unless given: 304 where the client has it already."""
        content = body.model_dump_json().encode()
        etag = f'"{tag or hashlib.sha256(content).hexdigest()[:32]}"'
        kept = {
            "ETag": etag,
            "Cache-Control": "private, no-cache",
            "Vary": "Authorization, Counterfoil-Tenant",
            "Counterfoil-Complete-Through": token(self.queries.ledger, told.epoch, told.complete_through),
            **(headers or {}),
        }
        if told.parked:
            kept["Counterfoil-Parked"] = str(told.parked)
        known = self.request.headers.get("if-none-match", "")
        if known.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(None, 304, kept)
        return Response(content, 200, kept, "application/json")


async def asking(
    request: Request,
    by: Annotated[Actor, Depends(actor)],
    at_least: Annotated[
        str | None,
        Header(
            alias="Counterfoil-At-Least",
            description="A position: the answer waits until everything up to it is in, or is a 503.",
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        Header(description=f"`wait=SECONDS`: how long to wait for it, {AT_LEAST_S_MAX:.0f} at most."),
    ] = None,
    as_of: Annotated[
        str | None,
        Query(description="A position: what would have been answered when the log ended there."),
    ] = None,
) -> Asking:
    queries = (await ledgers_of(request).of(by.tenant)).queries
    epoch = await queries.epoch()
    positions = [
        None if text is None else position_of(text, queries.ledger, epoch) for text in (at_least, as_of)
    ]
    waits = [WAIT.fullmatch(part.strip()) for part in (prefer or "").split(",")]
    wait_s = next((min(float(found[1]), AT_LEAST_S_MAX) for found in waits if found), AT_LEAST_S)
    return Asking(queries, by.tenant, positions[0], positions[1], wait_s, epoch, request)


Fresh = Annotated[Asking, Depends(asking)]

QUERY_HEADERS = {
    "Counterfoil-Complete-Through": {
        "description": "Everything up to this position is in the answer.",
        "schema": {"type": "string"},
        "example": "0.1:8123",
    },
    "Counterfoil-Parked": {
        "description": "How many facts wait for a repair and are missing in the answer; absent when none.",
        "schema": {"type": "integer"},
        "example": 1,
    },
    "ETag": {
        "description": "For If-None-Match.",
        "schema": {"type": "string"},
        "example": '"9f86d081884c7d659a2feaa0c55ad015"',
    },
}


def answered(example: Any, *refusals: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The answers of a query's route."""
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The answer.",
            "headers": QUERY_HEADERS,
            "content": {"application/json": {"example": example}},
        },
        304: {"description": "The client has it already."},
    }
    return with_quotas(
        found
        | problems(
            *REFUSED_AT_THE_WALL,
            *(PositionUnreadable, PositionOfAnotherLedger, PositionOfAnotherEpoch, PositionUnknown),
            *(ProjectionBehind, StoreUnavailable, LedgerMoved, TenantElsewhere),
            *refusals,
        )
    )


# ── pages of a list ───────────────────────────────────────────────────────────────────────────────


class Page(BaseModel, Generic[T]):
    """A part of a list; `next` is the address of the following one."""

    items: list[T]
    next: str | None = Field(description="None on the last page.")


Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Items on one page.")]
Cursor = Annotated[
    str | None, Query(max_length=400, description="From the page before; opaque, and of this list only.")
]


def after(cursor: str | None, route: str, first: T, read: Callable[[Any], T]) -> T:
    """What a page starts after. Raises CursorUnreadable."""
    if cursor is None:
        return first
    try:
        name, key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if name != route:
            raise CursorUnreadable("of another list")
        return read(key)
    except (binascii.Error, ValueError, TypeError, KeyError):
        raise CursorUnreadable(f"{cursor[:60]!r}") from None


def a_position(key: Any) -> int:
    if type(key) is not int or not 0 <= key < 2**63:
        raise ValueError
    return key


def a_code(key: Any) -> str:
    if type(key) is not str or "\0" in key:
        raise ValueError
    return key


def cursor_of(route: str, key: Any) -> str:
    text = json.dumps([route, key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def paged(
    fresh: Asking,
    told: Told,
    rows: Sequence[Any],
    limit: int,
    route: str,
    *,
    key: Callable[[Any], Any],
    view: Callable[[Any], BaseModel],
) -> Response:
    """Of limit + 1 rows that were asked for, the first `limit`, and where the next page is."""
    onward = None
    if len(rows) > limit:
        rows = rows[:limit]
        query = {**fresh.request.query_params, "cursor": cursor_of(route, key(rows[-1]))}
        onward = f"{fresh.request.url.path}?{urlencode(query)}"
    headers = {"Link": f'<{onward}>; rel="next"'} if onward else {}
    return fresh.answer(told, Page[Any](items=[view(row) for row in rows], next=onward), headers=headers)
