"""Parse a sheet of an Excel file, cell by cell; the line of a row is its number in the sheet.

A cell becomes the text that the contract's dialect would have for its value, so that the contract decides about cells
as about texts; an error such as `#N/A` is a text, which no type but VARCHAR takes.
"""

import csv
import io
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from include.dlt_pipelines.files.contract import FORMATS, SourceFileError, TableContract, column_names
from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.header import check_names
from include.dlt_pipelines.files.parser import Parser
from include.dlt_pipelines.files.records import Outcome
from include.dlt_pipelines.files.text import detect_format

_MAX_UNPACKED = 4_000_000_000
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, EOFError, OSError)
_MIDNIGHT = time(0, 0)

Row = tuple[int, list[Any]]


class ExcelParser(Parser):
    """Parses one sheet."""

    @staticmethod
    def check(path: Path, table: TableContract) -> None:
        """Check the sheet and its header."""
        with sheet_rows(path, table) as rows:
            _header(path, table, rows)

    def parse(self, path: Path, out_dir: Path) -> int:
        """Parse a file."""
        with sheet_rows(path, self._table) as rows:
            names = _header(path, self._table, rows)
            footer: deque[Row] = deque()
            count = 0

            def records() -> Iterator[tuple[int, str, Outcome]]:
                nonlocal count
                for row in rows:
                    footer.append(row)
                    if len(footer) > self._dialect.footer:
                        count += 1
                        yield self._record(*footer.popleft(), names)

            self._output.add_records(records(), names)
        if len(footer) < self._dialect.footer:
            raise SourceFileError(f"{path}: {self._dialect.footer} rows of footer are declared; it has {len(footer)}.")
        if self._output.has_row([self._record(*row, names)[2] for row in footer], names):
            raise SourceFileError(
                f"{path}: one of the last {self._dialect.footer} rows, which are declared as its footer, is a row of "
                "data. Nothing was loaded. Deliver the file again, or correct footer= in its contract."
            )
        return count

    def _record(self, number: int, cells: list[Any], names: Sequence[str]) -> tuple[int, str, Outcome]:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([cell_text(cell, "VARCHAR", CsvDialect()) for cell in cells])
        if len(cells) > len(names):
            reason = f"{len(cells)} values, {len(names)} expected"
            return number, text.getvalue(), Outcome([None] * len(names), None, reason)
        types = self._table.columns
        values = [
            cell_text(cell, types[name], self._dialect.of(name)) for cell, name in zip(cells, names, strict=False)
        ]
        return number, text.getvalue(), Outcome([*values, *[None] * (len(names) - len(values))])


def sheet_names(path: Path) -> list[str]:
    """Return the names of a file's sheets.

    Args:
        path: the file.

    Raises:
        SourceFileError: it cannot be read.
    """
    with _workbook(path) as workbook:
        return list(workbook.sheetnames)


def _header(path: Path, table: TableContract, rows: Iterator[Row]) -> list[str]:
    if not table.dialect.header:
        return list(table.columns)
    number, cells = next(rows, (0, []))
    if not cells:
        raise SourceFileError(f"{path}: the sheet is empty. Expected the names of columns, and rows below them.")
    delivered = [cell_text(cell, "VARCHAR", CsvDialect()) or "" for cell in cells]
    names = column_names(delivered, table.added_columns)
    expected = f"Expected, in any order: {', '.join(table.columns)}"
    if not set(names) & set(table.columns):
        raise SourceFileError(f"{path}:{number}: no header: the row has none of the columns' names. {expected}")
    check_names(f"{path}:{number}", names, table, delivered, expected)
    return names


@contextmanager
def sheet_rows(path: Path, table: TableContract) -> Iterator[Iterator[Row]]:
    """Yield the rows of a sheet that are not empty, each with its number and up to its last cell.

    Args:
        path: the file.
        table: the contract, which names the sheet and how many rows to skip.

    Raises:
        SourceFileError: the file cannot be read, or has no such sheet.
    """
    if (found := detect_format(path)) != "xlsx":
        raise SourceFileError(f"{path}: is a {FORMATS[found]} file, and the contract says format='xlsx'.")
    with _workbook(path) as workbook:
        name = table.sheet or workbook.sheetnames[0]
        if name not in workbook.sheetnames:
            sheets = ", ".join(map(repr, workbook.sheetnames))
            raise SourceFileError(f"{path}: has no sheet {name!r}. It has {sheets[:200]}.")
        yield _cells(path, workbook[name], table.dialect.skip)


@contextmanager
def _workbook(path: Path) -> Iterator[Any]:
    from openpyxl import load_workbook  # lazily: few processes need it

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_UNPACKED:
                raise SourceFileError(f"{path}: unpacks to more than {_MAX_UNPACKED / 1e9:.0f} GB. Deliver it as CSV.")
        file = path.open("rb")  # not by name, as any ending will do
        workbook = load_workbook(file, read_only=True, data_only=True, keep_links=False)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    try:
        yield workbook
    finally:
        workbook.close()
        file.close()


def _unreadable(path: Path, error: Exception) -> SourceFileError:
    reason = " ".join(str(error).split())[:200]
    return SourceFileError(f"{path}: cannot be read as Excel ({reason}). Deliver it again.")


def _cells(path: Path, sheet: Any, skip: int) -> Iterator[Row]:
    sheet.reset_dimensions()  # those that some programs write are wrong
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from None
        cells = list(row)
        while cells and cells[-1] in (None, ""):
            cells.pop()
        if cells and number > skip:
            yield number, cells


def cell_text(cell: Any, type_: str, dialect: CsvDialect) -> str | None:
    """Return what a text file of the dialect would have for a cell; None if it is empty.

    Args:
        cell: its value.
        type_: the contract's.
        dialect: the column's.
    """
    if cell is None or cell == "":
        return None
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        texts = dialect.true_values[:1] or ("true",) if cell else dialect.false_values[:1] or ("false",)
        return texts[0]
    if isinstance(cell, int | float):
        plain = f"{cell:.0f}" if float(cell).is_integer() and abs(cell) < 1e15 else str(cell)
        plain = f"{Decimal(plain):f}" if type_.startswith("DECIMAL") else plain
        return plain.replace(".", dialect.decimal) if type_ != "VARCHAR" else plain
    if isinstance(cell, datetime | date | time):
        return _moment(cell, type_, dialect)
    return str(cell)


def _moment(cell: datetime | date | time, type_: str, dialect: CsvDialect) -> str:
    if type_ == "DATE" and isinstance(cell, datetime) and cell.time() == _MIDNIGHT:
        cell = cell.date()
    kind = "timestamp" if type_.startswith("TIMESTAMP") else type_.lower()
    form = getattr(dialect, f"{kind}_format", "")
    fits = {"date": date, "time": time, "timestamp": datetime}.get(kind)
    if form and fits and type(cell) is fits:
        return cell.strftime(form)
    return cell.isoformat(" ") if isinstance(cell, datetime) else cell.isoformat()
