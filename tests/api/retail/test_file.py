"""A file is read as invoices, or refused with its name, the line, the column and what to do."""

from __future__ import annotations

import gzip
import lzma
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest

from api.retail import file
from api.retail.file import BadFile, Invoice, read_invoices

DATA = Path(__file__).parents[2] / "data"
CORNERS = DATA / "retail_small" / "corners.csv"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
LINE = "536365,85123A,HOLDER,6,2010-12-01 08:26:00,2.55,17850,United Kingdom"
FIELDS = dict(zip(HEADER.split(","), LINE.split(","), strict=True))


def written(folder: Path, *lines: str, header: str = HEADER, name: str = "shop.csv") -> Path:
    path = folder / name
    path.write_text("\n".join((header, *lines, "")))
    return path


def line_with(**changed: str) -> str:
    return ",".join((FIELDS | changed).values())


def refusal(path: Path) -> BadFile:
    with pytest.raises(BadFile) as refused:
        read_invoices(path)
    assert str(refused.value).startswith(str(path)), "it names the file"
    return refused.value


def only(path: Path) -> Invoice:
    (invoice,) = read_invoices(path)
    return invoice


# ── what is read ──────────────────────────────────────────────────────────────────────────────────


def test_lines_are_grouped_by_invoice_in_order_of_their_first_lines() -> None:
    invoices = read_invoices(CORNERS)
    assert [(invoice.number, invoice.first_line, len(invoice.lines)) for invoice in invoices] == [
        ("600001", 2, 3),
        ("600002", 4, 1),
        ("C600003", 6, 2),
        ("A600004", 8, 1),
        ("600005", 9, 2),
        ("600006", 11, 3),
        ("c600007", 14, 1),
    ]


def test_amounts_and_times_are_exact() -> None:
    first, second = read_invoices(CORNERS)[:2]
    assert first.placed_at == datetime.fromisoformat("2010-12-31 23:58")
    assert second.lines[0].unit_price_micro == 2_550_001


def test_a_line_of_another_time_keeps_its_own() -> None:
    invoice = read_invoices(CORNERS)[0]
    assert [line.placed_at for line in invoice.lines] == [
        None,
        None,
        datetime.fromisoformat("2011-01-01 00:01"),
    ]


def test_surrounding_blanks_are_trimmed_and_nothing_else_is(tmp_path: Path) -> None:
    invoice = only(written(tmp_path, ' 536365 ," 15056 bl ","  a  ""b"", c ", 6 ,2010-12-01, 2.55 ,, EIRE '))
    assert (invoice.number, invoice.country, invoice.customer) == ("536365", "EIRE", None)
    assert invoice.lines[0][:4] == ("15056 bl", 'a  "b", c', 6, 2_550_000)


def test_columns_may_come_in_any_order_among_others_and_behind_a_byte_order_mark(tmp_path: Path) -> None:
    names = [*reversed(HEADER.split(",")), "Shop"]
    row = [*reversed(LINE.split(",")), "Leeds"]
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_bytes(b"\xef\xbb\xbf" + f"{' , '.join(names)}\r\n{','.join(row)}\r\n\r\n".encode())
    assert only(shuffled) == only(written(tmp_path, LINE))


def test_a_packed_file_reads_as_the_plain_one(tmp_path: Path) -> None:
    plain = CORNERS.read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(plain))
    expected = read_invoices(CORNERS)
    assert read_invoices(tmp_path / "a.csv.gz") == read_invoices(tmp_path / "a.csv.xz") == expected


def test_until_a_day_keeps_whole_invoices_that_began_by_then() -> None:
    until = read_invoices(CORNERS, until=date(2010, 12, 31))
    assert [(invoice.number, len(invoice.lines)) for invoice in until] == [("600001", 3)]


def test_until_a_day_checks_the_lines_after_it_too(tmp_path: Path) -> None:
    path = written(tmp_path, LINE, line_with(InvoiceNo="2", InvoiceDate="2011-01-01", Quantity="x"))
    with pytest.raises(BadFile, match="line 3, column Quantity"):
        read_invoices(path, until=date(2010, 12, 31))


def test_a_quoted_field_may_run_over_lines_which_still_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, line_with(Description='"two\nlines"'), line_with(Quantity="x"))
    assert refusal(path).line == 4


# ── the digest ────────────────────────────────────────────────────────────────────────────────────


def test_the_digest_is_of_values_and_of_a_fixed_recipe(tmp_path: Path) -> None:
    one = only(written(tmp_path, LINE))
    same = only(
        written(tmp_path, line_with(UnitPrice=" 2.550", InvoiceDate="2010-12-01T08:26", Quantity="+6"))
    )
    assert one.digest() == same.digest()
    assert one.digest() == "011ef391516dec186c1075e3650a23e9", "stored with every paper ever imported"


