"""A stranger's first minutes: a clean clone and `make demo`, with every download in a cache already."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.figure import Figure, Wrong
from tests.benchmarks.system import clean_environment, say

REPOSITORY = Path(__file__).parent.parent.parent
UNTIL = "2010-12-02"
MINUTES_MAX = 10
ANSWERS_S = 0.5


def clone(folder: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(folder)], check=True)


def answers(home: Path) -> bool:
    try:
        api: Any = json.loads((home / "up.json").read_text()).get("api")
        return bool(api) and httpx.get(f"{api}/health", timeout=ANSWERS_S).is_success
    except (OSError, ValueError, httpx.HTTPError):
        return False


def demo(folder: Path) -> dict[str, float]:
    """Seconds until .venv was there, until the API first answered, until the table was printed."""
    clone(folder)
    took: dict[str, float] = {}
    log = folder.with_suffix(".log")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "demo", f"ARGS=--until {UNTIL} --exit"],
            cwd=folder,
            env=clean_environment(),
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            spent_s = time.monotonic() - began
            if "install" not in took and (folder / ".venv" / ".installed").exists():
                took["install"] = spent_s
            if "first answer" not in took and answers(folder / ".counterfoil"):
                took["first answer"] = time.monotonic() - began
            if spent_s > MINUTES_MAX * 60:
                process.terminate()
                process.wait()
                raise Wrong(f"make demo was not done after {MINUTES_MAX} minutes; see {log}")
            time.sleep(0.05)
    took["table"] = time.monotonic() - began
    if process.returncode or "first answer" not in took:
        raise Wrong(f"make demo ended with {process.returncode}: {log.read_text()[-1_500:]}")
    return took


def figure() -> Figure:
    return Figure(
        "cold", "`make demo` from a clean clone to the API's first answer, after downloads", "s", 90, False
    )


def measure(folder: Path, rounds: int) -> Figure:
    found = figure()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    say("cold: a first install, to have the downloads")
    clone(folder / "downloads")
    subprocess.run(
        ["make", "install"],
        cwd=folder / "downloads",
        env=clean_environment(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(folder / "downloads")
    tables = []
    for nth in range(rounds):
        took = demo(folder / f"clone-{nth}")
        found.round(took["first answer"], {"of which `make install`": took["install"]})
        tables.append(round(took["table"], 1))
        say(f"cold {nth + 1}/{rounds}: {took}")
        shutil.rmtree(folder / f"clone-{nth}")
    found.details = {"commit": commit, f"s to the table of --until {UNTIL}": tables}
    return found
