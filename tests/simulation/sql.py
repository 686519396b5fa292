"""The statements our drivers send, by their text: what each does to the database. Any other is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.arrays import Array
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
