"""The proposal for one file: detection proposes, the project's own parser decides.

bytes ──▶ format, encoding, layout ──▶ all rows as text ──▶ types, formats ──▶ all rows, as a load would have them
"""

import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import duckdb

from include.dlt_pipelines.files import CsvDialect, ParsedFile, TableContract, column_names, parse
from include.dlt_pipelines.propose.column_types import Reading, read_columns
from include.dlt_pipelines.propose.describe import Profile, describe, profile
from include.dlt_pipelines.propose.keys import Relationship, find_key, find_relationships
from include.dlt_pipelines.propose.names import staged_names, table_name
from include.dlt_pipelines.propose.personal import is_personal
from include.dlt_pipelines.propose.texts import as_texts
from include.errors import PipelineError
from include.sql import identifier, literal

Header: TypeAlias = bool | Mapping[str, Sequence[str]] | None

_FEW_ROWS, _FEW_SHARE = 3, 0.001  # rows that cannot be read, at most
_PREVIEWED = 3
_REJECTS_SHOWN = 10


class ProposalError(PipelineError):
    """A file cannot become a table; the message says what to do."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        source: its name in the contract.
        type: in the contract.
        name: in the staging model.
        cast: the type in the staging model, if the contract leaves it as text.
        note: why it is not of the type that it looks like; empty if it is.
        description: for dbt.
        personal: whether it seems to hold personal data.
        accepted: its values, if they are a short list.
    """

    source: str
    type: str
    name: str
    cast: str
    note: str
    description: str
    personal: bool
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reject:
    """A row that cannot be read."""

    line: int
    column: str
    reason: str


@dataclass(frozen=True)
class Table:
    """A file, and what is proposed for it.

    Attributes:
        path: the file.
        contract: the proposed contract.
        columns: in the contract's order.
        rows: how many would be loaded.
        rejected: how many would not.
        rejects: the first of these.
        preview: the first rows as they would be loaded, as texts.
        notes: what was given up, or must be checked.
        relationships: of its columns, to other tables of the proposal.
    """

    path: Path
    contract: TableContract
    columns: tuple[Column, ...]
    rows: int
    rejected: int
    rejects: tuple[Reject, ...]
    preview: tuple[tuple[str | None, ...], ...]
    notes: tuple[str, ...]
    relationships: tuple[Relationship, ...] = ()


def propose(paths: Sequence[Path], header: Header = None) -> list[Table]:
    """Propose a table for each file, from all of its rows.

    Args:
        paths: files that come together.
        header: whether they have a header, found out by default; or, by table, the names of columns without one.

    Raises:
        ProposalError: a file cannot become a table.
        SourceFileError: a file cannot be read.
    """
    names = [table_name(path) for path in paths]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        same = ", ".join(path.name for path, name in zip(paths, names, strict=True) if name == twice[0])
        raise ProposalError(
            f"{same}: the table of each would be named {twice[0]}. Add them one by one, under another NAME=; or, if "
            "they are deliveries of one table, add one of them, and declare files= as for a drop folder."
        )
    with _workspace() as (connection, folder):
        tables = [_propose(connection, folder, path, header) for path in paths]
        columns = {one.contract.name: one.contract.columns for one in tables}
        keys = {one.contract.name: one.contract.primary_key for one in tables}
        related = find_relationships(connection, columns, keys) if len(tables) > 1 else []
    return [
        replace(table, relationships=tuple(one for one in related if one.table == table.contract.name))
        for table in tables
    ]


@contextmanager
def _workspace() -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    with tempfile.TemporaryDirectory(prefix="new-source-") as scratch, duckdb.connect() as connection:
        connection.execute(f"set memory_limit = '1GB'; set temp_directory = {literal(Path(scratch) / 'spill')}")
        connection.execute("set enable_progress_bar = false")
        yield connection, Path(scratch)


