"""The pages' signposts lead somewhere: every file, name, test and link that they mention exists."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from api.cli import app
from domain.registry import CONTEXTS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
STOP = re.compile(r"`([\w/.]+\.(?:py|sql)):([\w.]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PLACE = re.compile(r"`((?:[\w.-]+/)+[\w.*-]+\.\w+)`")
GENERATED = ("docs/benchmarks.md", "docs/events", "docs/openapi.json", "docs/asyncapi.json")
ROOMS = ("domain", "commands", "projections", "streams", "api", "infra", "tests", "docs")


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a file defines: Class, Class.method, function, CONSTANT; of SQL, its tables and functions."""
    text = path.read_text()
    if path.suffix == ".sql":
        return frozenset(re.findall(r"^CREATE (?:TABLE|FUNCTION|VIEW|TYPE) (\w+)", text, re.MULTILINE))
    found: set[str] = set()
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef():
                found.add(node.name)
                found |= {
                    f"{node.name}.{part.name}"
                    for part in node.body
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
                }
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case ast.Assign():
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)


def dead_stops(page: str) -> list[str]:
    return [
        f"{path}:{name}"
        for path, name in STOP.findall(page)
        if not (ROOT / path).is_file() or name not in names_in(ROOT / path)
    ]


def test_the_walk_names_a_stop_in_every_room() -> None:
    stops = STOP.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(stops) > 30
    assert {path.partition("/")[0] for path, _ in stops} == set(ROOMS) - {"tests", "docs"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_stop_exists(page: Path) -> None:
    assert dead_stops(page.read_text()) == []


@pytest.mark.parametrize(
    "stop", ["api/nowhere.py:create", "api/app.py:nothing", "streams/relay.py:Relay.stop"]
)
def test_a_stop_that_does_not_exist_is_noticed(stop: str) -> None:
    assert dead_stops(f"see `{stop}` and `streams/relay.py:Relay.serve`") == [stop]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    dead = [
        target
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
        and not str((page.parent / target).resolve().relative_to(ROOT)).startswith(GENERATED)
    ]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    made = set(re.findall(r"^Create `([^`]+)`:$", page.read_text(), re.MULTILINE))
    made |= {path for path in PLACE.findall(page.read_text()) if "vouchers" in path}
    dead = [
        path
        for path in PLACE.findall(page.read_text())
        if path.startswith(ROOMS) and "*" not in path and path not in made
        if not (ROOT / path).exists() and not path.startswith(GENERATED)
    ]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path) -> None:
    known = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    known |= {group.name for group in app.registered_groups if group.name}
    named = set(re.findall(r"(?:^|[`/])counterfoil ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= {name.rstrip("_") for name in known}


def test_the_contexts_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.search(r"Folder is law, file is context: (.+) \(and `analytics`", page)
    assert named
    assert set(re.findall(r"`(\w+)`", named[1])) == set(CONTEXTS)


def test_the_readme_is_what_the_package_shows() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"] == "README.md"
