"""The dialect of a contract: what is declared holds exactly, and what contradicts itself is refused."""

import bz2
import gzip
import io
import re
import zipfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest

from include.dlt_pipelines.files import (
    CsvDialect,
    SourceFileError,
    TableContract,
    column_names,
    find_files,
    parse,
    text,
)

pytestmark = pytest.mark.unit

COLUMNS = {"id": "BIGINT", "note": "VARCHAR"}


def parsed(folder: Path, content: bytes, types: dict[str, str] = COLUMNS, /, **options: Any) -> tuple[list, list]:
    """Return the loaded rows and the rejected rows (line, column, reason, text)."""
    path = folder / "t"
    path.write_bytes(content)
    table = TableContract("t", types, ("id",) if "id" in types else (), 0, dialect=CsvDialect(**options))
    outcome = parse(path, table, folder, "7.5")
    with duckdb.connect() as connection:
        rows = connection.execute(f"select * exclude (_dlt_load_id) from '{outcome.parquet}'").fetchall()
        rejects = []
        if outcome.rejects:
            query = f"select line, column_name, reason, text from '{outcome.rejects}' order by line"
            rejects = connection.execute(query).fetchall()
    return rows, rejects


def one_value(folder: Path, type_: str, text: str, **options: Any) -> Any:
    """Return the value of a text, or the reason why it is none."""
    content = f'x\n"{text}"\n'.encode()
    rows, rejects = parsed(folder, content, {"x": type_}, **options)
    return rows[0][0] if rows else rejects[0][2]


def test_a_byte_that_does_not_decode_rejects_its_row_and_only_that(tmp_path: Path) -> None:
    content = b"id,note\n1,S\xfcd\n2,a\x81b\n3,\x80\n"
    rows, rejects = parsed(tmp_path, content, encoding="cp1252")
    assert rows == [(1, "Süd"), (3, "€")]
    assert rejects == [(3, "note", "not valid CP1252 at character 4 of the row", "2,a\\x81b")]


def test_half_a_character_at_the_end_of_utf_16_rejects_the_last_row(tmp_path: Path) -> None:
    content = "id,note\n1,Süd\n2,x\n".encode("utf-16")
    assert parsed(tmp_path, content, encoding="utf-16") == ([(1, "Süd"), (2, "x")], [])
    rows, rejects = parsed(tmp_path, content[:-3], encoding="utf-16")
    assert rows == [(1, "Süd")]
    assert [reject[:2] for reject in rejects] == [(3, "note")]


@pytest.mark.parametrize("encoding", ["cp1252", "iso8859-15", "cp437", "koi8-r", "shift_jis", "gb18030", "utf-32"])
def test_text_of_any_encoding_is_read_across_the_blocks_of_the_stream(tmp_path: Path, encoding: str) -> None:
    letters = {"koi8-r": "Ж", "shift_jis": "表", "gb18030": "表"}.get(encoding, "é")
    lines = [f"{number},{letters * (number % 7)}x" for number in range(200_000)]
    rows, rejects = parsed(tmp_path, "\n".join(["id,note", *lines]).encode(encoding), encoding=encoding)
    assert rejects == []
    assert [f"{number},{note}" for number, note in rows] == lines


def test_comments_are_ignored_between_rows_and_kept_within_values(tmp_path: Path) -> None:
    content = b'# a\n# "b\nid,note\n# c\n1,"x\n# y"\n#2,z\n3,#\nbad\n# "\n4,\n'
    rows, rejects = parsed(tmp_path, content, comment="#")
    assert rows == [(1, "x\n# y"), (3, "#"), (4, None)]
    assert [reject[0] for reject in rejects] == [9]


def test_a_footer_that_is_a_row_is_an_error_as_it_would_be_lost(tmp_path: Path) -> None:
    assert parsed(tmp_path, b"id,note\n1,a\nTotal,1\n\n\n", footer=1)[0] == [(1, "a")]
    assert parsed(tmp_path, b"id,note\n1,a\n\n,\nTotal,1\n", footer=2)[0] == [(1, "a")]
    with pytest.raises(SourceFileError, match="one of the last 1 lines, which are declared as its footer, is a row"):
        parsed(tmp_path, b"id,note\n1,a\n2,b\n", footer=1)
    with pytest.raises(SourceFileError, match="2 lines of footer are declared, and it has 1"):
        parsed(tmp_path, b"id,note\nTotal\n", footer=2)


