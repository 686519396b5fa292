"""The statements our drivers send, by their text: what each does to the database. Any other is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.arrays import Array, Blobs, Bools, Ints4, Ints8, Texts
from infra.groupcommit import BOOL, INT4, INT8
from infra.reads import TEXT
from tests.simulation.database import Blocked, Session


@dataclass(slots=True)
class Result:
    rows: list[tuple[Any, ...]]
    count: int = 0


Statement = Callable[[Session, Sequence[Any]], Result]
KNOWN: list[tuple[re.Pattern[str], Callable[..., Result]]] = []
FOUND: dict[str, Statement] = {}


class Unknown(AssertionError):
    """A statement that the simulated database does not know: teach it, beside the others."""


def statement(pattern: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Of all statements that match; the pattern's groups are given to it by name."""

    def known(run: Callable[..., Result]) -> Callable[..., Result]:
        KNOWN.append((re.compile(pattern, re.DOTALL), run))
        return run

    return known


def execute(session: Session, text: str, parameters: Sequence[Any] | None = None) -> Result:
    """All of it or nothing. Raises Blocked, and what the database would."""
    run = FOUND.get(text)
    if run is None:
        run = FOUND[text] = _find(text)
    before = dict(session.written)
    try:
        return run(session, [values(each) for each in parameters or ()])
    except Exception:
        session.written = before
        raise


def decoded(oid: int, value: bytes) -> Any:
    """A parameter in Postgres' binary format, as `infra.connection.Statement` sends it."""
    if oid in SCALARS:
        return SCALARS[oid](value)
    element = ELEMENTS[oid]
    count = int.from_bytes(value[12:16], "big") if int.from_bytes(value[:4], "big") else 0
    found, at = [], ARRAY_HEAD_BYTES
    for _ in range(count):
        size = _integer(value[at : at + 4])
        found.append(None if size < 0 else element(value[at + 4 : at + 4 + size]))
        at += 4 + max(size, 0)
    return found


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


SCALARS: dict[int, Callable[[bytes], Any]] = {
    INT4: _integer,
    INT8: _integer,
    BOOL: lambda value: value == b"\1",
    TEXT: bytes.decode,
}
ELEMENTS: dict[int, Callable[[bytes], Any]] = {
    Texts.oid: bytes.decode,
    Blobs.oid: bytes,
    Bools.oid: SCALARS[BOOL],
    Ints4.oid: _integer,
    Ints8.oid: _integer,
}
ARRAY_HEAD_BYTES = 20


def _find(text: str) -> Statement:
    for pattern, run in KNOWN:
        match = pattern.match(text)
        if match is not None:
            named = match.groupdict()
            return lambda session, parameters: run(session, parameters, **named)
    raise Unknown(text)


def values(parameter: Any) -> Any:
    return parameter.values if isinstance(parameter, Array) else parameter


__all__ = ["Blocked", "Result", "Session", "Unknown", "execute", "statement", "values"]
