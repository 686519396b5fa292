"""A promise names its test: every test id in the pages exists, and every promise has one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def defined_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def missing(page: str) -> list[str]:
    return [f"{path}::{name}" for path, name in TEST_ID.findall(page) if name not in defined_in(ROOT / path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text()) == []


@pytest.mark.parametrize("page", ["README.md", "docs/guarantees.md"])
def test_a_test_is_named_by_its_whole_id(page: str) -> None:
    """Else nobody would look whether it is there."""
    text = (ROOT / page).read_text()
    assert TEST_ID.findall(text)
    assert len(TEST_ID.findall(text)) == text.count("::")


def test_every_promise_has_an_attack() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "guarantees.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| promise ")
    ]
    assert len(rows) > 30
    for row in rows:
        promise, kept_by, attack, control = (cell.strip() for cell in row.strip("|").split(" | "))
        assert promise, row
        assert kept_by, row
        assert TEST_ID.search(attack), row
        assert control == "-" or control == "as above" or TEST_ID.search(control), row


def test_a_test_that_does_not_exist_is_noticed() -> None:
    here = "tests/test_guarantees.py"
    page = f"`{here}::test_nothing` `{here}::test_every_promise_has_an_attack` `tests/no.py::test_a`"
    assert missing(page) == [f"{here}::test_nothing", "tests/no.py::test_a"]