def test_rows_without_the_trailing_delimiter_of_others_are_rows_too(tmp_path: Path) -> None:
    content = b"id,note\n1,a,\n2,b\n3,c,d\n4,,\n"
    rows, rejects = parsed(tmp_path, content, trailing_delimiter=True)
    assert rows == [(1, "a"), (2, "b"), (4, None)]
    assert [reject[0] for reject in rejects] == [4]


def test_only_short_rows_are_filled(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, b"id,note\n1\n2,b\n3,c,d\n", short_rows="fill")
    assert rows == [(1, None), (2, "b")]
    assert [reject[2] for reject in rejects] == ["3 values, 2 expected"]


def test_a_backslash_escapes_within_quotes_only(tmp_path: Path) -> None:
    content = b'id,note\n1,"a \\"b\\", \\\\ \\,"\n2,C:\\\\d\n3,"a\\nb"\n4,"a""b"\n5,\\N\n'
    rows, rejects = parsed(tmp_path, content, escape="\\", null_values=("\\N",))
    assert rows == [(1, 'a "b", \\ ,'), (2, "C:\\\\d"), (5, None)]
    assert [reject[0] for reject in rejects] == [4, 5]


def test_line_breaks_in_values_of_a_file_with_lines_that_end_in_cr_stay_what_they_are(tmp_path: Path) -> None:
    assert parsed(tmp_path, b'id,note\r1,"a\nb"\r2,x\r') == ([(1, "a\nb"), (2, "x")], [])
    rows, rejects = parsed(tmp_path, b'id,note\r1,"a\nb"\rx,"c\nd"\r')
    assert (rows, rejects[0][3]) == ([(1, "a\nb")], 'x,"c\nd"')


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lone_crs_within_values_end_no_lines(tmp_path: Path, end: str) -> None:
    content = f'id,"no\rte"{end}1,"a\rb"{end}2,"c"{end}'.encode()
    assert parsed(tmp_path, content, {"id": "BIGINT", "no\rte": "VARCHAR"}) == ([(1, "a\rb"), (2, "c")], [])


