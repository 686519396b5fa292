"""`counterfoil`: start it, feed it, ask it, audit it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
import uvicorn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from api import audits, moves
from api import demo as shown
from api.report import ReportUnavailable, report, wait_for
from api.retail.file import BadFile, Invoice, read_invoices
from api.retail.importer import Summary, import_invoices
from api.stack import Stack, stack
from infra.connection import LogUnavailable
from infra.engines.footprint import Peak
from infra.engines.home import Addresses
from infra.engines.server import EngineFault
from infra.engines.supervisor import Role, supervise
from infra.migrate import MigrationChanged, migrate
from infra.runtime import Runtime, collect_less_garbage, operator
from infra.settings import BadSetting, Settings
from infra.tenancy import BadAssignment, TenantElsewhere, at_home, settle

PYTHON = sys.executable
API_ANSWERS_S = 1.0
DRAIN_S = 10
"""After SIGTERM, for requests that are being answered."""
DRAIN_S_OF_UP = 4
"""The same where a whole system stops at once, and has 15 s for it."""


class Door(StrEnum):
    COMMANDS = "commands"
    QUERIES = "queries"


FACTORIES = {None: "create", Door.COMMANDS: "create_commands", Door.QUERIES: "create_queries"}

app = typer.Typer(
    help="Counterfoil: every sale is a fact in one immutable log; everything else is computed from it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
imports = typer.Typer(help="Feed a file through the commands.", no_args_is_help=True)
reports = typer.Typer(help="Ask for figures, of every store at once.", no_args_is_help=True)
app.add_typer(imports, name="import")
app.add_typer(reports, name="report")
app.add_typer(moves.app, name="ledger")

err = Console(stderr=True)
out = Console()

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else there.")]
Tenant = Annotated[str, typer.Option(help="Whose books: lower-case letters, digits, - and _.")]
Currency = Annotated[str, typer.Option(help="Of the amounts, as ISO 4217 writes it.")]
Until = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Up to and with this day.")]
TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
CURRENCY_PATTERN = r"^[A-Z]{3}$"


class Failed(Exception):
    """Said to the user in one paragraph; the exit code is 1."""


EXPECTED = (
    BadAssignment,
    BadSetting,
    BadFile,
    EngineFault,
    Failed,
    LogUnavailable,
    MigrationChanged,
    ReportUnavailable,
    TenantElsewhere,
    *audits.EXPECTED,
    *moves.EXPECTED,
)
"""What can go wrong with the user's input or machine; everything else is a bug, with its stack."""


