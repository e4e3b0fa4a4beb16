"""Parse a delivered file against its contract: every row is either loaded, or rejected with a reason."""

from pathlib import Path

import duckdb

from include.dlt_pipelines.files.contract import SourceFileError, TableContract
from include.dlt_pipelines.files.csv_parser import CsvParser
from include.dlt_pipelines.files.output import Output, ParsedFile

MEMORY = "512MB"  # per DuckDB connection of a load; the rest spills to disk


def parse(path: Path, table: TableContract, out_dir: Path, load_id: str) -> ParsedFile:
    """Parse one file into Parquet.

    Args:
        path: the file.
        table: its contract.
        out_dir: an existing folder, with no other file of this table, for the Parquet files and spilled data.
        load_id: dlt's load id, written to each row as `_dlt_load_id`, beside the file's name for a drop folder.

    Returns:
        The Parquet files and the counts; loaded plus rejected is the number of rows in the file.

    Raises:
        SourceFileError: the file cannot be read, or has fewer rows than the contract requires.
    """
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(out_dir / "spill")}) as connection:
        connection.execute("set enable_progress_bar = false")
        output = Output(connection, path, table, out_dir, load_id)
        CsvParser(connection, table, output).parse(path, out_dir)
        parsed = output.finish()
    if parsed.rows_loaded + parsed.rows_rejected < table.min_rows:
        raise SourceFileError(
            f"{path}: {parsed.rows_loaded + parsed.rows_rejected} rows below the header, at least {table.min_rows} "
            f"expected. Deliver the file again, or lower min_rows in the contract of {table.name} if this is correct."
        )
    return parsed