@pytest.mark.parametrize(
    ("type_", "value", "options", "expected"),
    [
        ("DECIMAL(10,2)", "1.007,25", {"decimal": ",", "thousands": "."}, Decimal("1007.25")),
        ("DECIMAL(10,2)", "1.00,25", {"decimal": ",", "thousands": "."}, "x: not a valid DECIMAL(10,2)"),
        ("DECIMAL(10,2)", "1007.25", {"decimal": ",", "thousands": "."}, "x: not a valid DECIMAL(10,2)"),
        ("DECIMAL(10,2)", "1.007.25", {"decimal": ",", "thousands": "."}, "x: not a valid DECIMAL(10,2)"),
        ("DECIMAL(10,2)", "12,505", {"decimal": ","}, "x: not a valid DECIMAL(10,2)"),
        ("BIGINT", "1,250", {"thousands": ","}, 1250),
        ("BIGINT", "1,25", {"thousands": ","}, "x: not a valid BIGINT"),
        ("BIGINT", "1 250", {"thousands": " "}, 1250),
        ("DOUBLE", "1.250,5", {"decimal": ",", "thousands": "."}, 1250.5),
        ("DOUBLE", "-.5", {}, -0.5),
        ("DECIMAL(10,2)", ".50", {}, Decimal("0.50")),
        ("DECIMAL(10,2)", ".005", {}, "x: not a valid DECIMAL(10,2)"),
        ("DECIMAL(10,2)", "-$12.50", {"symbols": ("$",)}, Decimal("-12.50")),
        ("DECIMAL(10,2)", "$ -12.50", {"symbols": ("$",)}, Decimal("-12.50")),
        ("DECIMAL(10,2)", "12.50 €", {"symbols": ("$", "€")}, Decimal("12.50")),
        ("DECIMAL(10,2)", "$12.50 €", {"symbols": ("$", "€")}, "x: not a valid DECIMAL(10,2)"),
        ("DECIMAL(10,2)", "1$2", {"symbols": ("$",)}, "x: not a valid DECIMAL(10,2)"),
        ("DATE", "1.2.2026", {"date_format": "%d.%m.%Y"}, date(2026, 2, 1)),
        ("DATE", "  1.2.2026 ", {"date_format": "%d.%m.%Y"}, date(2026, 2, 1)),
        ("DATE", "1.2.26", {"date_format": "%d.%m.%Y"}, "x: not a valid DATE in the form %d.%m.%Y"),
        ("DATE", "30.02.2026", {"date_format": "%d.%m.%Y"}, "x: not a valid DATE in the form %d.%m.%Y"),
        ("DATE", "2026-01-05", {"date_format": "%d.%m.%Y"}, "x: not a valid DATE in the form %d.%m.%Y"),
        ("DATE", "2026111", {"date_format": "%Y%m%d"}, "x: not a valid DATE in the form %Y%m%d"),
        ("DATE", "5 Mar 2026", {"date_format": "%d %b %Y"}, date(2026, 3, 5)),
        ("TIMESTAMP", "1/5/2026 12:00 AM", {"timestamp_format": "%m/%d/%Y %I:%M %p"}, datetime(2026, 1, 5)),
        (
            "TIMESTAMP",
            "1/5/2026 13:00 AM",
            {"timestamp_format": "%m/%d/%Y %I:%M %p"},
            "x: not a valid TIMESTAMP in the form %m/%d/%Y %I:%M %p",
        ),
        (
            "TIMESTAMP_S",
            "05.01.2026 10:00:00.0",
            {"timestamp_format": "%d.%m.%Y %H:%M:%S.%f"},
            datetime(2026, 1, 5, 10),
        ),
        (
            "TIMESTAMP_S",
            "05.01.2026 10:00:00.5",
            {"timestamp_format": "%d.%m.%Y %H:%M:%S.%f"},
            "x: not a valid TIMESTAMP_S in the form %d.%m.%Y %H:%M:%S.%f",
        ),
        ("BOOLEAN", "JA", {"true_values": ("ja",), "false_values": ("nein",)}, True),
        ("BOOLEAN", "true", {"true_values": ("ja",), "false_values": ("nein",)}, "x: not a valid BOOLEAN"),
        ("BIGINT", " - ", {"null_values": ("-",)}, None),
        ("BIGINT", "-1", {"null_values": ("-1",)}, None),
        ("VARCHAR", "NO", {"true_values": ("yes",), "false_values": ("no",)}, "NO"),
        ("BIGINT", "7", {"columns": {"x": {"null_values": ("7",)}}}, None),
        (
            "DATE",
            "01/02/2026",
            {"date_format": "%d.%m.%Y", "columns": {"x": {"date_format": "%m/%d/%Y"}}},
            date(2026, 1, 2),
        ),
    ],
)
def test_a_text_is_a_value_in_the_declared_form_or_none(
    tmp_path: Path, type_: str, value: str, options: dict[str, Any], expected: Any
) -> None:
    assert one_value(tmp_path, type_, value, **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "must be one character"),
        ({"delimiter": "||"}, "must be one character"),
        ({"delimiter": "\n"}, "no line end"),
        ({"delimiter": '"'}, "must differ from quote"),
        ({"quote": "", "escape": "\\"}, "escape: leave it out"),
        ({"encoding": "latin-99"}, "is not known"),
        ({"encoding": "base64"}, "is not known"),
        ({"skip": -1}, "numbers of lines"),
        ({"short_rows": "drop"}, "must be reject or fill"),
        ({"decimal": ",", "thousands": ","}, "must be different"),
        ({"decimal": "5"}, "cannot be marks"),
        ({"symbols": "€"}, "must be a tuple"),
        ({"symbols": ("-",)}, "must have no digits"),
        ({"null_values": ("a\nb",)}, "without line ends"),
        ({"true_values": ("yes",)}, "declare both"),
        ({"true_values": ("x",), "false_values": ("X",)}, "must differ"),
        ({"date_format": "%d.%m"}, "date_format='%d.%m': %Y is missing"),
        ({"date_format": "%d.%m.%Y %H"}, "%H is not supported"),
        ({"date_format": "%d.%d.%Y"}, "%d is there twice"),
        ({"timestamp_format": "%Y-%m-%d %I:%M"}, "need each other"),
        ({"columns": {"x": {"delimiter": ";"}}}, "delimiter cannot differ for a column"),
    ],
)
def test_a_dialect_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CsvDialect(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"id": "BIGINT", "_dlt_load_id": "VARCHAR"}}, "own column of that name is _dlt_load_id_2"),
        ({"columns": {"id": "BIGINT", "ID": "VARCHAR"}}, "are one column: case does not count"),
        ({"columns": {"id": "BIGINT", " x": "VARCHAR"}}, "remove the spaces around it"),
        ({"file": "a.csv", "files": "*.csv"}, "declare file= for one file, or files= for a drop folder"),
        ({"file": "../a.csv"}, "without a path"),
        ({"format": "ods"}, "is not one of csv, jsonl, parquet, xlsx"),
        ({"sheet": "May"}, "only a file of the format xlsx has a sheet"),
        ({"dialect": CsvDialect(columns={"y": {"decimal": ","}})}, "y is not among its columns"),
        (
            {"columns": {"id": "TIMESTAMP"}, "dialect": CsvDialect(timestamp_format="%Y-%m-%d %H:%M%z")},
            "%z is for TIMESTAMP WITH TIME ZONE",
        ),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableContract("t", **({"columns": {"id": "BIGINT"}, "primary_key": ("id",)} | options))


