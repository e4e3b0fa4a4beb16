"""Parse a delivered file against its contract: every row is either loaded, or rejected with a reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from include.dlt_pipelines.files.contract import Format, SourceFileError, TableContract
from include.dlt_pipelines.files.csv_parser import CsvParser
from include.dlt_pipelines.files.excel import ExcelParser
from include.dlt_pipelines.files.json_lines import JsonLinesParser
from include.dlt_pipelines.files.output import WIDE, Output, ParsedFile
from include.dlt_pipelines.files.parquet_file import ParquetParser
from include.dlt_pipelines.files.parser import Parser
from include.duckdb_session import open_duckdb

MEMORY = "512MB"  # per DuckDB connection of a load; the rest spills to disk


_PARSERS: dict[Format, type[Parser]] = {
    "csv": CsvParser,
    "jsonl": JsonLinesParser,
    "parquet": ParquetParser,
    "xlsx": ExcelParser,
}


def check(path: Path, table: TableContract) -> None:
    """Check what can be seen of a file without reading its rows, such as the names of its columns.

    Args:
        path: the file.
        table: its contract.

    Raises:
        SourceFileError: the file is empty, unreadable or of another format, or violates the contract.
    """
    _PARSERS[table.format].check(path, table)


@contextmanager
def connect(table: TableContract, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database for parsing; to open one takes longer than to parse a small file.

    Args:
        table: the contract of the files.
        spill: a folder for what does not fit into memory; created if needed.
    """
    with open_duckdb(config={"memory_limit": MEMORY, "temp_directory": str(spill)}) as connection:
        connection.execute("set enable_progress_bar = false")
        connection.execute("set preserve_insertion_order = false")  # a table has none, and it costs a quarter
        connection.execute("set enable_external_file_cache = false")  # temporary files have the same names again
        if len(table.columns) > WIDE:
            connection.execute("set threads = 1")  # each has a vector of every column
        yield connection


def parse(
    path: Path, table: TableContract, out_dir: Path, load_id: str, connection: duckdb.DuckDBPyConnection | None = None
) -> ParsedFile:
    """Parse one file into Parquet.

    Args:
        path: the file.
        table: its contract.
        out_dir: an existing folder, with no other file of this table, for the Parquet files.
        load_id: dlt's load id, written to each row as `_dlt_load_id`, beside the file's name for a drop folder.
        connection: of `connect`, for several files of a table.

    Returns:
        The Parquet files and the counts; loaded plus rejected is the number of rows in the file.

    Raises:
        SourceFileError: the file cannot be read, or has fewer rows than the contract requires.
    """
    if connection is None:
        with connect(table, out_dir / "spill") as own:
            return parse(path, table, out_dir, load_id, own)
    output = Output(connection, path, table, out_dir, load_id)
    rows = _PARSERS[table.format](connection, table, output).parse(path, out_dir)
    parsed = output.finish()
    found = parsed.rows_loaded + parsed.rows_rejected
    if rows is not None and found != rows:
        raise SourceFileError(
            f"{path}: {rows} rows in the file, but {parsed.rows_loaded} loaded and {parsed.rows_rejected} rejected. "
            "Nothing was loaded. This is a bug in the parser: please report it with the file."
        )
    if found < table.min_rows:
        raise SourceFileError(
            f"{path}: {found} rows, at least {table.min_rows} expected. Deliver the file again, or lower min_rows in "
            f"the contract of {table.name} if this is correct."
        )
    return parsed
