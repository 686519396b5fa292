"""The Postgres of every contender: ours from a wheel, once as it is and once with a slower disk."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from infra.engines.postgres import EmbeddedPostgres
from infra.engines.server import Command

SHIM = Path(__file__).with_name("slowsync.c")
SLOWER_US = 1_000
SETTINGS = {
    "max_connections": "700",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "fsync": "on",
    "synchronous_commit": "on",
}
"""Beside the house's own: room for every contender's connections, and no checkpoint in every slice."""


class NoShim(Exception):
    """Why there is no emulated disk here."""


def compiled(folder: Path) -> Path:
    """The shim as a library; the server's account has to be able to enter `folder`. Raises NoShim."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoShim("no C compiler (cc) on PATH")
    library = folder / "slowsync.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SHIM), "-ldl"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoShim(f"cc: {done.stderr[-300:]}")
    library.chmod(0o755)
    folder.chmod(0o711)
    return library


class BenchPostgres(EmbeddedPostgres):
    """With `shim`, every fsync takes SLOWER_US longer."""

    def __init__(self, directory: Path, shim: Path | None = None) -> None:
        super().__init__(directory, settings=SETTINGS)
        self.shim = shim

    def command(self) -> Command:
        command = super().command()
        if self.shim is None:
            return command
        slower = {"LD_PRELOAD": str(self.shim), "SLOWSYNC_US": str(SLOWER_US)}
        return replace(command, environment=command.environment | slower)

    def database(self, name: str) -> str:
        """A fresh one; its URL."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))

    def drop(self, name: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def version(self) -> str:
        with psycopg.connect(self.dsn) as conn:
            return conn.info.parameter_status("server_version") or "unknown"
