"""The fold: the plainest possible store, which every other one has to equal."""

from __future__ import annotations

from domain.facts import Recorded
from domain.values import Value
from projections.fold import Fold
from projections.rows import Add, Big, Delete, Put, Table
from tests.domain.samples import SAMPLES
from tests.spec import T0, envelope


class NoteRow(Value):
    number: int
    text: str


class TallyRow(Value):
    name: str
    up: Big = 0
    down: Big = 0


NOTES = Table("notes", NoteRow, ("number",))
TALLIES = Table("tallies", TallyRow, ("name",), sums=("up", "down"))
FACT = Recorded(SAMPLES[0], "s", 1, 1, T0, 0, envelope("k"))


def test_the_last_put_of_a_key_is_what_is_shown() -> None:
    fold = Fold()
    fold.add(FACT, [Put(NOTES, NoteRow(number=1, text="a")), Put(NOTES, NoteRow(number=2, text="b"))])
    fold.add(FACT, [Put(NOTES, NoteRow(number=1, text="c"))])
    assert fold.rows(NOTES) == {("acme", 1): ("acme", 1, "c"), ("acme", 2): ("acme", 2, "b")}


def test_what_is_deleted_is_gone_and_deleting_nothing_is_nothing() -> None:
    fold = Fold()
    fold.add(FACT, [Put(NOTES, NoteRow(number=1, text="a")), Delete(NOTES, (1,)), Delete(NOTES, (7,))])
    assert fold.rows(NOTES) == {}


def test_sums_begin_at_zero_and_add_up() -> None:
    fold = Fold()
    fold.add(FACT, [Add(TALLIES, ("x",), {"up": 2}), Add(TALLIES, ("x",), {"up": 3, "down": 2**70})])
    assert fold.rows(TALLIES) == {("acme", "x"): ("acme", "x", 5, 2**70)}


def test_a_table_that_no_fact_filled_is_empty() -> None:
    assert Fold().rows(NOTES) == {}
