"""A contract that reads a file as it is, with its values as texts, for each format."""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import duckdb

from include.dlt_pipelines.files import CsvDialect, SourceFileError, TableContract, column_names, detect_format
from include.dlt_pipelines.files.excel import cell_text, sheet_names, sheet_rows
from include.dlt_pipelines.files.text import PACKED, Text
from include.dlt_pipelines.propose.encoding import detect_encoding
from include.dlt_pipelines.propose.layout import Layout, Row, detect_layout, layout_of
from include.dlt_pipelines.propose.names import table_name
from include.sql import literal

_OTHERS = {
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls): save it as .xlsx",
    b"SQLite format 3": "an SQLite database: read it with dlt's sql_database, as docs/adding-a-source.md shows",
    b"%PDF": "a PDF",
    b"<?xml": "XML: convert it",
    b"<!DOCTYPE": "a page: convert it",
    b"<html": "a page: convert it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Obj\x01": "Avro: convert it to Parquet",
    b"ORC": "ORC: convert it to Parquet",
    b"ARROW1": "an Arrow file: convert it to Parquet",
}

_ROWS = 1_000  # of a sheet, at its beginning and at its end, to look at


def as_texts(path: Path, header: bool | None) -> tuple[TableContract, list[str]]:
    """Return a contract that reads a file as it is, and what to check about it.

    Its columns are texts, but for those of Parquet that have a type which a contract can have.

    Args:
        path: the file.
        header: whether it has one, if this is known.

    Raises:
        SourceFileError: the file is empty, cannot be read, or is of a format that cannot be loaded.
    """
    if not path.is_file():
        raise SourceFileError(f"{path}: no such file.")
    format_ = detect_format(path)
    read = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet, "xlsx": _sheet}[format_]
    columns, dialect, notes = read(path, header)
    if not columns:
        raise SourceFileError(f"{path}: the file is empty.")
    contract = TableContract(table_name(path), columns, (), min_rows=0, format=format_, dialect=dialect)
    if path.name not in [contract.file_name + ending for ending in ("", *PACKED)]:
        contract = replace(contract, file=path.name)
    return contract, notes


_Found = tuple[dict[str, str], CsvDialect, list[str]]


def _texts(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, "VARCHAR")


def _csv(path: Path, header: bool | None) -> _Found:
    with path.open("rb") as plain:
        start = plain.read(4096)
    if other := next((said for mark, said in _OTHERS.items() if start.lower().startswith(mark.lower())), ""):
        raise SourceFileError(f"{path}: is {other}. A contract takes CSV, JSON Lines, Parquet and Excel.")
    encoding = detect_encoding(path)
    text = Text(path, encoding.name)
    with text.open() as file:
        start = file.peek(4096).lstrip()
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        raise SourceFileError(f"{path}: is a JSON list. Deliver JSON Lines, an object in each line: jq -c '.[]'")
    layout = detect_layout(text, encoding.name, header)
    if not layout:
        return {}, CsvDialect(), []
    _refuse_doubt(path, layout)
    return _texts(layout.names), layout.dialect, [note for note in (encoding.note, *layout.notes) if note]


def _refuse_doubt(path: Path, layout: Layout) -> None:
    if layout.doubt:
        raise SourceFileError(f"{path}: {layout.doubt}.")


def _json_lines(path: Path, header: bool | None) -> _Found:
    encoding = detect_encoding(path)
    keys: dict[str, None] = {}
    with Text(path, encoding.name).open() as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a rejected row
            if isinstance(row, dict):
                keys.update(dict.fromkeys(row))
    names = [key for key in keys if key == key.strip() and key]
    notes = [encoding.note] if encoding.note else []
    return _texts(names), CsvDialect(encoding=encoding.name), notes


def _parquet(path: Path, header: bool | None) -> _Found:
    query = f"describe select * from read_parquet({literal(path)}, hive_partitioning=false)"
    with duckdb.connect() as connection:
        try:
            found = connection.execute(query).fetchall()
        except duckdb.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise SourceFileError(f"{path}: cannot be read as Parquet ({reason}). Deliver it again.") from None
    return {name: _supported(type_) for name, type_, *_ in found}, CsvDialect(), []


def _supported(type_: str) -> str:
    """Return the type that a contract can have for one of Parquet's."""
    try:
        return TableContract("any", {"x": type_}, ()).columns["x"]
    except ValueError:
        return {"HUGEINT": "DECIMAL(38,0)", "TIMESTAMP_NS": "TIMESTAMP"}.get(type_, "VARCHAR")


def _sheet(path: Path, header: bool | None) -> _Found:
    names = sheet_names(path)
    with sheet_rows(path, TableContract("any", {"x": "VARCHAR"}, (), format="xlsx")) as found:
        every = (Row(number, tuple(_cell(cell) for cell in cells)) for number, cells in found)
        head = list(islice(every, _ROWS))
        tail = list(deque(every, _ROWS))
    if not head:
        return {}, CsvDialect(), []
    # A row ends with its last cell that is not empty. Short ones above the table are titles.
    width = max(len(row.values) for row in (*head, *tail))
    titles = len(list(takewhile(lambda row: len(row.values) <= width // 2, head)))
    titles = titles if titles < len(head) else 0
    table, tail = ([_filled_up(row, width) for row in rows] for rows in (head[titles:], tail))
    layout = layout_of([*head[:titles], *table], CsvDialect(), header, tail)
    _refuse_doubt(path, layout)
    dialect = replace(layout.dialect, short_rows="reject", trailing_delimiter=False)
    if dialect.header and layout.header and not layout.header[-1].strip():
        # The header of a sheet ends with its last name, so that of the last column must be given by position.
        line = next(row.line for row in head if row.line > dialect.skip)
        dialect = replace(dialect, header=False, skip=line)
    notes = list(layout.notes)
    if len(names) > 1:
        notes.append(f"the first sheet, {names[0]}; for another one: sheet={names[1]!r} in the contract")
    return _texts(column_names(layout.header)), dialect, notes


def _filled_up(row: Row, width: int) -> Row:
    return Row(row.line, row.values + ("",) * (width - len(row.values)))


def _cell(cell: Any) -> str:
    return cell_text(cell, "VARCHAR", CsvDialect()) or ""
