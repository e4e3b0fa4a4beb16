"""What connections to DuckDB need beside SQL: a time limit, and a place on disk."""

import contextlib
import threading
from collections.abc import Iterator

import duckdb

from include.settings import warehouse_name
from include.warehouse import paths


@contextlib.contextmanager
def time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt a connection after a number of seconds; its query then raises `duckdb.InterruptException`."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def spill_config() -> dict[str, str | bool | int | float | list[str]]:
    """Return the configuration of an in-memory DuckDB that may use the disk of the warehouse's folder; create that."""
    folder = paths.warehouse_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return {"temp_directory": str(folder / f"{warehouse_name()}.tmp")}
