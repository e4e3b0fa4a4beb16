"""JSON Lines, Parquet and Excel: the same promise as for CSV, and values that are the file's."""

from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from openpyxl import Workbook

from include.dlt_pipelines.files import CsvDialect, SourceFileError, TableContract, check, parse

pytestmark = pytest.mark.unit

COLUMNS = {"id": "BIGINT", "day": "DATE", "amount": "DECIMAL(10,2)", "note": "VARCHAR"}


def contract(format_: Any, columns: dict[str, str] = COLUMNS, **options: Any) -> TableContract:
    return TableContract("t", columns, (), 0, format=format_, **options)


def parsed(path: Path, table: TableContract) -> tuple[list[tuple], list[tuple]]:
    """Return the loaded rows and the rejected rows (line, column, reason)."""
    check(path, table)
    outcome = parse(path, table, path.parent, "7.5")
    with duckdb.connect() as connection:
        rows = connection.execute(f"select * exclude (_dlt_load_id) from '{outcome.parquet}'").fetchall()
        rejects = []
        if outcome.rejects:
            query = f"select line, column_name, reason from '{outcome.rejects}' order by line"
            rejects = connection.execute(query).fetchall()
    assert (outcome.rows_loaded, outcome.rows_rejected) == (len(rows), len(rejects))
    return rows, rejects


def json_lines(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "t.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    return path


def sheet(folder: Path, rows: Sequence[Sequence[Any]], title: str = "Sheet") -> Path:
    book = Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(list(row))
    book.save(folder / "t.xlsx")
    return folder / "t.xlsx"


@pytest.mark.parametrize("format_", ["csv", "jsonl", "parquet", "xlsx"])
def test_an_optional_column_that_a_file_lacks_has_its_default(tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"t.{format_}"
    if format_ == "csv":
        path.write_text("day,id\n2026-01-05,1\n")
    elif format_ == "jsonl":
        json_lines(tmp_path, '{"day": "2026-01-05", "id": 1}')
    elif format_ == "xlsx":
        sheet(tmp_path, [["day", "id"], [date(2026, 1, 5), 1]])
    else:
        duckdb.sql(f"copy (select date '2026-01-05' as day, 1::bigint as id) to '{path}'")
    table = contract(format_, optional={"amount": "1.50", "note": 'a, "b"'})
    assert parsed(path, table) == ([(1, date(2026, 1, 5), Decimal("1.50"), 'a, "b"')], [])


def test_json_values_are_those_of_the_text(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path,
        '{"note": "ä", "id": 1, "amount": 12.5, "day": "2026-01-05"}',
        "",
        '{"id": "2", "note": ""}',
        '{"id": null, "amount": 99999999.99, "note": {"a": [1.10, "x", null, true]}}',
        '{"id": 9007199254740993, "note": 12345678901234567890.10}',
    )
    rows, rejects = parsed(path, contract("jsonl"))
    assert rejects == []
    assert rows == [
        (1, date(2026, 1, 5), Decimal("12.50"), "ä"),
        (2, None, None, ""),
        (None, None, Decimal("99999999.99"), '{"a": [1.10, "x", null, true]}'),
        (9007199254740993, None, None, "12345678901234567890.10"),
    ]


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ('{"id": 1.5}', "id", "id: not a valid BIGINT"),
        ('{"id": ""}', "id", "id: not a valid BIGINT"),
        ('{"id": 1', None, "not valid JSON at character 9 of the row"),
        ('{"id": 1} {"id": 2}', None, "not valid JSON at character 11 of the row"),
        ("[1]", None, "not a JSON object"),
        ("  ", None, "not valid JSON at character 3 of the row"),
        ('{"id": 1, "id": 2}', None, "a key is repeated"),
        ('{"id": 1, "extra": 2}', None, "extra is not among the columns"),
        ('{"id": 1, "a@b.c": 2}', None, "a key is not among the columns"),
        ('{"id": NaN}', None, "NaN is not JSON"),
        ('{"note": "\\ud800"}', None, "half of a surrogate pair is no character"),
        (b'{"note": "\xff"}', None, "not valid UTF-8 at byte 11 of the row"),
        ('{"amount": 10.005}', "amount", "amount: not a valid DECIMAL(10,2)"),
        ('{"note": ' + "[" * 100_000, None, "nested too deeply"),
        (
            '{"note": "' + "x" * 1_100_000 + '"}',
            None,
            "the row is longer than 1000000 bytes; only its beginning is kept",
        ),
    ],
)
def test_a_bad_json_line_is_rejected_alone(tmp_path: Path, line: str | bytes, column: str | None, reason: str) -> None:
    rows, rejects = parsed(json_lines(tmp_path, '{"id": 1}', line, '{"id": 3}'), contract("jsonl"))
    assert [row[0] for row in rows] == [1, 3]
    assert rejects == [(2, column, reason)]


def test_parquet_columns_of_the_contracts_type_or_with_an_exact_text_are_loaded(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"""copy (
                select 1::bigint as id, date '2026-01-05' as day, 12.5::double as amount, {{'a': [1, 2]}} as note
                union all by name select 2 as id, null as day, 10.005::double as amount
                union all by name select 3 as id, 0.1::double as amount
            ) to '{tmp_path}/t.parquet'"""
        )
    rows, rejects = parsed(tmp_path / "t.parquet", contract("parquet"))
    assert rows == [
        (1, date(2026, 1, 5), Decimal("12.50"), '{"a":[1,2]}'),
        (3, None, Decimal("0.10"), None),
    ]
    assert rejects == [(2, "amount", "amount: not a valid DECIMAL(10,2)")]


