"""A shop's invoice lines as a CSV file: read strictly, grouped into invoices, or refused with file and line.

The lines of one invoice need not stand together, so none is known to be complete before the file's end.
Therefore the whole file is read and checked before anything is imported: a mistake
in its last line leaves no mark.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar, cast

from domain.catalog import QUANTITY_MAX
from domain.values import decimal_text, micro_of

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
"""All are needed, in any order. Others, `line_no` too, are passed over: lines are counted anew."""
SUFFIXES = (".csv", ".csv.gz", ".csv.xz")

LINE_BYTES_MAX = 65_536
"""A line is read no further than this, so that a file without line breaks costs no memory."""
FIELD_CHARS_MAX = 65_536
"""Of a quoted field that runs over several lines."""
LINES_MAX = 5_000_000
"""About 100 bytes of memory each: ten times a busy shop's year."""
CODE_CHARS_MAX = 64
TEXT_CHARS_MAX = 2_000
NAME_CHARS_MAX = 200
"""Of a customer or a country: read models have them in their keys."""
PRICE_MICRO_MAX = 10**18
"""A trillion: far from what the books can carry, so that their own limit is only met by sums."""
NUMBER_CHARS_MAX = 28
"""As many digits as decimal arithmetic carries without rounding."""
BUFFER_BYTES = 262_144
SHOWN_CHARS_MAX = 40

CODE = re.compile(r"[^\x00-\x1f/]+")
INTEGER = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?")
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What the codecs raise for a file that is cut off, damaged or not theirs."""

V = TypeVar("V")


class BadFile(ValueError):
    """The file cannot be imported as it is; says where, and what to do. Nothing of it was imported."""

    def __init__(self, path: Path, reason: str, line: int | None = None, column: str | None = None) -> None:
        self.path, self.reason, self.line, self.column = path, reason, line, column
        place = str(path)
        if line is not None:
            place += f", line {line}"
        if column is not None:
            place += f", column {column}"
        super().__init__(f"{place}: {reason}")


class SaleLine(NamedTuple):
    code: str
    description: str
    """As written, without surrounding blanks; often empty."""
    quantity: int
    unit_price_micro: int
    placed_at: datetime | None
    """Where it differs from the invoice's own."""