def main() -> None:
    """Run the program. Expected failures are a sentence on standard error, not a stack trace."""
    collect_less_garbage()
    try:
        app(standalone_mode=True)
    except EXPECTED as no:
        err.print(f"counterfoil: {no}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


# ── the system ────────────────────────────────────────────────────────────────────────────────────


def prepare(settings: Settings) -> None:
    """Both stores of every ledger as this program wants them."""
    for name in settings.ledger_names:
        ledger = settings.of_ledger(name)
        migrate(ledger)
        Runtime(ledger).clickhouse().define()
    settle(settings)


def roles(settings: Settings) -> list[Role]:
    """One API for all ledgers, and a relay, workers and a ticker for each."""
    return [
        Role("api", [PYTHON, "-m", "api.cli", "api", "--drain", str(DRAIN_S_OF_UP)], ready=_answers),
        *(role for name in settings.ledger_names for role in _followers(settings, name)),
    ]


def _followers(settings: Settings, ledger: str) -> Iterator[Role]:
    of = "" if ledger == settings.ledger else f"-{ledger}"
    yield Role(f"relay{of}", [PYTHON, "-m", "streams.relay", ledger])
    for n in range(1, settings.workers + 1):
        yield Role(f"worker{of}-{n}", [PYTHON, "-m", "streams.app", ledger])
    yield Role(f"deadlines{of}", [PYTHON, "-m", "streams.deadlines", ledger])


def _answers(addresses: Addresses) -> bool:
    try:
        return httpx.get(f"{addresses.api}/health", timeout=API_ANSWERS_S).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def links(api: str, token: str, tenant: str = shown.TENANT) -> dict[str, str]:
    """Where to look; the token stays behind the #, which browsers keep to themselves."""
    return {
        "API": f"{api}/api/v1",
        "docs": f"{api}/docs",
        "charts": f"{api}/retail#token={token}&tenant={tenant}&currency={shown.CURRENCY}",
    }


@app.command()
def up(
    quiet: Annotated[bool, typer.Option(help="Say nothing when it is up.")] = False,
    as_json: Json = False,
) -> None:
    """Start what is not given by COUNTERFOIL_* addresses, and keep all of it alive until Ctrl-C.

    Example: counterfoil up
    """
    settings = Settings()

    def ready(addresses: Addresses) -> None:
        where = links(str(addresses.api), settings.api_token())
        if as_json:
            print(json.dumps(where), flush=True)  # noqa: T201
        elif not quiet:
            _tell_links(where)
            out.print("Ctrl-C stops everything.")

    asyncio.run(supervise(settings, roles(settings), prepare, ready))


def _tell_links(where: dict[str, str]) -> None:
    for name, address in where.items():
        out.print(f"  {name:<7} {address}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def api(
    only: Annotated[Door | None, typer.Option(help="Serve one of the two, and the other elsewhere.")] = None,
    drain: Annotated[int, typer.Option(help="Seconds for requests under way, after SIGTERM.")] = DRAIN_S,
) -> None:
    """Serve commands and queries over HTTP, as this process.

    Example: counterfoil api --only queries
    """
    settings = Settings()
    for needed in (settings.api_token, settings.sealing_key, partial(settings.role_dsn, "app")):
        needed()  # a setting that is missing is a sentence now, and would be a stack of calls later
    if settings.log_requests:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    uvicorn.run(
        f"api.app:{FACTORIES[only]}",
        factory=True,
        host=settings.api_host,
        port=settings.api_port or 8765,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=drain,
        proxy_headers=False,  # whom to believe is COUNTERFOIL_TRUSTED_PROXIES, not who asks from loopback
    )


def _become(module: str, ledger: str | None) -> NoReturn:
    settings = Settings()
    os.execv(PYTHON, [PYTHON, "-m", module, settings.of_ledger(ledger or settings.ledger).ledger])


@app.command()
def relay(ledger: audits.Ledger = None) -> None:
    """Carry facts from the log to the broker, as this process.

    Example: counterfoil relay
    """
    _become("streams.relay", ledger)


@app.command()
def worker(ledger: audits.Ledger = None) -> None:
    """Keep read models and reactions up to date, as this process.

    Example: counterfoil worker
    """
    _become("streams.app", ledger)


@app.command()
def deadlines(ledger: audits.Ledger = None) -> None:
    """Issue commands when they are due, as this process.

    Example: counterfoil deadlines
    """
    _become("streams.deadlines", ledger)


@app.command("migrate")
def migrate_() -> None:
    """Bring Postgres and ClickHouse up to this program, and tell every ledger which tenants it has. Needs
    COUNTERFOIL_POSTGRES_DSN.

    Example: counterfoil migrate
    """
    prepare(Settings())
    err.print("the stores are up to date")


for command in (audits.verify, audits.rebuild, audits.state, audits.doctor):
    app.command()(command)


@app.command()
def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where files have drifted.")
    ] = False,
) -> None:
    """Write docs/events, docs/openapi.json and docs/asyncapi.json from the code.

    Example: counterfoil docs --check
    """
    from api import reference  # builds both HTTP apps, which no other command needs

    told = reference.documents()
    if not check:
        reference.write(told)
    elif drifted := reference.drift(told):
        raise Failed(f"run `counterfoil docs`: these differ from the code: {', '.join(drifted)}")


# ── feeding and asking ────────────────────────────────────────────────────────────────────────────


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task, began, done = progress.add_task(what, total=total, rate=""), time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - began, 1e-6)
            progress.update(task, completed=done, rate=f"{rate:,.0f} {unit}/s")

        yield advance


def _check(tenant: str, currency: str) -> None:
    """Raises Failed for what no tenant or currency is called, before any engine is started for it."""
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise Failed(f"--tenant {tenant!r}: use lower-case letters, digits, - and _, at most 63")
    if not re.fullmatch(CURRENCY_PATTERN, currency):
        raise Failed(f"--currency {currency!r}: use three capital letters, such as GBP")


def _read(file: Path, until: date | None) -> list[Invoice]:
    err.print(f"reading {file.name}", markup=False, highlight=False, soft_wrap=True)
    invoices = read_invoices(file, until=until)
    collect_less_garbage()
    return invoices


def _import(system: Stack, invoices: list[Invoice], tenant: str, currency: str) -> Summary:
    runtime = asyncio.run(at_home(system.runtime, tenant))
    with bar("recording", sum(len(invoice.lines) for invoice in invoices), "lines") as advance:
        return import_invoices(
            runtime.handler(),
            invoices,
            actor=operator(tenant, "import"),
            currency=currency,
            on_progress=advance,
        )


def _catch_up(system: Stack, tenant: str) -> None:
    with bar("read models", 100, "%") as advance:
        reached = 0

        def show(share: float) -> None:
            nonlocal reached
            advance(int(share * 100) - reached)
            reached = int(share * 100)

        wait_for(system.api, system.runtime.of_tenant(tenant), show)


