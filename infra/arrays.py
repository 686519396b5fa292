"""Columns on their way to Postgres: one-dimensional arrays in its binary format, an array at a time.

psycopg's own dumper of lists asks a dumper for every element, and picks an int's type by its largest element,
so that one statement is prepared under many types. A column here has the type its name says, always.

The format (Postgres, `array_recv`): dimensions, whether there are NULLs, the element's oid; for the one
dimension its size and lower bound; then for each element its length, -1 for NULL, and its bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from sys import byteorder
from typing import Any, ClassVar
from uuid import UUID

import psycopg
from psycopg import adapt, pq
from psycopg.abc import AdaptContext

LENGTH = struct.Struct("!i")
EMPTY = struct.Struct("!iiI")
HEAD = struct.Struct("!iiIii")
NUMERIC_HEAD = struct.Struct("!ihhHh")
NULL = LENGTH.pack(-1)
LENGTHS_AS_TEXT = [f"\0\0\0{chr(length)}" for length in range(128)]
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
LOCAL_EPOCH = EPOCH.replace(tzinfo=None)
DAY_S = 86_400
US = 1_000_000
NEGATIVE = 0x4000
FEW = 64
"""Below it, elements are packed one by one: a batch of the log is mostly small."""
DIGIT = 10_000
"""Of a numeric: Postgres counts in ten thousands."""


UNWRITABLE = (OverflowError, struct.error, UnicodeEncodeError, TypeError, AttributeError)
"""What Python says to a value that the column's type cannot hold."""


class Array:
    """A column of one type; elements may be None. Raises psycopg.DataError for what the type cannot hold."""

    __slots__ = ("values",)

    oid: ClassVar[int]
    element_oid: ClassVar[int]

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def parts(self, values: Sequence[Any]) -> Iterable[bytes | bytearray]:
        """Length and bytes of each element, one after the other; there is at least one, and none is None."""
        raise NotImplementedError

    def dumped(self) -> bytes:
        values = self.values
        count = len(values)
        if not count:
            return EMPTY.pack(0, 0, self.element_oid)
        nulls = None in values
        try:
            if values[0] == values[-1] and values.count(values[0]) == count:
                parts: Iterable[bytes | bytearray] = [self._one(values[0]) * count]
            elif nulls:
                parts = map(self._one, values)
            else:
                parts = self.parts(values)
            return b"".join(chain((HEAD.pack(1, nulls, self.element_oid, count, 1),), parts))
        except UNWRITABLE as broken:
            raise psycopg.DataError(f"out of range of {type(self).__name__}: {broken}") from broken

    def _one(self, value: Any) -> bytes:
        return NULL if value is None else b"".join(self.parts((value,)))


class Texts(Array):
    __slots__ = ()
    oid, element_oid = 1009, 25

    def parts(self, values: Sequence[str]) -> Iterable[bytes]:
        """Plain ASCII is put together as text and encoded once: a length below 128 is a character too."""
        if max(map(len, values)) < len(LENGTHS_AS_TEXT):
            wire: list[str] = [""] * (2 * len(values))
            wire[::2], wire[1::2] = map(LENGTHS_AS_TEXT.__getitem__, map(len, values)), values
            whole = "".join(wire)
            if whole.isascii():
                return (whole.encode(),)
        return _lengthy([value.encode() for value in values])


class Blobs(Array):
    __slots__ = ()
    oid, element_oid = 1001, 17

    def parts(self, values: Sequence[bytes]) -> Iterable[bytes]:
        return _lengthy(values)


class Ints4(Array):
    __slots__ = ()
    oid, element_oid = 1007, 23

    def parts(self, values: Sequence[int]) -> Iterable[bytes | bytearray]:
        return (_wide("i", 4, values),)


class Ints8(Array):
    __slots__ = ()
    oid, element_oid = 1016, 20

    def parts(self, values: Sequence[int]) -> Iterable[bytes | bytearray]:
        return (_wide("q", 8, values),)


class Bools(Array):
    __slots__ = ()
    oid, element_oid = 1000, 16

    def parts(self, values: Sequence[bool]) -> Iterable[bytes | bytearray]:
        return (_wide("B", 1, values),)


class Uuids(Array):
    __slots__ = ()
    oid, element_oid = 2951, 2950

    def parts(self, values: Sequence[UUID]) -> Iterable[bytes]:
        prefix = LENGTH.pack(16)
        return (prefix, prefix.join([value.int.to_bytes(16, "big") for value in values]))


class Instants(Array):
    """timestamptz, from datetimes with a zone."""

    __slots__ = ()
    oid, element_oid = 1185, 1184

    def parts(self, values: Sequence[datetime]) -> Iterable[bytes | bytearray]:
        return (_wide("q", 8, _microseconds(EPOCH, values)),)


class Locals(Array):
    """timestamp, from datetimes without a zone."""

    __slots__ = ()
    oid, element_oid = 1115, 1114

    def parts(self, values: Sequence[datetime]) -> Iterable[bytes | bytearray]:
        return (_wide("q", 8, _microseconds(LOCAL_EPOCH, values)),)


class Numerics(Array):
    """numeric, from ints of any size."""

    __slots__ = ()
    oid, element_oid = 1231, 1700

    def parts(self, values: Sequence[int]) -> Iterable[bytes]:
        return map(_numeric, values)


def _lengthy(elements: Sequence[bytes]) -> list[bytes]:
    """Elements of any length, each behind its own."""
    parts = [b""] * (2 * len(elements))
    parts[::2], parts[1::2] = map(LENGTH.pack, map(len, elements)), elements
    return parts


def _microseconds(since: datetime, values: Iterable[datetime]) -> list[int]:
    """By a timedelta's parts, which is half of the price of dividing it."""
    spans = [value - since for value in values]
    return [(span.days * DAY_S + span.seconds) * US + span.microseconds for span in spans]


@lru_cache(maxsize=FEW)
def _lengths_and(code: str, count: int) -> struct.Struct:
    return struct.Struct("!" + f"i{code}" * count)


def _wide(code: str, width: int, values: Sequence[int]) -> bytes | bytearray:
    if len(values) < FEW:
        wire = [width] * (2 * len(values))
        wire[1::2] = values
        return _lengths_and(code, len(values)).pack(*wire)
    packed = array(code, values)
    if byteorder == "little":
        packed.byteswap()
    return _spread(packed.tobytes(), width, len(packed))


def _spread(packed: bytes, width: int, count: int) -> bytearray:
    """Elements of one length, each behind it: byte by byte of the width, for all elements at once."""
    step = 4 + width
    wire = bytearray(step * count)
    wire[3::step] = bytes([width]) * count
    for nth in range(width):
        wire[4 + nth :: step] = packed[nth::width]
    return wire


@lru_cache(maxsize=16_384)  # quantities and counts come again and again
def _numeric(value: int) -> bytes:
    """Postgres, `numeric_recv`: count of digits, weight of the first, sign, scale, digits."""
    rest, digits = abs(value), []
    while rest:
        rest, digit = divmod(rest, DIGIT)
        digits.append(digit.to_bytes(2, "big"))
    count = len(digits)
    head = NUMERIC_HEAD.pack(8 + 2 * count, count, count - 1, NEGATIVE if value < 0 else 0, 0)
    return head + b"".join(reversed(digits))


class ArrayDumper(adapt.Dumper):
    format = pq.Format.BINARY

    def __init__(self, cls: type[Array], context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        self.oid = cls.oid

    def dump(self, obj: Array) -> bytes:
        return obj.dumped()


for kind in Array.__subclasses__():
    psycopg.adapters.register_dumper(kind, ArrayDumper)
