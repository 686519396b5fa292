"""A state that means something else is another version: what a fold does is in a golden file for each.

After a change to a kept state's fields, its `apply` or whatever that reaches: raise its `snapshot_version`,
run `python -m tests.commands.test_snapshot_versions`, commit the file. An existing file is never written
again. Comments, docstrings and rules that only read a state may change freely.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands.snapshots import Keepable, form_of
from domain import capacity
from domain.capacity import PlacesTaken, Pool
from domain.registry import CONTEXTS

FOLDER = Path(__file__).parents[1] / "golden" / "snapshots"


def kept_states() -> list[type[Keepable]]:
    """Every state of the domain that says how it is kept."""
    modules = [importlib.import_module(f"domain.{context}") for context in CONTEXTS]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return sorted(
        (each for each in found if hasattr(each, "snapshot_version")), key=lambda each: each.__name__
    )


def golden(state: type[Keepable]) -> Path:
    return FOLDER / f"{state.snapshot_name}.v{state.snapshot_version}.txt"


def meaning(source: str, name: str) -> str:
    """The fields of a state, its `apply`, and all of the module that these reach, as code without words."""
    module = ast.parse(source)
    known = {each: node for node in module.body for each in _names(node)}
    state = known[name]
    assert isinstance(state, ast.ClassDef)
    methods = {f"self.{node.name}": node for node in state.body if isinstance(node, ast.FunctionDef)}
    fields = [
        node for node in state.body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.dump(node)
    ]
    reached: dict[str, ast.stmt] = {f"field {ast.unparse(node.target)}": node for node in fields}
    waiting = [*fields, methods["self.apply"]]
    reached["self.apply"] = methods["self.apply"]
    while waiting:
        for told in _mentions(waiting.pop()):
            node = methods.get(told) or known.get(told)
            if node is not None and told not in reached and told != name:
                reached[told] = node
                waiting.append(node)
    return (
        "\n\n".join(f"# {each}\n{ast.unparse(_wordless(node))}" for each, node in sorted(reached.items()))
        + "\n"
    )


def _names(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _mentions(node: ast.stmt) -> Iterator[str]:
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                yield f"self.{name}"
            case ast.Name(id=name):
                yield name


def _wordless(node: ast.stmt) -> ast.stmt:
    for each in ast.walk(node):
        if isinstance(each, ast.ClassDef | ast.FunctionDef):
            each.body = [line for line in each.body if not _only_words(line)] or [ast.Pass()]
    return node


def _only_words(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def source(state: type[Keepable]) -> str:
    module = inspect.getmodule(state)
    assert module is not None
    return inspect.getsource(module)


@pytest.mark.parametrize("state", kept_states(), ids=lambda state: state.snapshot_name)
def test_a_kept_state_means_what_its_golden_file_says(state: type[Keepable]) -> None:
    assert golden(state).exists(), f"run python -m {__name__}"
    changed = f"raise {state.__name__}.snapshot_version: what was kept means something else now"
    assert meaning(source(state), state.__name__) == golden(state).read_text(), changed


def test_every_version_there_ever_was_has_its_file_and_no_other_has_one() -> None:
    expected = {
        f"{state.snapshot_name}.v{version}.txt"
        for state in kept_states()
        for version in range(1, state.snapshot_version + 1)
    }
    assert {path.name for path in FOLDER.iterdir()} == expected


def test_the_long_streams_are_kept() -> None:
    assert kept_states() == [Pool]


def test_another_version_of_a_fact_is_another_form_of_what_is_folded_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = form_of(Pool)
    monkeypatch.setattr(PlacesTaken, "class_version", 2)
    after = form_of.__wrapped__(Pool)
    assert before is not None
    assert after is not None
    assert before.shape != after.shape


# ── what a developer forgets ──────────────────────────────────────────────────────────────────────

CAPACITY = inspect.getsource(capacity)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "                self.used -= event.quantity\n            case StockAdjusted",
            "                pass\n            case StockAdjusted",
        ),
        (
            "while self.deadlines and self.deadlines[0][0] <= at:",
            "while self.deadlines and self.deadlines[0][0] < at:",
        ),
        ("            self.held -= hold.quantity", "            self.held -= 1"),
        ("    used: int = 0\n", "    used: int = 1\n"),
        ("class Hold:\n    quantity: int\n", "class Hold:\n    quantity: int\n    of: int = 0\n"),
        (
            'class HoldReleased(PoolFact, name="capacity.hold-released"):\n    hold_id: HoldId\n',
            'class HoldReleased(PoolFact, name="capacity.hold-released"):\n    hold_id: HoldId | None\n',
        ),
    ],
    ids=["apply", "what apply calls", "what that calls", "a field", "a field of a field", "a fact"],
)
def test_control_a_fold_that_was_changed_without_a_version_is_caught(before: str, after: str) -> None:
    """Negative control."""
    assert CAPACITY.count(before) >= 1
    assert meaning(CAPACITY.replace(before, after, 1), "Pool") != golden(Pool).read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""What a decision needs to know about a pool."""', '"""Another sentence."""'),
        ("        if quantity > left:\n", "        if quantity >= left:\n"),
        ("    snapshot_version: ClassVar[int] = 1\n", "    snapshot_version: ClassVar[int] = 2\n"),
    ],
    ids=["words", "a rule", "the version"],
)
def test_what_changes_no_state_may_change_freely(before: str, after: str) -> None:
    assert CAPACITY.count(before) == 1
    assert meaning(CAPACITY.replace(before, after), "Pool") == golden(Pool).read_text()


if __name__ == "__main__":
    for state in kept_states():
        if not golden(state).exists():
            golden(state).write_text(meaning(source(state), state.__name__))
