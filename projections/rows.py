"""What a projection may do to a read model, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import NaiveDatetime

from domain.facts import Event, Recorded
from domain.values import Value

Big = Annotated[int, "big"]
"""An integer of any size: a sum of exact amounts may pass 64 bits."""


Kind = Literal["text", "int", "big", "bool", "uuid", "instant", "local"]
"""What a column holds: `int` has 64 bits, `instant` is UTC, `local` is a time without a zone."""
KINDS: dict[Any, Kind] = {
    str: "text",
    int: "int",
    bool: "bool",
    UUID: "uuid",
    datetime: "instant",
    NaiveDatetime: "local",
}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind
    nullable: bool = False


class Engine(StrEnum):
    POSTGRES = "postgres"
    CLICKHOUSE = "clickhouse"


@dataclass(frozen=True, slots=True, eq=False)  # itself and no other: it is looked up for every row
class Table:
    """A table of a read model. Every table also has the tenant, first in its key.

    `sums` names the columns that `Add` adds to; a table has either sums or puts. The sink keeps the
    past of every table: history rows of puts, moves of sums.
    """

    name: str
    row: type
    """A pydantic class; or a named tuple where a fact makes so many rows that checking them shows."""
    key: tuple[str, ...]
    engine: Engine = Engine.POSTGRES
    sums: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """The tenant, then the row's fields."""
        return columns_of(self.row)

    @property
    def whole_key(self) -> tuple[str, ...]:
        return ("tenant", *self.key)


@lru_cache(maxsize=1_000)
def _names(row: type) -> tuple[str, ...]:
    return tuple(column.name for column in columns_of(row)[1:])


@lru_cache(maxsize=1_000)
def columns_of(row: type) -> tuple[Column, ...]:
    columns = [Column("tenant", "text")]
    for name, kind, metadata in _fields(row):
        nullable = get_origin(kind) in (Union, UnionType)
        if nullable:
            kind = next(part for part in get_args(kind) if part is not NoneType)
        columns.append(Column(name, "big" if "big" in metadata else KINDS[kind], nullable))
    return tuple(columns)


def _fields(row: type) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Names, types, and what a type is annotated with."""
    if issubclass(row, Value):
        for name, described in row.model_fields.items():
            yield name, described.annotation, described.metadata
    else:
        for name, kind in get_type_hints(row, include_extras=True).items():
            marked = get_origin(kind) is Annotated
            yield name, get_args(kind)[0] if marked else kind, get_args(kind)[1:] if marked else ()


class Put(NamedTuple):
    """Insert the row, or replace the one with the same key. Only facts of one stream put one row."""

    table: Table
    row: object

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(getattr(self.row, column) for column in self.table.key)

    @property
    def values(self) -> Sequence[Any]:
        """Of the row, in the order of the table's columns, the tenant left out."""
        row = self.row
        return row if isinstance(row, tuple) else [*map(row.__dict__.__getitem__, _names(self.table.row))]


class Delete(NamedTuple):
    """Remove the row, if it is there."""

    table: Table
    key: tuple[Any, ...]


class Add(NamedTuple):
    """Add to the sums of a row, made at zero when it is not there. Postgres only: commutative, not
    idempotent, safe because the checkpoint commits with it."""

    table: Table
    key: tuple[Any, ...]
    deltas: Mapping[str, int]


RowOp = Put | Delete | Add


@dataclass(frozen=True, slots=True)
class Projection:
    """A pure function from facts to row operations, with the tables it fills."""

    name: str
    events: tuple[type[Event], ...]
    tables: tuple[Table, ...]
    project: Callable[[Recorded], Sequence[RowOp]]

    names: frozenset[str] = field(init=False)
    contexts: frozenset[str] = field(init=False)
    """Whose topics it reads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(event.name for event in self.events))
        object.__setattr__(self, "contexts", frozenset(event.context() for event in self.events))

    def tables_in(self, engine: Engine) -> tuple[Table, ...]:
        return tuple(table for table in self.tables if table.engine is engine)


@dataclass(frozen=True, slots=True)
class Query:
    """SQL kept beside the tables it reads, typed by the row it returns.

    In the text `{table}` stands for the table's shown version; `%(name)s` are parameters, in both engines.
    The tenant is not one: `infra.queries` binds it, and row-level security or its own condition enforces
    it. `%(through)s` is always there: the position the answer is complete through. A list by position ends
    at it, because partitions are not equally far: a row that came later could lie on a page already read.
    """

    row: type[Value]
    reads: tuple[tuple[str, Table], ...]
    """(projection, table): whose checkpoints an at-least waits for, and what `{table}` names."""
    sql: str
