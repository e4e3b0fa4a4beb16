"""Open DuckDB so that results do not depend on the machine."""

from pathlib import Path

import duckdb

from include.settings import warehouse_timezone
from include.sql import literal

# New files are in this version, which every later DuckDB reads and writes too: an upgrade of DuckDB can be undone.
STORAGE_VERSION = "v1.5.0"


def open_duckdb(
    path: str | Path = ":memory:", config: dict[str, str | bool | int | float | list[str]] | None = None
) -> duckdb.DuckDBPyConnection:
    """Open a database with the warehouse's time zone, not the machine's.

    A `TIMESTAMP WITH TIME ZONE` is cut to a date, shown and read from text in this zone.

    Args:
        path: as for `duckdb.connect`.
        config: as for `duckdb.connect`.

    Raises:
        duckdb.Error: as `duckdb.connect`; or there is no such time zone.
    """
    settings = {"storage_compatibility_version": STORAGE_VERSION, **(config or {})}
    connection = duckdb.connect(str(path), config=settings)
    try:
        connection.execute(f"set global TimeZone = {literal(warehouse_timezone())}")
    except duckdb.Error:
        connection.close()
        raise
    return connection
