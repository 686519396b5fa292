"""The admin's commands: verify, rebuild, state, doctor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from api.stack import stack
from infra.analytics import AnalyticsUnavailable
from infra.audit.findings import AuditBusy, Verified
from infra.audit.rebuild import SwitchContended, rebuild_all
from infra.audit.state import StreamUnknown
from infra.audit.state import state as state_of
from infra.audit.verify import verify as verify_all
from infra.engines.footprint import pss_bytes, tree
from infra.ledger import DATABASE_FAULTS
from infra.runtime import Runtime
from infra.settings import Settings
from infra.tenancy import strays
from projections.registry import PROJECTIONS, UnknownProjection

out = Console()
err = Console(stderr=True)
EXPECTED = (AnalyticsUnavailable, AuditBusy, StreamUnknown, SwitchContended, UnknownProjection)
PARKED_SHOWN = 50
READY_S_MAX = 10.0
"""The API looks at each engine for 3 s at most."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else there.")]
Ledger = Annotated[str | None, typer.Option(help="Which ledger; the default one if left out.")]


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of work in named steps, on standard error."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, told="")
            progress.update(tasks[what], completed=done, total=total, told=f"{done:,}/{total:,}")

        yield tell


def verify(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's share.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Only this one; all of them if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Check the log, and every read model against it; changes nothing. Exit code 1 where something is wrong.

    Example: counterfoil verify
    """
    settings = Settings()
    if tenant is not None:
        ledger = ledger or settings.ledger_of(tenant)
    names = settings.ledger_names if ledger is None else (settings.of_ledger(ledger).ledger,)
    with stack(settings, err.print) as system:
        found = {name: _verified(system.runtime.of_ledger(name), tenant) for name in names}
    ok = all(each.ok for each in found.values())
    if as_json:
        told = {name: each.as_json() for name, each in found.items()}
        alone = told[names[0]] if len(names) == 1 else {"ok": ok, "ledgers": told}
        print(json.dumps(alone, default=str))  # noqa: T201
    else:
        for name, each in found.items():
            _tell_verified(each, tenant, f"ledger {name}: " if len(names) > 1 else "")
    raise typer.Exit(0 if ok else 1)


def _verified(runtime: Runtime, tenant: str | None) -> Verified:
    with steps() as tell:
        return asyncio.run(verify_all(runtime, tenant=tenant, progress=tell))


def _tell_verified(found: Verified, tenant: str | None, of_ledger: str) -> None:
    for finding in found.findings:
        out.print(f"{finding.what} ({finding.where}): {finding.do}", markup=False, soft_wrap=True)
    for fact in found.parked:
        out.print(f"parked: {fact.projection} {fact.stream} at {fact.position}: {fact.reason}", markup=False)
    verdict = "everything agrees" if found.ok else f"{len(found.findings)} findings"
    nothing = tenant is not None and not sum(found.rows.values())
    of = f" (no row is {tenant}'s: is that its name?)" if nothing else ""
    out.print(
        f"{of_ledger}{verdict}{of}: {found.head:,} positions, {sum(found.rows.values()):,} rows compared,"
        f" {found.seconds:.1f} s",
        highlight=False,
    )


def rebuild(
    reason: Annotated[str, typer.Option(help="Kept in the log with the rebuild.")],
    projections: Annotated[
        list[str] | None, typer.Argument(help="Of `counterfoil doctor`'s list; all if left out.")
    ] = None,
    accept_differences: Annotated[
        bool, typer.Option("--accept-differences", help="Switch although rows differ from those shown.")
    ] = False,
    ledger: Ledger = None,
    as_json: Json = False,
) -> None:
    """Make read models anew from the log, compare them row by row, and switch to them.

    Example: counterfoil rebuild analytics --reason "checking"
    """
    settings = Settings()
    named = settings.of_ledger(ledger or settings.ledger).ledger
    names = projections or [projection.name for projection in PROJECTIONS]
    with stack(settings, err.print) as system, steps() as tell:
        made = asyncio.run(
            rebuild_all(
                system.runtime.of_ledger(named),
                names,
                reason=reason,
                accept_differences=accept_differences,
                progress=tell,
            )
        )
    told: Any = made[0].as_json() if len(names) == 1 else [each.as_json() for each in made]
    if as_json:
        print(json.dumps(told, default=str))  # noqa: T201
    else:
        out.print_json(json.dumps(told, default=str))
    raise typer.Exit(0 if all(each.switched for each in made) else 1)


def state(
    stream: Annotated[str, typer.Argument(help="For instance order-3f0c... or pool-84077.")],
    tenant: Annotated[str, typer.Option(help="Whose stream.")],
    at: Annotated[int | None, typer.Option(help="As it stood at this position; the end if left out.")] = None,
    as_json: Json = False,
) -> None:
    """A stream's facts and its state, now or as it stood at a position.

    Example: counterfoil state pool-84077 --tenant demo --at 5000
    """
    with stack(Settings(), err.print) as system:
        found = asyncio.run(state_of(system.runtime.of_tenant(tenant), stream, tenant=tenant, at=at))
    if as_json:
        print(json.dumps(found.as_json(), default=str))  # noqa: T201
    else:
        out.print_json(json.dumps(found.as_json(), default=str))


def doctor(as_json: Json = False) -> None:
    """How the system is: engines, lag of every projection, what is parked, memory. Exit code 1 unless ready.

    Example: counterfoil doctor
    """
    with stack(Settings(), err.print) as system:
        ready = _ready(system.api)
        parked = asyncio.run(_parked(system.runtime))
        elsewhere = _elsewhere(system.runtime.settings)
        pids = {"supervisor": system.running.pid, **system.running.children}
        memory = {
            name: pss_bytes({pid} if name == "supervisor" else tree(pid)) >> 20 for name, pid in pids.items()
        }
    told = {"ready": ready, "parked": parked, "elsewhere": elsewhere, "memory_mib": memory}
    if as_json:
        print(json.dumps(told))  # noqa: T201
    else:
        _tell(told)
    raise typer.Exit(0 if ready["status"] == "ready" and not elsewhere else 1)


def _tell(told: dict[str, Any]) -> None:
    ready, parked = told["ready"], told["parked"]
    for ledger in (ready, *ready["further_ledgers"]) if "projections" in ready else ():
        if ready["further_ledgers"]:
            out.print(f"ledger {ledger['ledger']}")
        grid = Grid("projection", "engine", "version", "complete through", "behind", "parked")
        for each in ledger["projections"]:
            names = ("projection", "engine", "version", "complete_through", "lag", "parked")
            grid.add_row(*(str(each[name]) for name in names))
        out.print(grid)
        engines = ", ".join(
            f"{name} {'answers' if answers else 'DOES NOT ANSWER'}"
            for name, answers in ledger["engines"].items()
        )
        out.print(
            f"engines: {engines}; log at {ledger['position']}, relayed through {ledger['through']}",
            soft_wrap=True,
        )
        if ledger["closed"]:
            out.print(f"closed: this ledger is {ledger['closed']}; see `counterfoil ledger move --help`")
    memory = ", ".join(f"{name} {mib}" for name, mib in told["memory_mib"].items())
    out.print(f"memory (MiB, PSS): {memory}", soft_wrap=True)
    if parked is None:
        out.print("parked: not known, because Postgres does not answer")
    for fact in parked or ():
        out.print(
            f"parked: {fact['stream']} at {fact['position']} for {fact['projection']}: {fact['reason']}",
            markup=False,
            soft_wrap=True,
        )
    for stray in told["elsewhere"] or ():
        out.print(
            f"{stray['tenant']!r} has facts in ledger {stray['ledger']}, and is assigned to"
            f" {stray['assigned']}: mend COUNTERFOIL_LEDGERS, then `counterfoil migrate`",
            markup=False,
            soft_wrap=True,
        )
    out.print(f"status: {ready['status']}", markup=False, soft_wrap=True)


def _ready(api: str) -> dict[str, Any]:
    """What `/ready` says; a `status` alone where the API is silent, which is what one asks a doctor about."""
    try:
        found: dict[str, Any] = httpx.get(f"{api}/ready", timeout=READY_S_MAX).json()
    except httpx.HTTPError as silent:
        return {"status": f"the API does not answer at {api} ({type(silent).__name__})"}
    return found


async def _parked(runtime: Runtime) -> list[dict[str, Any]] | None:
    """The oldest parked facts of all tenants; None where a Postgres does not answer."""
    found: list[dict[str, Any]] = []
    for name in runtime.settings.ledger_names:
        ledger = runtime.of_ledger(name).ledger()
        try:
            found += [{"ledger": name, **fact} for fact in await ledger.parked(PARKED_SHOWN)]
        except DATABASE_FAULTS:
            return None
        finally:
            await ledger.close()
    return found


def _elsewhere(settings: Settings) -> list[dict[str, str]] | None:
    """Tenants with facts in a ledger that is not theirs; None where a Postgres does not answer."""
    try:
        found = strays(settings)
    except DATABASE_FAULTS:
        return None
    return [
        {"tenant": tenant, "ledger": ledger, "assigned": settings.ledger_of(tenant)}
        for tenant, ledger in found
    ]
