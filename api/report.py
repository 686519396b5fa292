"""The retail report: the same figures from the log's fold, from Postgres and from ClickHouse, the latter
two through the API, as anybody else would ask for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx

from api.retail.figures import Figures
from domain.facts import Recorded
from infra.runtime import Runtime
from projections.analytics import PAPERS
from projections.rows import Engine

PAPER_NAMES = frozenset(event.name for event in PAPERS)
WAIT_S_MAX = 600.0
"""For read models to catch up: an import of a year leaves them some seconds behind."""


class ReportUnavailable(Exception):
    """The API did not answer the report."""


async def papers(runtime: Runtime, tenant: str, through: int) -> AsyncIterator[Recorded]:
    """The tenant's papers, in log order."""
    ledger = runtime.ledger()
    try:
        position, mine = 0, f"{tenant}/"
        while position < through:
            facts = await ledger.facts(position, through)
            for fact in facts:
                if fact.name in PAPER_NAMES and fact.originator_id.startswith(mine):
                    yield fact.recorded()
            position = facts[-1].position
    finally:
        await ledger.close()


async def fold(runtime: Runtime, tenant: str, currency: str, codes: Sequence[str]) -> tuple[Figures, str]:
    """The figures of the whole log as it stands, and the token of where it stood."""
    ledger = runtime.ledger()
    try:
        head = await ledger.head()
    finally:
        await ledger.close()
    figures = Figures(currency, tuple(codes))
    async for recorded in papers(runtime, tenant, head.position):
        figures.take(recorded)
    return figures, f"{runtime.settings.ledger}.{head.epoch}:{head.position}"


def headers(runtime: Runtime, tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {runtime.settings.api_token()}", "Counterfoil-Tenant": tenant}


def asked(
    api: str, runtime: Runtime, tenant: str, engine: Engine, currency: str, codes: Sequence[str], token: str
) -> dict[str, Any]:
    """One engine's figures through the API, not older than `token`."""
    deadline = time.monotonic() + WAIT_S_MAX
    ask = headers(runtime, tenant) | {"Counterfoil-At-Least": token, "Prefer": "wait=20"}
    while True:
        answer = httpx.get(
            f"{api}/api/v1/reports/retail",
            params=[("engine", engine.value), ("currency", currency), *(("units", code) for code in codes)],
            headers=ask,
            timeout=60,
        )
        if answer.status_code == httpx.codes.OK:
            found: dict[str, Any] = answer.json()
            return found
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            raise ReportUnavailable(f"{engine.value}: {answer.status_code} {answer.text[:500]}")


def report(api: str, runtime: Runtime, tenant: str, currency: str, codes: Sequence[str]) -> dict[str, Any]:
    """`{"log": ..., "postgres": ..., "clickhouse": ...}`, all of one moment or later."""
    figures, token = asyncio.run(fold(runtime, tenant, currency, codes))
    return {"log": figures.as_json()} | {
        engine.value: asked(api, runtime, tenant, engine, currency, codes, token) for engine in Engine
    }


def wait_for(api: str, runtime: Runtime, on_progress: Callable[[float], None]) -> None:
    """Until both read models of a ledger have all that its log has now; tells the share that they have."""
    head = asyncio.run(_head(runtime))
    deadline = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline:
        ready = httpx.get(f"{api}/ready", timeout=30)
        reached = _reached(ready.json(), runtime) if ready.status_code == httpx.codes.OK else 0
        on_progress(min(1.0, reached / max(head, 1)))
        if reached >= head:
            return
        time.sleep(0.1)
    raise ReportUnavailable(
        f"read models were not complete after {WAIT_S_MAX:.0f} s; see `counterfoil doctor`"
    )


def _reached(ready: dict[str, Any], runtime: Runtime) -> int:
    """The position up to which every projection of the ledger is complete."""
    ledgers = {each["ledger"]: each for each in (ready, *ready["further_ledgers"])}
    mine = ledgers[runtime.settings.ledger]
    through = int(mine["through"])
    return min([through, *(int(each["complete_through"]) for each in mine["projections"])])


async def _head(runtime: Runtime) -> int:
    ledger = runtime.ledger()
    try:
        return (await ledger.head()).position
    finally:
        await ledger.close()
