"""`counterfoil up`: start the engines nobody gave us, migrate once, run the roles, keep all of it alive.

Everything runs below a tether, so that nothing outlives this process, not even when it is killed.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.engines.broker import EmbeddedBroker
from infra.engines.child import Child
from infra.engines.clickhouse import EmbeddedClickHouse
from infra.engines.home import Addresses, Running, environment, held, write
from infra.engines.postgres import SETTINGS, EmbeddedPostgres
from infra.engines.server import Command, EngineFault, Server, free_port, is_free
from infra.engines.tether import tethered
from infra.settings import PREFIX, Settings

API_PORT_PREFERRED = 8765
# The embedded broker has no retention; killed and empty, it is refilled by the relay.
BROKER_RSS_BYTES_MAX = 400 << 20
BROKER_WATCH_S = 1.0
CONNECTIONS = int(SETTINGS["max_connections"])
CONNECTIONS_PER_LEDGER = 30
"""More than the 25 that a busy API, a relay, a worker and a ticker open."""
ROLE_GRACE_S = 5.0  # with the engines' own it stays below the 15 s that a stop may take
STOP_ORDER = ("role", EmbeddedBroker.name, EmbeddedClickHouse.name, EmbeddedPostgres.name)


@dataclass(frozen=True)
class Role:
    """A process of ours. It finds the engines and the API's port in its COUNTERFOIL_* variables."""

    name: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    grace_s: float = ROLE_GRACE_S
    ready: Callable[[Addresses], bool] | None = None


async def supervise(
    settings: Settings,
    roles: list[Role],
    migrate: Callable[[Settings], None],
    on_ready: Callable[[Addresses], None],
    exit_when: asyncio.Event | None = None,
) -> None:
    """Run until SIGINT, SIGTERM or `exit_when`, then stop roles, broker, ClickHouse, Postgres, in this order.

    `migrate` runs in a thread, after the engines answer and before any role starts. `on_ready` is called
    once, when everything answers. Raises EngineFault, with everything stopped, when something cannot be
    started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EngineFault(
            "the supervisor has to run in the main thread; its children would die with any other"
        )
    stopping = exit_when or asyncio.Event()
    with held(settings), _signals_set(stopping):
        house = _House(settings)
        try:
            await _first_of(house.open(roles, migrate, on_ready), stopping)
        finally:
            await house.close()


class _House:
    """The children of one `up`, by kind, and the addresses they have so far."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._logs = settings.home / "logs"
        self._addresses = Addresses(
            postgres_dsn=settings.postgres_dsn, kafka=settings.kafka, clickhouse=settings.clickhouse
        )
        self._children: dict[Child, str] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def open(
        self, roles: list[Role], migrate: Callable[[Settings], None], on_ready: Callable[[Addresses], None]
    ) -> None:
        self._logs.mkdir(exist_ok=True, mode=0o700)
        port = _api_port(self._settings)
        try:
            async with asyncio.TaskGroup() as starting:
                for server in self._missing_engines():
                    starting.create_task(self._start_engine(server))
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None  # the first one is the cause, the others were cancelled
        settings = self._settings.model_copy(update=self._addresses.model_dump(exclude={"api"}))
        await asyncio.to_thread(migrate, settings)
        api = f"http://{self._settings.api_host}:{port}"
        addresses = self._addresses.model_copy(update={"api": api})
        started = [self._start_role(role, port, addresses) for role in roles]
        for child in started:
            await child.first_answer()
        self._addresses = addresses  # told only now: whoever reads `up.json` may call at once
        self._tell()
        on_ready(self._addresses)
        await asyncio.gather(*self._keepers)

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for kind in STOP_ORDER:
            await asyncio.gather(*(child.stop() for child, its in self._children.items() if its == kind))

    def _missing_engines(self) -> Iterator[Server]:
        home = self._settings.home
        if self._addresses.postgres_dsn is None:
            yield EmbeddedPostgres(home / "postgres", settings=_room(self._settings))
        if self._addresses.kafka is None:
            yield EmbeddedBroker(home / "broker")
        if self._addresses.clickhouse is None:
            yield EmbeddedClickHouse(home / "clickhouse")

    async def _start_engine(self, server: Server) -> None:
        await asyncio.to_thread(server.prepare)
        child = Child(
            name=server.name,
            command=server.command(),
            log=self._logs / f"{server.name}.log",
            grace_s=server.grace_s,
            stop_signal=server.stop_signal,
            ready=server.answers,
            changed=self._tell,
        )
        self._keep(child, server.name)
        if isinstance(server, EmbeddedBroker):
            self._keepers.append(asyncio.create_task(_recycle(child)))
        await child.first_answer()
        self._addresses = self._addresses.model_copy(update=server.setting())
        self._tell()

    def _start_role(self, role: Role, port: int, addresses: Addresses) -> Child:
        variables = environment(self._running()) | {f"{PREFIX}API_PORT": str(port)} | role.environment
        asked = role.ready
        child = Child(
            name=role.name,
            command=Command(tethered(role.argv, parent_pid=os.getpid()), os.environ | variables, Path.cwd()),
            log=self._logs / f"{role.name}.log",
            grace_s=role.grace_s,
            ready=(lambda _pid: asked(addresses)) if asked else None,
            changed=self._tell,
        )
        self._keep(child, "role")
        return child

    def _keep(self, child: Child, kind: str) -> None:
        self._children[child] = kind
        self._keepers.append(asyncio.create_task(child.keep()))

    def _running(self) -> Running:
        children = {child.name: child.pid for child in self._children if child.pid}
        return Running(
            home=self._settings.home, pid=os.getpid(), children=children, **self._addresses.model_dump()
        )

    def _tell(self) -> None:
        write(self._running())


def _room(settings: Settings) -> dict[str, str]:
    """Connections for every ledger that lies in the embedded server."""
    guests = sum(not ledger.addresses for ledger in settings.ledgers.values())
    return {"max_connections": str(CONNECTIONS + guests * CONNECTIONS_PER_LEDGER)}


async def _recycle(broker: Child) -> None:
    """Kill a broker that has grown too large; its keeper brings a fresh one on the same port."""
    while True:
        await asyncio.sleep(BROKER_WATCH_S)
        if broker.process and broker.pid and _rss_bytes(broker.pid) > BROKER_RSS_BYTES_MAX:
            broker.process.kill()


async def _first_of(work: Coroutine[None, None, None], stopping: asyncio.Event) -> None:
    """Run `work` until it ends or `stopping` is set; what it raised is raised here."""
    tasks = (asyncio.create_task(work), asyncio.create_task(stopping.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcome, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


@contextlib.contextmanager
def _signals_set(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _api_port(settings: Settings) -> int:
    if not settings.api_port:
        return API_PORT_PREFERRED if is_free(API_PORT_PREFERRED, settings.api_host) else free_port()
    if not is_free(settings.api_port, settings.api_host):
        raise EngineFault(
            f"{PREFIX}API_PORT: port {settings.api_port} on {settings.api_host} is in use; "
            "stop what uses it, choose another one, or leave the variable out for a free one"
        )
    return settings.api_port


def _rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process has gone, and where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
