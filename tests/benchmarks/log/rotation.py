"""The streams that load + decide + append works on: about ten events each, so that loading means the same.

Standard library only: a peer runs it in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

STREAMS_EACH = 10
"""Of one writer: it comes back to a stream after that many others."""
EVENTS_AT_FIRST = 5
EVENTS_AT_LAST = 15
"""Then a new stream takes its place: one append of EVENTS_AT_FIRST events to ten commands, for everybody."""

T = TypeVar("T")


class Rotation(Generic[T]):
    """`opened` records a stream of EVENTS_AT_FIRST events; its streams are spread over all lengths."""

    def __init__(self, opened: Callable[[], T], streams: int) -> None:
        self.opened = opened
        self.streams = [opened() for _ in range(streams)]
        span = EVENTS_AT_LAST - EVENTS_AT_FIRST
        self.left = [span - nth % span for nth in range(streams)]
        self.at = 0

    def next(self) -> T:
        """The stream of the next command, which records one event in it."""
        return self.at_last() or self.renewed(self.opened())

    def at_last(self) -> T | None:
        """The same, or None when it is full: open one, without blocking others, and hand it to `renewed`."""
        self.at = (self.at + 1) % len(self.streams)
        if not self.left[self.at]:
            return None
        self.left[self.at] -= 1
        return self.streams[self.at]

    def renewed(self, stream: T) -> T:
        self.streams[self.at] = stream
        self.left[self.at] = EVENTS_AT_LAST - EVENTS_AT_FIRST - 1
        return stream