def _propose(connection: duckdb.DuckDBPyConnection, folder: Path, path: Path, header: Header) -> Table:
    given = header.get(table_name(path), ()) if isinstance(header, Mapping) else ()
    texts, notes = as_texts(path, False if given else None if isinstance(header, Mapping) else header)
    if given:
        texts = _named(path, texts, given)
    name = texts.name
    parsed = _load(connection, folder / f"{name}-texts", path, texts, "texts")
    _check_few(path, parsed, _rejects(connection, parsed))
    readings = _readings(connection, texts)
    notes += _unclear_marks(readings)
    contract = _typed(texts, readings)
    parsed = _load(connection, folder / f"{name}-typed", path, contract, name)
    if refused := _refused(connection, parsed, contract):
        # The loads are stricter than a cast, for example with more digits than a DOUBLE holds.
        readings |= {column: _left_as_text(readings[column]) for column in refused}
        contract = _typed(texts, readings)
        parsed = _load(connection, folder / f"{name}-final", path, contract, name)
    if not parsed.rows_loaded + parsed.rows_rejected:
        notes.append("no rows yet, so all columns are text and a load may have none: add it again when there are some")
    known = profile(connection, identifier(name), contract.columns)
    personal = {column for column in known if is_personal(column, name, known[column].values)}
    unfit = [column for column in known if known[column].filled < known[column].rows or column in personal]
    key = find_key(connection, identifier(name), name, contract.columns, unfit)
    contract = replace(contract, primary_key=key, min_rows=1 if parsed.rows_loaded else 0)
    return Table(
        path=path,
        contract=contract,
        columns=tuple(_columns(contract, readings, known, personal)),
        rows=parsed.rows_loaded,
        rejected=parsed.rows_rejected,
        rejects=tuple(_rejects(connection, parsed)),
        preview=_preview(connection, name, contract.columns),
        notes=tuple(notes),
    )


def _named(path: Path, texts: TableContract, names: Sequence[str]) -> TableContract:
    if len(names) != len(texts.columns):
        raise ProposalError(f"{path}: has {len(texts.columns)} columns, but HEADER= gives {len(names)} names.")
    return replace(texts, columns=dict(zip(column_names(names), texts.columns.values(), strict=True)))


def _readings(connection: duckdb.DuckDBPyConnection, texts: TableContract) -> dict[str, Reading]:
    if texts.format == "parquet":
        return {column: Reading(type_) for column, type_ in texts.columns.items()}
    readings = read_columns(connection, "texts", list(texts.columns), texts.dialect.delimiter)
    for column, reading in readings.items():
        v = identifier(column)
        # A sheet has no days, only moments.
        if texts.format == "xlsx" and reading == Reading("TIMESTAMP"):
            row = connection.execute(f"select bool_and({v} like '____-__-__ 00:00:00') from texts").fetchone()
            readings[column] = Reading("DATE") if row and row[0] else reading
    return readings


def _load(
    connection: duckdb.DuckDBPyConnection, folder: Path, path: Path, contract: TableContract, view: str
) -> ParsedFile:
    """Parse a file as a load does, and give its rows a name."""
    folder.mkdir()
    try:
        parsed = parse(path, contract, folder, "")
    except duckdb.OutOfMemoryException:
        raise ProposalError(
            f"{path}: {len(contract.columns):,} columns need more memory than a load has. Deliver fewer, or turn the "
            "columns into rows."
        ) from None
    connection.execute(
        f"create or replace view {identifier(view)} as select * exclude (_dlt_load_id) from "
        f"read_parquet({literal(parsed.parquet)}, hive_partitioning=false)"
    )
    return parsed


def _rejects(connection: duckdb.DuckDBPyConnection, parsed: ParsedFile) -> list[Reject]:
    if not parsed.rejects:
        return []
    query = f"select line, column_name, reason from read_parquet({literal(parsed.rejects)}) order by line"
    rows = connection.execute(query).fetchmany(_REJECTS_SHOWN)
    return [Reject(line, column or "", reason) for line, column, reason in rows]


def _refused(connection: duckdb.DuckDBPyConnection, parsed: ParsedFile, contract: TableContract) -> list[str]:
    """Return the columns with values that are none of their type."""
    typed = [column for column, type_ in contract.columns.items() if type_ != "VARCHAR"]
    if not parsed.rejects or not typed:
        return []
    # A row names the first such column, and its reason has all of them.
    said = [f"bool_or(contains(reason, {literal(f'{column}: not a valid')}))" for column in typed]
    row = connection.execute(f"select {', '.join(said)} from read_parquet({literal(parsed.rejects)})").fetchone()
    return [column for column, found in zip(typed, row or (), strict=True) if found]