def _tell_import(summary: Summary, file: Path) -> None:
    err.print(
        f"{summary.imported:,} invoices imported, {summary.already_imported:,} already imported,"
        f" {len(summary.failed):,} failed; {summary.lines:,} lines in {summary.seconds:.1f} s"
        f" ({summary.lines_per_s:,.0f} lines/s)",
        soft_wrap=True,
    )
    for failure in summary.failed[:20]:
        err.print(f"{file.name}: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    if len(summary.failed) > 20:
        err.print(f"... and {len(summary.failed) - 20:,} more; --json lists them all")


@imports.command("retail")
def import_retail(
    file: Annotated[Path, typer.Argument(help="Invoice lines as .csv, .csv.gz or .csv.xz.")],
    tenant: Tenant,
    currency: Currency = "GBP",
    until: Until = None,
    wait: Annotated[bool, typer.Option(help="Return when the read models have it all.")] = True,
    as_json: Json = False,
) -> None:
    """Import a shop's invoice lines, as commands; a second run finds what is there already.

    Example: counterfoil import retail lines.csv.gz --tenant shop
    """
    _check(tenant, currency)
    invoices = _read(file, until.date() if until else None)
    with stack(Settings(), err.print) as system:
        summary = _import(system, invoices, tenant, currency)
        if wait:
            _catch_up(system, tenant)
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201
    _tell_import(summary, file)
    if summary.stopped:
        raise Failed(f"the import ended {summary.stopped}")
    if summary.failed:
        raise typer.Exit(1)


@reports.command("retail")
def report_retail(
    tenant: Tenant,
    currency: Currency = "GBP",
    units: Annotated[list[str] | None, typer.Option(help="Codes whose net units to tell.")] = None,
    as_json: Json = False,
) -> None:
    """The figures three times: from the log's fold, and from Postgres and ClickHouse through the API.

    Example: counterfoil report retail --tenant shop --json
    """
    _check(tenant, currency)
    with stack(Settings(), err.print) as system:
        runtime = system.runtime.of_tenant(tenant)
        found = report(system.api, runtime, tenant, currency, units or ["84077"])
    if as_json:
        print(json.dumps(found, ensure_ascii=False))  # noqa: T201
    else:
        grid = Grid("figure", *shown.SOURCES)
        for name in ("lines", "orders", "returns", "net_revenue"):
            grid.add_row(name.replace("_", " "), *(str(found[source][name]) for source in shown.SOURCES))
        for group in ("by_month", "by_country", "top_customers", "net_units"):
            for key in found["log"][group]:
                grid.add_row(f"{group} {key}", *(str(found[s][group].get(key)) for s in shown.SOURCES))
        out.print(grid)
    if not found["log"] == found["postgres"] == found["clickhouse"]:
        raise Failed("the three do not agree; `counterfoil verify` says where")


@app.command()
def demo(
    until: Until = None,
    leave: Annotated[bool, typer.Option("--exit", help="Leave when the table is printed.")] = False,
    as_json: Json = False,
) -> None:
    """Import a real shop's year (UCI Online Retail); show its figures three times, beside the published ones.

    Example: counterfoil demo --until 2011-01-31 --exit
    """
    began = time.monotonic()
    day = until.date() if until else None
    with stack(Settings(), err.print) as system, Peak({system.running.pid, os.getpid()}) as peak:
        importing = time.monotonic()
        summary = _import(system, _read(shown.FILE, day), shown.TENANT, shown.CURRENCY)
        _catch_up(system, shown.TENANT)
        seconds = time.monotonic() - importing
        runtime = system.runtime.of_tenant(shown.TENANT)
        found = report(system.api, runtime, shown.TENANT, shown.CURRENCY, ["84077"])
        peak.look()
        table = list(shown.rows(found, day))
        where = links(system.api, system.runtime.settings.api_token())
        told: dict[str, Any] = {
            "rows": [
                {
                    "figure": row.name,
                    "agrees": row.agrees,
                    "expected": row.expected,
                    "published": row.published,
                }
                | dict(zip(shown.SOURCES, row.values, strict=True))
                for row in table
            ],
            "import": summary.as_json(),
            "end_to_end_s": round(seconds, 2),
            "end_to_end_lines_per_s": round(summary.lines / seconds),
            "whole_s": round(time.monotonic() - began, 2),
            "peak_pss_mib": peak.bytes >> 20,
            "links": where,
        }
        if as_json:
            print(json.dumps(told), flush=True)  # noqa: T201
        else:
            _tell_demo(table, summary, told)
        if not all(row.agrees for row in table) or summary.failed or summary.stopped:
            raise Failed("a figure does not agree")
        if not leave:
            if not as_json:
                out.print("Ctrl-C stops everything.")
            with suppress(KeyboardInterrupt):
                signal.pause()


def _tell_demo(table: list[shown.Row], summary: Summary, told: dict[str, Any]) -> None:
    grid = Grid("figure", "log's fold", "Postgres, API", "ClickHouse, API", "published", "")
    for column in grid.columns[1:5]:
        column.justify = "right"
    for row in table:
        stated = "" if row.expected is None else row.expected if row.published else f"{row.expected} *"
        grid.add_row(row.name, *row.values, stated, "[green]✓" if row.agrees else "[red]✗")
    out.print(grid)
    out.print("* computed from the file; nobody outside states it", highlight=False)
    out.print(
        f"{summary.imported:,} invoices imported, {summary.already_imported:,} already imported;"
        f" {summary.lines:,} lines into both read models in {told['end_to_end_s']:.1f} s"
        f" = {told['end_to_end_lines_per_s']:,} lines/s; peak memory {told['peak_pss_mib']:,} MiB (PSS)",
        highlight=False,
        soft_wrap=True,
    )
    _tell_links(told["links"])


if __name__ == "__main__":
    main()