def test_the_digest_does_not_depend_on_where_the_invoice_stands(tmp_path: Path) -> None:
    other = line_with(InvoiceNo="1")
    apart = read_invoices(written(tmp_path, other, LINE, other, LINE))
    together = read_invoices(written(tmp_path, LINE, LINE, other, other))
    assert {i.number: i.digest() for i in apart} == {i.number: i.digest() for i in together}


@pytest.mark.parametrize(
    "changed",
    [
        {"StockCode": "85123a"},
        {"Description": "HOLDERS"},
        {"Quantity": "7"},
        {"InvoiceDate": "2010-12-01 08:27:00"},
        {"UnitPrice": "2.550001"},
        {"CustomerID": ""},
        {"Country": "EIRE"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_any_change_of_an_invoice_changes_its_digest(tmp_path: Path, changed: dict[str, str]) -> None:
    before = only(written(tmp_path, LINE)).digest()
    assert only(written(tmp_path, line_with(**changed))).digest() != before


def test_the_time_of_a_later_line_is_part_of_the_digest(tmp_path: Path) -> None:
    one = only(written(tmp_path, LINE, line_with(InvoiceDate="2010-12-01 08:27:00")))
    other = only(written(tmp_path, LINE, line_with(InvoiceDate="2010-12-01 08:28:00")))
    assert one.digest() != other.digest()


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("column", "text", "says"),
    [
        ("InvoiceNo", " ", "is empty"),
        ("StockCode", "", "is empty"),
        ("StockCode", "a/b", "slash"),
        ("StockCode", "x" * 65, "longer than 64"),
        ("Quantity", "6.0", "write it as 6 or -6"),
        ("Quantity", "", "write it as 6 or -6"),
        ("Quantity", "1_000", "whole number"),
        ("Quantity", "٣", "whole number"),
        ("Quantity", "2147483648", "too large"),
        ("Quantity", "9" * 5_000, "too large"),
        ("UnitPrice", "2,55", "write it as 2.55"),
        ("UnitPrice", "NaN", "write it as 2.55"),
        ("UnitPrice", "1e999999999", "write it as 2.55"),
        ("UnitPrice", ".", "write it as 2.55"),
        ("UnitPrice", "2.5500001", "more than 6 decimals"),
        ("UnitPrice", "1." + "0" * 40 + "1", "six decimals are the most"),
        ("UnitPrice", "1000000000000.000001", "1000000000000.000 is the most"),
        ("UnitPrice", "-4611686018427.387904", "too large"),
        ("UnitPrice", "9999999999999999", "too large"),
        ("InvoiceDate", "12/1/2010 8:26", "write it as 2010-12-01 08:26:00"),
        ("InvoiceDate", "2010-12-01 08:26:00Z", "write it as 2010-12-01 08:26:00"),
        ("InvoiceDate", "2010-02-30 08:26:00", "not a day or a time that exists"),
        ("Description", "x" * 2_001, "shorten it"),
        ("Country", "x" * 2_001, "shorten it"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, column: str, text: str, says: str) -> None:
    quoted = f'"{text}"'
    refused = refusal(written(tmp_path, LINE, line_with(**{column: quoted}), LINE))
    assert (refused.line, refused.column) == (3, column)
    assert says in refused.reason
    assert len(str(refused)) < 300 + len(str(tmp_path)), "it does not repeat what may be endless"


@pytest.mark.parametrize("column", HEADER.split(","))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    refused = refusal(written(tmp_path, LINE, header=HEADER.replace(column, "Other")))
    assert (refused.line, refused.column) == (1, column)
    assert "is missing in the header" in refused.reason


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    refused = refusal(written(tmp_path, LINE + ",1", header=HEADER + ",Quantity"))
    assert (refused.line, refused.column) == (1, "Quantity")


@pytest.mark.parametrize("line", [LINE + ",1", LINE.rpartition(",")[0], "536365"])
def test_a_line_of_more_or_fewer_fields_is_named(tmp_path: Path, line: str) -> None:
    refused = refusal(written(tmp_path, LINE, line))
    assert refused.line == 3
    assert "the header has 8" in refused.reason


@pytest.mark.parametrize(
    ("column", "other"), [("CustomerID", "13047"), ("CustomerID", ""), ("Country", "EIRE")]
)
def test_an_invoice_of_two_minds_is_named_with_both_lines(tmp_path: Path, column: str, other: str) -> None:
    between = line_with(InvoiceNo="1")
    refused = refusal(written(tmp_path, between, LINE, between, line_with(**{column: other})))
    assert (refused.line, refused.column) == (5, column)
    assert "invoice 536365" in refused.reason
    assert "on line 3" in refused.reason
    assert "on line 5" in refused.reason


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        (LINE.replace("HOLDER", "\xa3 HOLDER").encode("latin-1"), 3, "Description"),
        (LINE.replace("United", "\0United").encode(), 3, "Country"),
    ],
)
def test_bytes_that_are_not_text_are_named(tmp_path: Path, content: bytes, line: int, column: str) -> None:
    path = tmp_path / "shop.csv"
    path.write_bytes(b"\n".join((HEADER.encode(), LINE.encode(), content, b"")))
    refused = refusal(path)
    assert (refused.line, refused.column) == (line, column)


def test_utf_16_is_refused_in_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(f"{HEADER}\n{LINE}\n", encoding="utf-16")
    assert refusal(path).line == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (line_with(Description='"HOLDER'), "quotes"),
        (line_with(Description='"HOLD"ER'), "quotes"),
        (line_with(Description='"' + "x\n" * 40_000 + '"'), "close its quotes"),
        (line_with(Description='"' + "x\n" * 90_000 + '"'), "quotes"),
    ],
)
def test_wrong_quotes_are_named_where_they_begin(tmp_path: Path, line: str, says: str) -> None:
    refused = refusal(written(tmp_path, LINE, line))
    assert refused.line == 3
    assert says in refused.reason


