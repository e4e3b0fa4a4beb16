"""How files differ from the contracts of a source."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

import duckdb

from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import TableContract, parse
from include.dlt_pipelines.files.text import PACKED
from include.dlt_pipelines.propose.names import table_name
from include.dlt_pipelines.propose.table import Header, Table, propose
from include.dlt_pipelines.propose.write import contract as contract_text
from include.sql import identifier, literal

_LAYOUT = ("delimiter", "quote", "escape", "encoding", "header", "skip", "footer", "comment", "trailing_delimiter")


def compare(source: FileSource, paths: Sequence[Path], header: Header = None) -> list[str]:
    """Return how files differ from a source's contracts.

    Args:
        source: the source.
        paths: files of tables that it has, or of new ones.
        header: as for `propose`.

    Raises:
        ProposalError: a file cannot become a table.
        SourceFileError: a file cannot be read.
    """
    said = []
    for path in paths:
        (found,) = propose([path], header)
        declared = next((one for one in source.tables if _is_of(path, one)), None)
        if declared is None:
            said += [f"{found.contract.name}: a new table. Add to {source.name}_pipeline.py:"]
            said += [f"        {contract_text(found.contract, 8)},"]
        else:
            differences = _differences(declared, found)
            said += [f"{declared.name}: {one}" for one in differences] or [f"{declared.name}: as its contract says."]
    return said


def _is_of(path: Path, table: TableContract) -> bool:
    patterns = [table.files or table.file_name]
    names = {path.name, *(path.name.removesuffix(ending) for ending in PACKED)}
    return table_name(path) == table.name or any(fnmatchcase(name, one) for name in names for one in patterns)


def _differences(declared: TableContract, found: Table) -> list[str]:
    proposed = found.contract
    layout = [
        f"{option}: {getattr(proposed.dialect, option)!r} in the file, {getattr(declared.dialect, option)!r} declared"
        for option in _LAYOUT
        if getattr(proposed.dialect, option) != getattr(declared.dialect, option)
    ]
    columns = proposed.columns
    lines = [f'{name}: new; propose "{type_}"' for name, type_ in columns.items() if name not in declared.columns]
    lines += [f"{name}: missing in the file" for name in declared.columns if name not in columns]
    if layout:
        return [*layout, *lines]  # its values cannot be read as declared
    # Rows as they would be loaded: with declared types where there are any.
    types = {name: declared.columns.get(name, "VARCHAR") for name in columns}
    options = {field.name: getattr(declared.dialect, field.name) for field in fields(declared.dialect)}
    options["columns"] = {name: value for name, value in declared.dialect.columns.items() if name in types}
    as_declared = replace(proposed, columns=types, primary_key=(), dialect=replace(declared.dialect, **options))
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection:
        parsed = parse(found.path, as_declared, Path(scratch), "")
        if parsed.rejects:
            rejects = f"from read_parquet({literal(parsed.rejects)}) group by 1 order by 1"
            query = f"select column_name, count(*), min(line), min_by(reason, line) {rejects}"
            for column, count, line, reason in connection.execute(query).fetchall():
                if column and types.get(column, "VARCHAR") != "VARCHAR":
                    lines.append(
                        f"{column}: {count} rows are not a valid {types[column]}, the first in line {line}; "
                        f'propose "{columns[column]}"'
                    )
                else:
                    lines.append(f"{count} rows cannot be read, the first is line {line}: {reason}")
        if not _is_key(connection, parsed.parquet, declared.primary_key, types):
            lines.append(f"key ({', '.join(declared.primary_key)}): not unique or not filled in this file")
    return lines


def _is_key(connection: duckdb.DuckDBPyConnection, rows: Path, key: Sequence[str], columns: dict[str, str]) -> bool:
    if not key or not set(key) <= set(columns):
        return not key
    names = ", ".join(map(identifier, key))
    filled = " and ".join(f"{identifier(name)} is not null" for name in key)
    row = connection.execute(
        f"select count(distinct ({names})) = count(*) and bool_and({filled}) from read_parquet({literal(rows)})"
    ).fetchone()
    return bool(row and row[0])