def test_names_that_are_empty_repeated_padded_or_reserved_become_names() -> None:
    header = ["", " id ", "ID", "id_2", "_dlt_load_id", "", "x"]
    assert column_names(header) == ["column_1", "id", "ID_3", "id_2", "_dlt_load_id_2", "column_6", "x"]
    assert column_names(["a"] * 3) == ["a", "a_2", "a_3"]


def zipped(**members: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return target.getvalue()


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


FILE = b"id,note\n" + b"".join(b"%d,a\n" % number for number in range(50_000))


@pytest.mark.parametrize(
    "content",
    [gzip.compress(FILE), bz2.compress(FILE), zstd(FILE), zipped(x=FILE), zipped(a__b=FILE)],
    ids=["gz", "bz2", "zst", "zip", "zip-with-folder"],
)
def test_packed_files_are_known_by_their_first_bytes_and_damaged_ones_refused(tmp_path: Path, content: bytes) -> None:
    assert len(parsed(tmp_path, content)[0]) == 50_000
    with pytest.raises(SourceFileError, match="cannot be unpacked"):
        parsed(tmp_path, content[: len(content) // 2])


def test_two_zstandard_frames_are_one_file(tmp_path: Path) -> None:
    assert len(parsed(tmp_path, zstd(FILE) + zstd(b"7,b\n"))[0]) == 50_001


def test_an_archive_has_one_file_whose_name_is_not_used(tmp_path: Path) -> None:
    assert parsed(tmp_path, zipped(**{"..__..__evil.csv": b"id,note\n1,a\n"}))[0] == [(1, "a")]
    assert not (tmp_path.parent.parent / "evil.csv").exists()
    with pytest.raises(SourceFileError, match=r"has 2 files\. Deliver one file in each archive"):
        parsed(tmp_path, zipped(a=FILE, b=FILE))
    with pytest.raises(SourceFileError, match="has 0 files"):
        parsed(tmp_path, zipped())


def test_what_unpacks_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_MAX_UNPACKED", 1_000_000)
    monkeypatch.setattr(text, "_MAX_FACTOR", 100)
    with pytest.raises(SourceFileError, match="100 times its size"):
        parsed(tmp_path, gzip.compress(b"id,note\n" + b"\n" * 20_000_000))


def test_files_are_found_by_their_own_name_packed_or_not(tmp_path: Path) -> None:
    table = TableContract("t", COLUMNS, ("id",), file="Sales [2026].CSV")
    for name in ("Sales [2026].CSV", "Sales [2026].CSV.zip"):
        (tmp_path / name).touch()
        assert list(find_files(tmp_path, table)) == [name]
        (tmp_path / name).unlink()
    with pytest.raises(SourceFileError, match=r"Sales \[2026\]\.CSV: no such file"):
        find_files(tmp_path, table)


def test_memory_does_not_follow_the_number_of_columns(tmp_path: Path) -> None:
    rows = 54
    columns = {f"c{at}": "VARCHAR" for at in range(2_000)}
    line = b",".join([b"ab"] * 2_000) + b"\n"
    content = ",".join(columns).encode() + b"\n" + line * rows
    assert parsed(tmp_path, content, columns) == ([("ab",) * 2_000] * rows, [])
    assert len(parsed(tmp_path, content + b"1,2\n", columns)[0]) == rows


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"id;note\n1;a\n", r"declare CsvDialect\(delimiter=';'\) in the contract of t"),
        (b"Report\n\nid,note\n1,a\n", r"The names are in line 3: declare CsvDialect\(skip=2\)"),
        (b"sep=;\nid;note\n", r"declare CsvDialect\(skip=1, delimiter=';'\)"),
    ],
)
def test_a_header_in_another_place_or_dialect_is_found_for_the_message(
    tmp_path: Path, content: bytes, hint: str
) -> None:
    with pytest.raises(SourceFileError, match=hint):
        parsed(tmp_path, content)
