"""The tutorial works: a copy of the repository is taken through it, step by step, as a reader would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BIN = Path(sys.executable).parent
STEP_S_MAX = 120

CREATE = re.compile(r"^Create `(?P<path>[^`]+)`:\n\n```python\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
EDIT = re.compile(r"^\| `(?P<path>[^`]+)` \| `(?P<after>[^`]+)` \| `(?P<line>[^`]+)` \|$", re.MULTILINE)
RUN = re.compile(
    r"^```sh\n(?P<commands>.*?)^```$(?:\n\n(?:It ends with:\n\n)?```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Create:
    path: str
    text: str


@dataclass(frozen=True)
class Edit:
    """One line more, right after a text that is there once."""

    path: str
    after: str
    line: str

    def apply(self, text: str) -> str:
        assert text.count(self.after) == 1, f"{self.path}: {text.count(self.after)} times {self.after!r}"
        before, rest = text.split(self.after)
        indent = re.search(r"[ \t]*\Z|^[ \t]*", before.rpartition("\n")[2])
        assert indent
        onward = "" if rest.startswith("\n") else f"\n{indent[0]}"
        return f"{before}{self.after}\n{indent[0]}{self.line}{onward}{rest}"


@dataclass(frozen=True)
class Run:
    commands: str
    shown: str
    """What the reader is told to see, line by line, among whatever else is printed."""


Step = Create | Edit | Run


def steps(page: str) -> Iterator[Step]:
    """In reading order."""
    found: list[tuple[int, Step]] = [(m.start(), Create(m["path"], m["text"])) for m in CREATE.finditer(page)]
    found += [(m.start(), Edit(m["path"], m["after"], m["line"])) for m in EDIT.finditer(page)]
    found += [(m.start(), Run(m["commands"], m["shown"] or "")) for m in RUN.finditer(page)]
    for _, step in sorted(found, key=lambda each: each[0]):
        yield step


def copy_of_the_repository(to: Path) -> None:
    """What git would give a reader, with what is new and not ignored; under a git of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # else deleted and not committed yet
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    if (ROOT / ".mypy_cache").exists():  # else a reader's first run of mypy is slower, as it is for us
        shutil.copytree(ROOT / ".mypy_cache", to / ".mypy_cache")
    git = ["git", "-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--no-verify", "-m", "as it was"]):
        subprocess.run([*git, *command], cwd=to, check=True, capture_output=True)


def run(step: Run, at: Path) -> str:
    """With this environment's programs, and the copy's code: it comes first on the path."""
    script = f"set -e\n{step.commands}".replace(".venv/bin/", f"{BIN}/")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COUNTERFOIL_", "PYTEST_"))
    }
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=at,
        env=environment | {"PYTHONPATH": str(at), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_S_MAX,
    )
    assert done.returncode == 0, f"{step.commands}\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_works_to_the_letter(tmp_path: Path) -> None:
    copy_of_the_repository(tmp_path)
    for step in steps(PAGE.read_text()):
        match step:
            case Create():
                path = tmp_path / step.path
                assert not path.exists(), step.path
                path.write_text(step.text)
            case Edit():
                path = tmp_path / step.path
                path.write_text(step.apply(path.read_text()))
            case Run():
                printed = run(step, tmp_path)
                for line in step.shown.splitlines():
                    assert line in printed, f"{step.commands}\nprinted:\n{printed}"


def test_no_block_of_the_tutorial_is_left_out() -> None:
    """A block that no rule applies would be read by people and by nobody else."""
    page = PAGE.read_text()
    found = list(steps(page))
    assert page.count("\n```python\n") == sum(isinstance(step, Create) for step in found)
    assert page.count("\n```sh\n") == sum(isinstance(step, Run) for step in found)
    assert page.count("\n```text\n") == sum(isinstance(step, Run) and bool(step.shown) for step in found)
    rows = [line for line in page.splitlines() if re.match(r"\| `\S+\.(py|toml)` \| `", line)]
    assert len(rows) == sum(isinstance(step, Edit) for step in found)


# ── the proof notices ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["nothing of the kind\n", "CONTEXTS = (\nCONTEXTS = (\n"])
def test_an_edit_that_has_no_place_or_two_is_caught(text: str) -> None:
    with pytest.raises(AssertionError):
        Edit("domain/registry.py", "CONTEXTS = (", '"vouchers",').apply(text)


def test_an_edit_adds_a_line_with_the_indentation_of_the_one_before() -> None:
    assert Edit("a.py", "AUDIT = 1", "VOUCHER = 2").apply("class P:\n    AUDIT = 1\n") == (
        "class P:\n    AUDIT = 1\n    VOUCHER = 2\n"
    )
    assert Edit("a.py", "A = (", '"b",').apply('A = ("a", "c")\n') == 'A = (\n"b",\n"a", "c")\n'


def test_a_command_that_fails_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(Run("false\ntrue\n", ""), tmp_path)