@dataclass(slots=True)
class Invoice:
    """The lines of one InvoiceNo, in the order of the file."""

    number: str
    first_line: int
    """Where the file has its first line, counted from 1 with the header."""
    customer: str | None
    country: str
    placed_at: datetime
    """Of its first line; local, without a zone."""
    lines: list[SaleLine] = field(default_factory=list)

    def digest(self) -> str:
        """Of all that the file says of this invoice, as values: 2.5 and 2.50 are one price.

        Stored with each paper, to tell a changed invoice from the same one: its recipe may never change.
        """
        content = (self.number, self.customer, self.country, self.placed_at, self.lines)
        text = json.dumps(content, default=datetime.isoformat, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_invoices(path: Path, *, until: date | None = None) -> list[Invoice]:
    """The invoices of a file, in order of their first lines; whole ones only.

    `until` keeps those whose first line is of that day or before; all others are checked nevertheless.
    Raises BadFile.
    """
    with _opened(path) as packed:
        invoices = _grouped(path, Lines(path, _unpacked(path, packed)))
    if until is None:
        return invoices
    return [invoice for invoice in invoices if invoice.placed_at.date() <= until]


# ── the file ──────────────────────────────────────────────────────────────────────────────────────


def _opened(path: Path) -> BinaryIO:
    if not path.name.endswith(SUFFIXES):
        raise BadFile(path, f"its name must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise BadFile(path, "is not a file" if path.exists() else "there is no such file")
    try:
        return path.open("rb")
    except OSError as closed:
        raise BadFile(path, f"cannot be opened: {closed.strerror}") from closed


def _unpacked(path: Path, packed: BinaryIO) -> BinaryIO:
    if path.name.endswith(".gz"):
        codec: Any = gzip.GzipFile(fileobj=packed)
    elif path.name.endswith(".xz"):
        codec = lzma.LZMAFile(packed)  # noqa: SIM115 - holds nothing but `packed`, which its opener closes
    else:
        return packed
    return cast(BinaryIO, io.BufferedReader(codec, BUFFER_BYTES))  # the codecs' own `readline` is slow


class Lines:
    """The file's lines as text, each looked at before it is kept."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.header: Sequence[str] = ()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            self.number += 1
            if len(line) > LINE_BYTES_MAX:
                raise BadFile(
                    self.path,
                    f"the line has more than {LINE_BYTES_MAX:,} bytes; end each line with a line break",
                    self.number,
                )
            if self.number > LINES_MAX:
                raise BadFile(
                    self.path,
                    f"more than {LINES_MAX:,} lines; split the file, leaving each invoice whole",
                    self.number,
                )
            if b"\0" in line:
                raise BadFile(
                    self.path,
                    "a NUL byte; export the file again as text",
                    self.number,
                    self._column(line[: line.index(b"\0")]),
                )
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as wrong:
                raise BadFile(
                    self.path,
                    f"byte {line[wrong.start]:#04x} is not UTF-8; save the file as UTF-8",
                    self.number,
                    self._column(line[: wrong.start]),
                ) from wrong

    def _next(self) -> bytes:
        try:
            return self.stream.readline(LINE_BYTES_MAX + 1)
        except BROKEN as broken:
            reason = f"cannot be read any further ({broken}); fetch or compress it again"
            raise BadFile(self.path, reason, self.number + 1) from broken

    def _column(self, before: bytes) -> str | None:
        """The column that the line has reached after these bytes."""
        nth = len(next(csv.reader([before.decode(errors="replace") + "x"])))
        return self.header[nth - 1] if nth <= len(self.header) else None


# ── its fields ────────────────────────────────────────────────────────────────────────────────────


class BadField(ValueError):
    """Internal: a text that its column cannot take."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        super().__init__(reason)


class Column(dict[str, V], Generic[V]):
    """What each text of a column means: read and checked once, however often it comes, and kept once."""

    def __init__(self, name: str, read: Callable[[str], V]) -> None:
        super().__init__()
        self.name, self.read = name, read

    def __missing__(self, text: str) -> V:
        try:
            value = self.read(text)
        except ValueError as wrong:
            raise BadField(self.name, str(wrong)) from wrong
        self[text] = value
        return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")


def _code(text: str) -> str:
    code = text.strip()
    if not code:
        raise ValueError("is empty; every line needs one")
    if len(code) > CODE_CHARS_MAX:
        raise ValueError(f"{_shown(code)} is longer than {CODE_CHARS_MAX} characters; shorten it")
    if not CODE.fullmatch(code):
        raise ValueError(f"{_shown(code)} has a slash or a control character; take it out")
    return code


def _text(text: str) -> str:
    trimmed = text.strip()
    if len(trimmed) > TEXT_CHARS_MAX:
        raise ValueError(f"longer than {TEXT_CHARS_MAX:,} characters; shorten it")
    return trimmed


def _name(text: str) -> str:
    trimmed = _text(text)
    if len(trimmed) > NAME_CHARS_MAX:
        raise ValueError(f"longer than {NAME_CHARS_MAX} characters; shorten it")
    return trimmed


def _customer(text: str) -> str | None:
    return _name(text) or None


def _quantity(text: str) -> int:
    number = text.strip()
    if not INTEGER.fullmatch(number):
        raise ValueError(f"{_shown(number)} is not a whole number; write it as 6 or -6")
    if len(number) > NUMBER_CHARS_MAX or abs(int(number)) > QUANTITY_MAX:
        raise ValueError(f"{_shown(number)} is too large; {QUANTITY_MAX:,} is the most")
    return int(number)


def _price_micro(text: str) -> int:
    number = text.strip()
    if not DECIMAL.fullmatch(number):
        raise ValueError(f"{_shown(number)} is not a decimal number; write it as 2.55")
    if len(number) > NUMBER_CHARS_MAX:
        raise ValueError(f"{_shown(number)} has too many digits; six decimals are the most")
    price_micro = micro_of(number)
    if abs(price_micro) > PRICE_MICRO_MAX:
        raise ValueError(f"{_shown(number)} is too large; {decimal_text(PRICE_MICRO_MAX)} is the most")
    return price_micro


def _moment(text: str) -> datetime:
    moment = text.strip()
    if not DATE.fullmatch(moment):
        raise ValueError(f"{_shown(moment)} is not a date; write it as 2010-12-01 08:26:00")
    try:
        return datetime.fromisoformat(moment)
    except ValueError:
        raise ValueError(f"{_shown(moment)} is not a day or a time that exists") from None


# ── its invoices ──────────────────────────────────────────────────────────────────────────────────


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    names = [name.strip() for name in next(reader, [])]
    if not names:
        raise BadFile(path, f"is empty; it needs a header and lines of {', '.join(COLUMNS)}")
    for column in COLUMNS:
        if names.count(column) != 1:
            what = "is missing" if column not in names else "is there twice"
            raise BadFile(path, f"{what} in the header, which needs {', '.join(COLUMNS)}", 1, column)
    return names


def _grouped(path: Path, lines: Lines) -> list[Invoice]:
    reader = csv.reader(lines, strict=True)
    invoices: dict[str, Invoice] = {}
    first = 1  # of the row at hand: a quoted field may run over several lines
    try:
        names = _header(path, reader)
        lines.header = names
        take = _taker(names, invoices)
        first = reader.line_num + 1
        for row in reader:
            if len(row) != len(names):
                if row:  # an empty line is no row
                    raise BadField("", f"{len(row)} fields, and the header has {len(names)}; quote commas")
            elif reader.line_num > first and max(map(len, row)) > FIELD_CHARS_MAX:
                raise BadField("", f"a field of more than {FIELD_CHARS_MAX:,} characters; close its quotes")
            else:
                take(row, first)
            first = reader.line_num + 1
    except csv.Error as wrong:
        raise BadFile(path, f"not as CSV is written ({wrong}); look at the quotes", first) from wrong
    except BadField as wrong:
        raise BadFile(path, str(wrong), first, wrong.column or None) from wrong
    if not invoices:
        raise BadFile(path, "has a header and no lines")
    return list(invoices.values())


def _taker(names: list[str], invoices: dict[str, Invoice]) -> Callable[[list[str], int], None]:
    """What is done with each row; one function call a row is all that half a million of them can afford."""
    number_of = Column("InvoiceNo", _code)
    code_of = Column("StockCode", _code)
    description_of = Column("Description", _text)
    quantity_of = Column("Quantity", _quantity)
    moment_of = Column("InvoiceDate", _moment)
    price_micro_of = Column("UnitPrice", _price_micro)
    customer_of = Column("CustomerID", _customer)
    country_of = Column("Country", _name)
    pick = itemgetter(*map(names.index, COLUMNS))

    def take(row: list[str], line: int) -> None:
        number, code, description, quantity, moment, price, customer, country = pick(row)
        number, placed_at = number_of[number], moment_of[moment]
        invoice = invoices.get(number)
        if invoice is None:
            invoice = Invoice(number, line, customer_of[customer], country_of[country], placed_at)
            invoices[number] = invoice
        elif customer_of[customer] != invoice.customer:
            raise _two("CustomerID", invoice, invoice.customer, customer_of[customer], line)
        elif country_of[country] != invoice.country:
            raise _two("Country", invoice, invoice.country, country_of[country], line)
        invoice.lines.append(
            SaleLine(
                code_of[code],
                description_of[description],
                quantity_of[quantity],
                price_micro_of[price],
                None if placed_at == invoice.placed_at else placed_at,
            )
        )

    return take


def _two(column: str, invoice: Invoice, one: str | None, other: str | None, line: int) -> BadField:
    return BadField(
        column,
        f"invoice {invoice.number} has {_shown(one or '')} on line {invoice.first_line}"
        f" and {_shown(other or '')} on line {line}; an invoice has one",
    )
