"""The frame holds: the import law, the banned clocks, the lock, the dependencies page, the data file."""

import ast
import csv
import hashlib
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from domain.registry import CONTEXTS

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("domain", "commands", "projections", "streams", "api", "infra")
SHARED_KERNEL = {"catalog", "capacity"}
RETAIL = ROOT / "tests" / "data" / "retail_online_uci"
# Where the name to import is not the name to install.
IMPORT_NAMES = {
    "kafka-python": "kafka",
    "faust-streaming": "faust",
    "chdb-core-lite": "chdb",
    "pyyaml": "yaml",
}
# Come with a declared package, by its own documentation: no requirement of their own.
COMES_WITH = {"starlette": "fastapi", "psycopg_pool": "psycopg", "mode": "faust-streaming"}


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


# -------------------------------------------------------------------------------------------- import law


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def context_of(module: str) -> str | None:
    """The context of a module: `domain.ordering.cart` belongs to `ordering`, the registry to nobody."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in CONTEXTS else None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strangers(room: str, allowed: dict[str, set[str] | None]) -> list[str]:
    """Where a context's file imports another context, in a room of `allowed` and not named there."""
    found = []
    for path in files(room):
        own = context_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in imports(path) if own else ():
            other, source = context_of(name), name.partition(".")[0]
            if other and other != own and source in allowed and other not in (allowed[source] or set()):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_domain_knows_pydantic_and_the_standard_library_and_nothing_else() -> None:
    for path in files("domain"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert roots <= sys.stdlib_module_names | {"domain", "pydantic", "pydantic_core"}, path


def test_a_context_of_domain_and_commands_imports_no_other_but_the_shared_kernel() -> None:
    assert strangers("domain", {"domain": SHARED_KERNEL}) == []
    assert strangers("commands", {"domain": SHARED_KERNEL, "commands": SHARED_KERNEL}) == []


def test_projections_and_reactions_read_any_facts_but_no_other_commands_or_tables() -> None:
    assert strangers("projections", {"projections": None}) == []
    assert strangers("streams", {"commands": SHARED_KERNEL, "projections": None, "streams": None}) == []


def test_every_context_is_in_the_contracts_of_every_room_where_it_has_a_file() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    named = {
        name
        for contract in contracts
        for key in ("modules", "source_modules")
        for name in contract.get(key, ())
    }
    missing = [
        f"{room}.{context}"
        for room in ("domain", "commands", "projections")
        for context in CONTEXTS
        if (ROOT / room / f"{context}.py").exists() or (ROOT / room / context).is_dir()
        if f"{room}.{context}" not in named
    ]
    assert missing == [], "add them to the independence contracts of pyproject.toml"


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("domain", "import psycopg", "pydantic and the standard library"),
        ("domain", "from commands import handling", "Imports point inward"),
        ("projections", "from commands import handling", "Imports point inward"),
        ("api", "import streams", "Imports point inward"),
        ("streams", "import eventsourcing.persistence", "Only infra touches drivers"),
        ("infra", "import faust", "Only streams touches Faust"),
        ("streams", "import fastapi", "Only api touches FastAPI"),
    ],
)
def test_the_law_is_enforced(tmp_path: Path, room: str, line: str, contract: str) -> None:
    """Negative control: a scratch copy with one forbidden import, which `make check` must refuse by name."""
    for name in ROOMS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / room / "forbidden.py").write_text(f"{line}\n")
    lint = [tool("lint-imports"), "--no-cache"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    assert re.search(rf"{contract}[^\n]*(\n[^\n]*)?BROKEN", done.stdout), done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "import datetime; x = datetime.datetime.now(datetime.UTC)",
        "import datetime; x = datetime.date.today()",
        "from datetime import datetime; x = datetime.utcnow()",
        "from time import time; x = time()",
        "import uuid; x = uuid.uuid4()",
        "from uuid import uuid1; x = uuid1()",
        "import random; x = random.random()",
        "from random import shuffle; x = shuffle",
        "import secrets; x = secrets.token_hex()",
    ],
)
@pytest.mark.parametrize("room", ROOMS)
def test_time_ids_and_chance_come_from_infra_alone(room: str, line: str) -> None:
    ruff = [tool("ruff"), "check", "--no-cache", "--select", "TID251"]
    done = subprocess.run(
        [*ruff, "--stdin-filename", f"{room}/clock.py", "-"],
        cwd=ROOT,
        input=line,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (room == "infra"), done.stdout


# ------------------------------------------------------------------------------------------ dependencies


def bare(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


def declared() -> dict[str, set[str]]:
    """Names by extra; the program's own are under the empty one."""
    extras = PROJECT["project"]["optional-dependencies"]
    return {"": {bare(each) for each in PROJECT["project"]["dependencies"]}} | {
        extra: {bare(each) for each in names} for extra, names in extras.items()
    }


def test_each_dependency_has_its_reason_and_licence_on_the_page_and_no_other_has() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    listed = defaultdict(set)
    for name, *rest in rows:
        extra, why, licence = rest if len(rest) == 3 else ["", *rest]
        assert len(why) > 10, name
        assert licence, name
        listed[extra].add(name.strip("`"))
    assert listed == declared()


def test_every_import_of_the_six_rooms_is_a_declared_dependency() -> None:
    needed = {
        IMPORT_NAMES.get(name, name.replace("-", "_"))
        for extra, names in declared().items()
        if extra != "dev"
        for name in names
    }
    known = sys.stdlib_module_names | set(ROOMS) | needed | set(COMES_WITH)
    for room in ROOMS:
        for path in files(room):
            assert {name.partition(".")[0] for name in imports(path)} <= known, path


def test_the_lock_pins_every_dependency_by_hash_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    assert "--find-links" not in lock
    entries = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    locked = {entry.partition("==")[0] for entry in entries}
    assert set().union(*declared().values()) <= locked


def test_the_streaming_packages_are_the_ones_the_recipe_was_measured_with() -> None:
    pins = set(PROJECT["project"]["dependencies"])
    assert {"kafka-python==3.0.12", "aiokafka==0.14.0", "faust-streaming==0.15.3"} <= pins


# ------------------------------------------------------------------------------------------------ chores


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in listed.stdout.splitlines()} == set(phony[1].split())


def test_every_target_that_ci_and_contributing_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in (".ci/run", "CONTRIBUTING.md", "docs/dependencies.md"):
        named = set(
            re.findall(r"(?:^|`|step .*[\"\w] )make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE)
        )
        assert named, page
        assert named <= targets, page


def test_packages_are_marked_by_empty_files() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("__init__.py"):
            assert path.read_text() == "", path


def test_decisions_are_numbered_without_gap_and_short() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text()
        assert len(text.splitlines()) < 40, path
        assert re.match(rf"# {int(path.name[:4])}\. .+\n\nStatus: ", text), path


# -------------------------------------------------------------------------------------------------- data


def test_the_retail_file_is_the_one_its_attribution_names() -> None:
    (path,) = RETAIL.glob("*.csv.xz")
    page = (RETAIL / "ATTRIBUTION.md").read_text()
    packed = path.read_bytes()
    for content in (packed, lzma.decompress(packed)):
        assert f"{len(content):,} | `{hashlib.sha256(content).hexdigest()}`" in page


def test_the_published_figures_are_those_of_the_file() -> None:
    stated = json.loads((RETAIL / "published.json").read_text())
    (path,) = RETAIL.glob("*.csv.xz")
    by_month: dict[str, Decimal] = defaultdict(Decimal)
    by_country: dict[str, Decimal] = defaultdict(Decimal)
    sold: dict[str, bool] = defaultdict(bool)
    lines = units = 0
    with lzma.open(path) as packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
        for line in csv.DictReader(text):
            quantity = int(line["Quantity"])
            by_month[line["InvoiceDate"][:7]] += quantity * Decimal(line["UnitPrice"])
            by_country[line["Country"]] += quantity * Decimal(line["UnitPrice"])
            sold[line["InvoiceNo"]] |= quantity > 0
            lines += 1
            units += quantity if line["StockCode"] == "84077" else 0
    figures = {name: figure["value"] for name, figure in stated["figures"].items()}
    assert {name: f"{amount:.3f}" for name, amount in by_month.items()} == stated["by_month"]["values"]
    assert {name: f"{amount:.3f}" for name, amount in by_country.items()} == stated["by_country"]["values"]
    assert f"{sum(by_month.values()):.3f}" == figures["net_revenue"] == "9747747.934"
    assert (lines, units, len(sold)) == (figures["lines"], figures["net_units_84077"], figures["invoices"])
    assert sum(name.startswith("C") for name in sold) == figures["returns"]
    assert sum(any_sold for name, any_sold in sold.items() if name[0] not in "CA") == figures["orders"]