def _check_few(path: Path, parsed: ParsedFile, rejects: Sequence[Reject]) -> None:
    if parsed.rows_rejected <= min(max(_FEW_ROWS, _FEW_SHARE * parsed.rows_loaded), parsed.rows_loaded):
        return
    shown = "".join(f"\n  line {one.line}: {one.reason}" for one in rejects)
    raise ProposalError(
        f"{path}: {parsed.rows_rejected:,} of {parsed.rows_loaded + parsed.rows_rejected:,} lines cannot be read, "
        f"which is too many to call it a table:{shown}"
    )


def _unclear_marks(readings: Mapping[str, Reading]) -> list[str]:
    """Say where a text that means NULL in numbers is a value of a text, as `NA` may be Namibia."""
    null = {mark for one in readings.values() for mark in one.options.get("null_values", ())}
    notes = []
    for mark in sorted(null & {mark for one in readings.values() for mark in one.marks}):
        columns = [name for name, one in readings.items() if mark in one.marks and "null_values" not in one.options]
        if columns:
            shown = ", ".join(columns[:5]) + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")
            notes.append(f"{mark!r} stays a text in {shown}: if it means NULL there too, declare it in null_values")
    return notes


def _typed(texts: TableContract, readings: Mapping[str, Reading]) -> TableContract:
    """Return the contract with types, and the options for values that they need."""
    types = {column: reading.type for column, reading in readings.items()}
    return replace(texts, columns=types, dialect=_with_options(texts.dialect, readings))


def _with_options(dialect: CsvDialect, readings: Mapping[str, Reading]) -> CsvDialect:
    """Declare each option for the table, if no column says otherwise, and else for the columns that need it."""
    common: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {}
    for option in sorted({option for one in readings.values() for option in one.options}):
        needed = {column: one.options[option] for column, one in readings.items() if option in one.options}
        marks = {one.options.get("decimal", ".") for one in readings.values() if option in one.options}
        others = [one for column, one in readings.items() if column not in needed and _heeds(one, option, marks)]
        values = list(dict.fromkeys(needed.values()))
        if option == "null_values" and not others:
            common[option] = tuple(dict.fromkeys(mark for marks in values for mark in marks))
        elif len(values) == 1 and not others:
            common[option] = values[0]
        else:
            for column, value in needed.items():
                single.setdefault(column, {})[option] = value
    return replace(dialect, **common, columns=single)


def _heeds(reading: Reading, option: str, decimals: Container[str]) -> bool:
    """Return whether an option could change how texts are read that do not need it."""
    if option == "null_values":
        return reading.type == "VARCHAR"  # where such a text may be a value
    if option in ("date_format", "time_format", "timestamp_format"):
        return reading.type.startswith(option.removesuffix("_format").upper())
    if option in ("true_values", "false_values"):
        return reading.type == "BOOLEAN"
    number = reading.type == "DOUBLE" or reading.type.startswith("DECIMAL")
    if option == "thousands":
        return number and reading.options.get("decimal", ".") not in decimals
    return number or (option == "symbols" and reading.type == "BIGINT")


def _left_as_text(reading: Reading) -> Reading:
    return Reading("VARCHAR", cast=reading.type, note=f"text, as not each value is exactly a {reading.type}")


def _columns(
    contract: TableContract, readings: Mapping[str, Reading], known: Mapping[str, Profile], personal: Container[str]
) -> Iterator[Column]:
    staged = staged_names(contract.name, contract.columns)
    for (source, type_), name in zip(contract.columns.items(), staged, strict=True):
        is_key, seen, note = source in contract.primary_key, known[source], readings[source].note
        description = describe(source, type_, seen, is_key=is_key, is_personal=source in personal, note=note)
        listed = seen.listed and not is_key and source not in personal
        yield Column(
            source=source,
            type=type_,
            name=name,
            cast=readings[source].cast,
            note=note,
            description=description,
            personal=source in personal,
            accepted=seen.values if listed else (),
        )


def _preview(
    connection: duckdb.DuckDBPyConnection, name: str, columns: Iterable[str]
) -> tuple[tuple[str | None, ...], ...]:
    texts = ", ".join(f"{identifier(column)}::varchar" for column in columns)
    return tuple(connection.execute(f"select {texts} from {identifier(name)} limit {_PREVIEWED}").fetchall())
