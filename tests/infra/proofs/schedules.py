"""Every order in which writers that hold transactions open can append and end: enumerated, not sampled.

Writers are alike but for their names, so they append in the order of their names. One that has begun and not
appended holds nothing. A schedule in which at some moment no transaction is open is two schedules, one after
the other; as all of them run on one log that is never emptied, only those that cannot be cut are enumerated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Law = Literal["one at a time", "one at a time, who waits may give up", "all at once"]
"""With a lock around the append only the first of those who asked for it has appended; the others wait."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next writer appends, or the n-th of those who have appended and not ended ends."""

    act: Literal["append", "commit", "rollback"]
    nth: int = 0


Schedule = tuple[Step, ...]
APPEND = Step("append")


def schedules(writers: int, law: Law) -> Iterator[Schedule]:
    yield from _continued((), writers, 0, law)


def _continued(before: Schedule, to_come: int, open_now: int, law: Law) -> Iterator[Schedule]:
    if to_come:
        yield from _continued((*before, APPEND), to_come - 1, open_now + 1, law)
    if open_now == 1 and to_come:
        return  # a moment without an open transaction: what follows is a schedule of its own
    for nth in range(open_now):
        for end in _ends(nth, law):
            if open_now == 1:
                yield (*before, end)
            else:
                yield from _continued((*before, end), to_come, open_now - 1, law)


def _ends(nth: int, law: Law) -> tuple[Step, ...]:
    if nth == 0 or law == "all at once":
        return Step("commit", nth), Step("rollback", nth)
    return (Step("rollback", nth),) if law == "one at a time, who waits may give up" else ()


def overtakes(schedule: Schedule) -> bool:
    """Whether, with nobody waiting, a writer commits after one that appended later: a reader who has seen the
    later one looks past it."""
    open_now: list[int] = []
    begun, last = 0, -1
    for step in schedule:
        if step.act == "append":
            open_now.append(begun)
            begun += 1
            continue
        writer = open_now.pop(step.nth)
        if step.act == "commit":
            if writer < last:
                return True
            last = writer
    return False
