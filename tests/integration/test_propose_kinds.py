"""Kinds of files as people deliver them, as they are: a load with what is proposed gives the right values."""

import bz2
import zipfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from openpyxl import Workbook

from include.dlt_pipelines.files import TableContract, parse
from include.dlt_pipelines.propose import propose
from include.errors import PipelineError
from tests.unit.test_files_of_every_kind import CASES, FOLDER

pytestmark = pytest.mark.integration


def proposed_rows(path: Path, folder: Path) -> tuple[TableContract, list[tuple[Any, ...]]]:
    """The proposed contract, and the rows that a load has with it."""
    (table,) = propose([path])
    folder.mkdir()
    parsed = parse(path, table.contract, folder, "")
    assert parsed.rows_rejected == table.rejected == 0
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        query = f"select * exclude (_dlt_load_id) from read_parquet('{parsed.parquet}')"
        return table.contract, connection.execute(query).fetchall()


@pytest.mark.parametrize(("file", "columns", "rows", "dialect"), CASES, ids=[one[0] for one in CASES])
def test_a_file_loads_as_proposed(
    tmp_path: Path, file: str, columns: dict[str, str], rows: list[tuple[Any, ...]], dialect: dict[str, Any]
) -> None:
    contract, found = proposed_rows(FOLDER / file, tmp_path / "parsed")
    assert len(contract.columns) == len(columns)
    if file == "k47_wide.csv":  # its numbers are texts in the contract written by hand
        found = [tuple(map(str, row)) for row in found]
    assert found == rows


def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    text = "order_id;amount\n1;12,50\n2;7,25\n"
    (tmp_path / "orders.csv.bz2").write_bytes(bz2.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "Orders 2026.zip", "w") as archive:
        archive.writestr("inside.txt", text)
    for path, name in ((tmp_path / "orders.csv.bz2", ""), (tmp_path / "Orders 2026.zip", "Orders 2026.zip")):
        contract, rows = proposed_rows(path, tmp_path / path.suffix)
        assert contract.columns == {"order_id": "BIGINT", "amount": "DECIMAL(18,2)"}
        assert contract.file == name
        assert rows == [(1, Decimal("12.50")), (2, Decimal("7.25"))]


def test_a_sheet_has_titles_and_days_and_may_not_be_the_only_one(tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.active
    assert sheet
    for row in (["Sales of May"], [], ["id", "sold on", "amount"], [1, datetime(2026, 5, 1), 2.5], [2, None, 3]):
        sheet.append(row)
    book.create_sheet("June")
    book.save(tmp_path / "Sales.xlsx")
    contract, rows = proposed_rows(tmp_path / "Sales.xlsx", tmp_path / "parsed")
    assert (contract.format, contract.dialect.skip) == ("xlsx", 2)
    assert contract.columns == {"id": "BIGINT", "sold on": "DATE", "amount": "DECIMAL(18,2)"}
    assert rows == [(1, date(2026, 5, 1), Decimal("2.50")), (2, None, Decimal("3.0"))]
    (table,) = propose([tmp_path / "Sales.xlsx"])
    assert any("sheet='June'" in note for note in table.notes)


def test_json_lines_have_the_keys_of_all_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_text('{"id": 1, "tags": ["a"]}\n{"id": 2, "at": "2026-01-05T10:00:00Z"}\n')
    contract, rows = proposed_rows(path, tmp_path / "parsed")
    assert contract.columns == {"id": "BIGINT", "tags": "VARCHAR", "at": "TIMESTAMP WITH TIME ZONE"}
    assert rows == [(1, '["a"]', None), (2, None, datetime(2026, 1, 5, 10, tzinfo=UTC))]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xd0\xcf\x11\xe0\xa1", "an old Excel file"), (b'[\n{"a": 1}]', "a JSON list"), (b"%PDF-1.7", "a PDF")],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=message):
        propose([path])


def test_a_sheet_whose_last_column_has_no_name_is_read_by_position(tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.active
    assert sheet
    for row in (["Table 1"], ["id", "name"], [1, "a", "x"], [2, "b", "y"]):
        sheet.append(row)
    book.save(tmp_path / "notes.xlsx")
    contract, rows = proposed_rows(tmp_path / "notes.xlsx", tmp_path / "parsed")
    assert (list(contract.columns), contract.dialect.header, contract.dialect.skip) == (
        ["id", "name", "column_3"],
        False,
        2,
    )
    assert rows == [(1, "a", "x"), (2, "b", "y")]


# Found in real files: the text, the columns, and how many rows there are.
REAL = {
    "json between tabs": (
        "url\tstatus\tanswer\n" + 'x.org/1\t200\t"{""a"":1,""b"":[1,2],""c"":""d""}"\n' * 3,
        ["url", "status", "answer"],
        3,
    ),
    "a value that equals the name above it": (
        "Country,Group,ID\nAngola,Africa,AO\nIndonesia,Asia,ID\n",
        ["Country", "Group", "ID"],
        2,
    ),
    "codes of one length": (
        '"Nord 262","ND2","N262"\n' + '"Airbus A3","310","A310"\n"Some","CRV",\\N\n' * 4,
        ["column_1", "column_2", "column_3"],
        9,
    ),
    "years as names": ("country,1960,1961,1962\n" + "Aruba,1.5,2,3\n" * 3, ["country", "1960", "1961", "1962"], 3),
    "titles filled up with delimiters": (
        ",,,\nReport of 2010,,,\nState,A,B,Total\n" + 'AL,1,2,"19,582"\nAK,1,1,"2,705"\n' * 3 + "PH,0,1,472\n",
        ["State", "A", "B", "Total"],
        7,
    ),
    "row names of R": ('"x" "y"\n"1" 1.5 2\n"2" 2.5 3\n"3" 3.5 4\n', ["column_1", "x", "y"], 3),
}


@pytest.mark.parametrize("kind", REAL)
def test_what_real_files_have_taught(tmp_path: Path, kind: str) -> None:
    text, columns, count = REAL[kind]
    path = tmp_path / "file.csv"
    path.write_text(text)
    contract, rows = proposed_rows(path, tmp_path / "parsed")
    assert (list(contract.columns), len(rows)) == (columns, count)


def test_several_columns_that_are_no_doubles_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "visits.csv"
    path.write_text("id,a,b\n1,1630293344.17526762721,1329067638.17526762722\n2,1.5,2.5\n")
    contract, rows = proposed_rows(path, tmp_path / "parsed")
    assert list(contract.columns.values()) == ["BIGINT", "VARCHAR", "VARCHAR"]
    assert len(rows) == 2
