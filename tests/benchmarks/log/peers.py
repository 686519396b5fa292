"""Peers are installed outside the project, once, into a folder of their own: never dependencies of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL_S_MAX = 240.0
NPM = {"@eventide/message-db": "1.3.1", "@event-driven-io/emmett-postgresql": "0.42.0"}
PYPI = {"protean": "0.18.0", "message-db-py": "0.3.5", "psycopg2-binary": "2.9.13"}
NO_BUILD = "psycopg2 ; python_version < '3'\n"
"""message-db-py asks for psycopg2 to be compiled; the wheel of psycopg2-binary is the same module."""


class Absent(Exception):
    """Why a peer is not here."""


@dataclass(frozen=True)
class Peers:
    """Where each peer lies, or why it does not."""

    folder: Path
    absent: dict[str, str]

    @property
    def message_db(self) -> Path:
        return self.folder / "node" / "node_modules" / "@eventide" / "message-db" / "database"

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def python(self) -> Path:
        return self.folder / "protean" / "bin" / "python"


def installed(folder: Path, say: Callable[[str], None]) -> Peers:
    """Whatever is not in `folder` at its pinned version yet is fetched; what cannot be is named."""
    folder.mkdir(parents=True, exist_ok=True)
    absent: dict[str, str] = {}
    for names, pins, install in (
        (("message-db", "emmett", "protean"), NPM, _npm),
        (("protean",), PYPI, _pypi),
    ):
        mark = folder / f"{install.__name__.strip('_')}.json"
        if mark.exists() and json.loads(mark.read_text()) == pins:
            continue
        say(f"installing {', '.join(pins)} under {folder.name}/")
        try:
            install(folder, pins)
        except Absent as why:
            absent |= dict.fromkeys(names, str(why))
            continue
        mark.write_text(json.dumps(pins))
    if shutil.which("node") is None:
        absent["emmett"] = "no node on PATH"
    return Peers(folder, absent)


def _npm(folder: Path, pins: dict[str, str]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Absent("no npm on PATH")
    prefix = folder / "node"
    shutil.rmtree(prefix, ignore_errors=True)
    prefix.mkdir()
    (prefix / "package.json").write_text('{"private": true}')
    wanted = [f"{name}@{version}" for name, version in pins.items()]
    _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(prefix), *wanted], prefix)


def _pypi(folder: Path, pins: dict[str, str]) -> None:
    """With the project's uv, or with pip where there is none."""
    home = folder / "protean"
    shutil.rmtree(home, ignore_errors=True)
    wanted = [f"{name}=={version}" for name, version in pins.items()]
    overrides = folder / "overrides.txt"
    overrides.write_text(NO_BUILD)
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        _run([str(uv), "venv", "--quiet", "--python", sys.executable, str(home)], folder)
        install = [str(uv), "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
        _run([*install, "--overrides", str(overrides), *wanted], folder)
    else:
        _run([sys.executable, "-m", "venv", str(home)], folder)
        _run([str(home / "bin" / "pip"), "install", "--quiet", *wanted], folder)


def _run(argv: Sequence[str], cwd: Path) -> None:
    try:
        done = subprocess.run(
            argv,
            check=False,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
        )
    except subprocess.TimeoutExpired as late:
        raise Absent(f"{Path(argv[0]).name} took longer than {INSTALL_S_MAX:.0f} s") from late
    except OSError as no:
        raise Absent(str(no)) from no
    if done.returncode:
        raise Absent(f"{Path(argv[0]).name}: {(done.stderr or done.stdout).strip()[-300:]}")
