"""A proposal as text, for a person to judge before it is written."""

from collections.abc import Iterable, Iterator, Sequence

from include.dlt_pipelines.files import CsvDialect
from include.dlt_pipelines.propose.table import Table
from include.dlt_pipelines.propose.write import dialect

_COLUMNS = 40  # to show
_WIDTH = 24  # characters of a value


def preview(tables: Sequence[Table]) -> list[str]:
    """Return the lines that show what is proposed for some files: dialect, types, keys, and first rows.

    Args:
        tables: the proposal.
    """
    return [_printable(line) for table in tables for line in _table(table)]


def _table(table: Table) -> Iterator[str]:
    contract = table.contract
    yield f"{table.path.name} -> {contract.name}: {table.rows:,} rows, {len(table.columns)} columns"
    if contract.dialect != CsvDialect():
        yield from _indent(f"dialect: {dialect(contract.dialect)}".splitlines(), 2)
    key = ", ".join(contract.primary_key)
    yield f"  key: {key or 'none, as no column is named like a key and identifies each row'}"
    for one in table.relationships:
        yield f"  {one.column} refers to {one.to_table}.{one.to_column}: each value is there"
    names = ("", "column", "type", "staging model", "")
    lines = [names[1:], *_columns(table)]
    yield from _indent(_aligned(lines), 2)
    if table.preview:
        yield "  first rows, as they will load:"
        shown = [column.source for column in table.columns[:_COLUMNS]]
        yield from _indent(
            _aligned([shown, *([_shown(value) for value in row[:_COLUMNS]] for row in table.preview)]), 4
        )
    for note in table.notes:
        yield f"  check: {note}"
    if table.rejected:
        yield f"  {table.rejected:,} lines cannot be read. A load keeps them aside, and fails until they are fixed:"
        yield from (f"    line {one.line}: {one.reason}" for one in table.rejects)
        if table.rejected > len(table.rejects):
            yield f"    ... and {table.rejected - len(table.rejects):,} more"


def _columns(table: Table) -> Iterator[Sequence[str]]:
    for column in table.columns[:_COLUMNS]:
        remarks = [column.note] * bool(column.note) + ["personal data"] * column.personal
        remarks += [f"one of {len(column.accepted)} values"] * bool(column.accepted)
        type_ = f"{column.type}, cast to {column.cast}" if column.cast else column.type
        yield column.source, type_, column.name, "; ".join(remarks)
    if (more := len(table.columns) - _COLUMNS) > 0:
        yield f"... and {more} more", "", "", ""


def _printable(line: str) -> str:
    """Return a line without what would steer a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)


def _shown(value: str | None) -> str:
    if value is None:
        return "NULL"
    return value if len(value) <= _WIDTH else f"{value[: _WIDTH - 3]}..."


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    clean = [[" ".join(value.split()) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in clean]


def _indent(lines: Iterable[str], by: int) -> Iterator[str]:
    return (" " * by + line for line in lines)