def test_texts_in_parquet_follow_the_dialect_and_an_empty_one_is_no_null(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select '7' as id, '05.01.2026' as day, '1.250,50' as amount, '' as note union all "
            f"select 'NA', 'NA', 'NA', 'NA' union all select '', null, null, null) to '{tmp_path}/t.parquet'"
        )
    dialect = CsvDialect(decimal=",", thousands=".", date_format="%d.%m.%Y", null_values=("NA",))
    rows, rejects = parsed(tmp_path / "t.parquet", contract("parquet", dialect=dialect))
    assert rows == [(7, date(2026, 1, 5), Decimal("1250.50"), ""), (None, None, None, None)]
    assert rejects == [(3, "id", "id: not a valid BIGINT")]


def test_cells_are_loaded_by_their_value_and_rejected_by_their_row(tmp_path: Path) -> None:
    columns = COLUMNS | {"at": "TIMESTAMP", "clock": "TIME", "paid": "BOOLEAN", "share": "DOUBLE"}
    path = sheet(
        tmp_path,
        [
            ["Report of January"],
            [],
            [" id ", "day", "amount", "note", "at", "clock", "paid", "share"],
            [1, date(2026, 1, 5), 12.5, "ä", datetime(2026, 1, 5, 16, 5, 0, 123000), time(16, 5), True, 1e-7],
            [],
            [None, None, None, 2026],
            [2, date(2026, 1, 5), "#N/A"],
            [3, "05.01.2026", 1e6],
            [4, datetime(2026, 1, 5, 16, 5)],
            [5, None, None, None, None, None, None, None, "beyond"],
            [6, None, 10.005],
            ["Total", None, 19.75],
        ],
    )
    rows, rejects = parsed(path, contract("xlsx", columns, dialect=CsvDialect(skip=2, footer=1)))
    at = datetime(2026, 1, 5, 16, 5, 0, 123000)
    assert rows == [
        (1, date(2026, 1, 5), Decimal("12.50"), "ä", at, time(16, 5), True, 1e-7),
        (None, None, None, "2026", None, None, None, None),
    ]
    assert rejects == [
        (7, "amount", "amount: not a valid DECIMAL(10,2)"),
        (8, "day", "day: not a valid DATE"),
        (9, "day", "day: not a valid DATE"),
        (10, None, "9 values, 8 expected"),
        (11, "amount", "amount: not a valid DECIMAL(10,2)"),
    ]


def test_cells_follow_the_dialect_as_texts_do(tmp_path: Path) -> None:
    path = sheet(
        tmp_path, [["id", "day", "amount", "note"], [1, date(2026, 1, 5), 1250.5, 1.5], [2, "6.1.2026", "7,25 €"]]
    )
    dialect = CsvDialect(decimal=",", thousands=".", symbols=("€",), date_format="%d.%m.%Y")
    assert parsed(path, contract("xlsx", dialect=dialect)) == (
        [(1, date(2026, 1, 5), Decimal("1250.50"), "1.5"), (2, date(2026, 1, 6), Decimal("7.25"), None)],
        [],
    )


def test_a_declared_sheet_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = sheet(tmp_path, [["id"], [1]], "January")
    assert parsed(path, contract("xlsx", {"id": "BIGINT"}, sheet="January"))[0] == [(1,)]
    with pytest.raises(SourceFileError, match=r"has no sheet 'May'. It has 'January'"):
        check(path, contract("xlsx", {"id": "BIGINT"}, sheet="May"))


@pytest.mark.parametrize(
    ("format_", "content", "message"),
    [
        ("parquet", b"id\n1\n", "is a CSV file, and the contract says format='parquet'"),
        ("parquet", b"PAR1" + b"x" * 50, "cannot be read as Parquet"),
        ("xlsx", b"id\n1\n", "is a CSV file, and the contract says format='xlsx'"),
        ("jsonl", b"PAR1" + b"x" * 50, "is a Parquet file, and the contract says format='jsonl'"),
        ("jsonl", b"", "the file is empty"),
        ("csv", b"PAR1" + b"x" * 50, "It is a Parquet file: declare format='parquet'"),
        ("csv", b'{"id": 1}\n', "It is a JSON Lines file: declare format='jsonl'"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, format_: str, content: bytes, message: str) -> None:
    path = tmp_path / f"t.{format_}"
    path.write_bytes(content)
    with pytest.raises(SourceFileError, match=message) as error:
        check(path, contract(format_))
    assert str(error.value).startswith(str(path))


def test_an_excel_file_declared_as_csv_is_named_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = sheet(tmp_path, [["id"], *([number] for number in range(5000))])
    with pytest.raises(SourceFileError, match=r"is an Excel file. Declare it in the contract: format='xlsx'"):
        check(path, contract("csv"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SourceFileError):
        parsed(path, contract("xlsx", {"id": "BIGINT"}))


def test_columns_that_are_missing_or_unknown_are_an_error_before_the_rows_are_read(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"copy (select 1 as id, 2 as other) to '{tmp_path}/t.parquet'")
    with pytest.raises(SourceFileError, match=r"column day, amount, note is missing; column 'other' is unknown"):
        check(tmp_path / "t.parquet", contract("parquet"))
    path = sheet(tmp_path, [["id", "other"], [1, 2]])
    with pytest.raises(SourceFileError, match=r"t.xlsx:1: column day, amount, note is missing; column 'other'"):
        check(path, contract("xlsx"))