def test_an_empty_file_and_one_of_a_header_alone_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.touch()
    assert "is empty" in refusal(empty).reason
    assert "no lines" in refusal(written(tmp_path)).reason


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(tmp_path / "folder.csv").reason == "is not a file"
    assert refusal(tmp_path / "pipe.csv").reason == "is not a file"
    assert refusal(tmp_path / "none.csv").reason == "there is no such file"


def test_an_unknown_kind_of_file_is_refused_by_its_name(tmp_path: Path) -> None:
    assert ".csv.gz" in refusal(written(tmp_path, LINE, name="shop.xlsx")).reason


def a_year() -> Iterator[str]:
    yield HEADER
    for nth in range(20_000):
        yield line_with(InvoiceNo=str(nth), UnitPrice=f"{nth}.{nth}")


def packed_year(suffix: str) -> bytes:
    content = "\n".join(a_year()).encode()
    return gzip.compress(content) if suffix == "gz" else lzma.compress(content)


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_a_packed_file_that_is_cut_off_is_refused_where_it_ends(tmp_path: Path, suffix: str) -> None:
    packed = packed_year(suffix)
    path = tmp_path / f"shop.csv.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    refused = refusal(path)
    assert refused.line is not None
    assert refused.line > 1_000
    assert "cannot be read any further" in refused.reason


@pytest.mark.parametrize("suffix", ["gz", "xz"])
@pytest.mark.parametrize("damage", ["flipped", "foreign", "empty"])
def test_a_packed_file_that_is_damaged_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    packed = bytearray(packed_year(suffix))
    path = tmp_path / f"shop.csv.{suffix}"
    match damage:
        case "flipped":
            packed[len(packed) // 2] ^= 0xFF
        case "foreign":
            packed = bytearray(b"not packed at all\n")
        case "empty":
            packed.clear()
    path.write_bytes(packed)
    refusal(path)


def test_more_lines_than_memory_is_meant_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LINES_MAX", 3)
    assert len(read_invoices(written(tmp_path, LINE, LINE))) == 1
    assert refusal(written(tmp_path, LINE, LINE, LINE)).line == 4


def test_a_line_of_the_longest_length_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    padding = file.LINE_BYTES_MAX - len(LINE) - 2
    header = f"{HEADER},Note"
    assert len(read_invoices(written(tmp_path, f"{LINE},{'x' * padding}", header=header))) == 1
    assert refusal(written(tmp_path, f"{LINE},{'x' * (padding + 1)}", header=header)).line == 2


GIGABYTE = 1_000_000_000
PROBE = """
import resource, sys, time
from pathlib import Path
from api.retail.file import BadFile, read_invoices
before_kb, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_invoices(Path(sys.argv[1]))
except BadFile as refused:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb, time.process_time() - began)
    print(refused)
"""


@pytest.mark.parametrize(
    "before", ["", f"{HEADER}\n{LINE}\n", f'{HEADER}\n1,2,"'], ids=["first", "third", "quoted"]
)
def test_a_line_of_a_gigabyte_is_refused_at_once_and_in_little_memory(tmp_path: Path, before: str) -> None:
    path = tmp_path / "endless.csv.gz"
    member = gzip.compress(b"x" * 10_000_000, compresslevel=1)
    path.write_bytes(gzip.compress(before.encode()) + member * (GIGABYTE // 10_000_000))
    assert path.stat().st_size < 10_000_000
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(DATA.parents[1])},
    )
    measured, said = probe.stdout.splitlines()
    more_kb, seconds = measured.split()
    assert int(more_kb) < 20_000
    assert float(seconds) < 1
    assert f"line {before.count(chr(10)) + 1}" in said
    assert "more than 65,536 bytes" in said


@pytest.mark.slow
def test_a_whole_year_is_read_in_seconds_and_in_bounded_memory() -> None:
    (path,) = (DATA / "retail_online_uci").glob("*.csv.xz")
    before_kb, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    invoices = read_invoices(path)
    assert time.process_time() - began < 15, "4 s on the machine where it was written"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 250_000
    assert len(invoices) == 25_900
    assert sum(len(invoice.lines) for invoice in invoices) == 541_909
    assert max(len(invoice.lines) for invoice in invoices) == 1_114
