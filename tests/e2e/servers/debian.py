"""Debian's PostgreSQL, with the roles and passwords that infra/deploy/roles.sh gives it in production."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from infra.engines.postgres import DATABASE, SUPERUSER, EmbeddedPostgres
from infra.engines.server import LOOPBACK
from infra.settings import PREFIX

ROLES_SH = Path(__file__).parents[3] / "infra" / "deploy" / "roles.sh"
OLDEST = 15
ROLES = ("owner", "app", "worker")


def binaries() -> Path | None:
    """Of the oldest PostgreSQL installed that the house's SQL is written for."""
    found = {
        int(bindir.parent.name): bindir
        for bindir in Path("/usr/lib/postgresql").glob("[0-9]*/bin")
        if (bindir / "initdb").exists() and int(bindir.parent.name) >= OLDEST
    }
    return found[min(found)] if found else None


def with_roles(postgres: EmbeddedPostgres, bindir: Path) -> dict[str, str]:
    """Make the roles as compose does; the variables that tell every process its own address."""
    passwords = {role: secrets.token_hex(16) for role in ROLES}
    address = postgres.dsn.rpartition("@")[2]
    subprocess.run(
        ["bash", str(ROLES_SH)],
        check=True,
        capture_output=True,
        env={
            "PATH": f"{bindir}:{os.environ['PATH']}",
            "POSTGRES_USER": SUPERUSER,
            "POSTGRES_DB": DATABASE,
            "PGHOST": LOOPBACK,
            "PGPORT": str(postgres.port),
            "PGPASSWORD": postgres.dsn.partition(f"{SUPERUSER}:")[2].partition("@")[0],
            **{f"{PREFIX}{role.upper()}_PASSWORD": password for role, password in passwords.items()},
        },
    )
    return {f"{PREFIX}POSTGRES_DSN": postgres.dsn} | {
        f"{PREFIX}POSTGRES_{role.upper()}_DSN": f"postgresql://counterfoil_{role}:{password}@{address}"
        for role, password in passwords.items()
    }
