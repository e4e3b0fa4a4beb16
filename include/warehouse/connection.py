"""Open the warehouse's databases: the working one to write, published and kept ones to read."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from include import sql
from include.settings import warehouse_name
from include.warehouse import locks, paths
from include.warehouse.errors import WarehouseCorruptError, WarehouseError, first_line, is_damage

logger = logging.getLogger(__name__)

# DuckDB creates a file in three writes of 4096 bytes; a process killed between them leaves one of these sizes.
_UNFINISHED_SIZES = (0, 4096, 8192)


def open_working(timeout_seconds: float | None = None) -> duckdb.DuckDBPyConnection:
    """Open the working database for writing, creating it (and its folder) if missing.

    If `WAREHOUSE_ENCRYPTION_KEY` is set, the file is encrypted with it.

    Waits for a lock held by another process and logs the holder once. A file whose creation was interrupted by a kill
    is empty, so it is recreated.

    Args:
        timeout_seconds: how long to wait; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.

    Returns:
        A connection; close it to let the next writer in.

    Raises:
        WarehouseLockedError: the lock was still held at the timeout; names the holder.
        WarehouseCorruptError: the file is damaged; says how to proceed.
        WarehouseError: this user may not write the file.
        duckdb.Error: any other DuckDB error, unchanged: a full disk, a newer file format.
    """
    path = paths.working_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, str(error)) from error
    advice = (
        f"Readers should open the published file {paths.published_path()} instead. "
        "To let this task write, close that session or stop that process, then clear the task."
    )
    try:
        return locks.wait_for_lock(lambda: connect(path), path, timeout_seconds, advice)
    except WarehouseCorruptError:
        if not _is_unfinished(path):
            raise
    # If several processes get here at once, one recreates the file and the others find it. Don't wait for DuckDB's lock
    # here: publish takes the two locks in the opposite order.
    with locks.releases_lock(), contextlib.suppress(locks.LockHeldError):
        try:
            return connect(path)
        except WarehouseCorruptError:
            if _is_unfinished(path):
                logger.warning("Recreating %s: its creation was interrupted and it is empty", path)
                path.unlink()
            return connect(path)
    return locks.wait_for_lock(lambda: connect(path), path, timeout_seconds, advice)


def connect(path: Path) -> duckdb.DuckDBPyConnection:
    """Open a database file for writing like `open_working`, but without waiting for locks or recreating the file."""
    try:
        return _connect_encrypted(path) if _encryption_key() else duckdb.connect(str(path))
    except duckdb.Error as error:
        if "Could not set lock on file" in str(error):
            raise locks.LockHeldError(locks.duckdb_lock_holder(first_line(error))) from error
        if "Permission denied" in str(error) or "Read-only file system" in str(error):
            raise _not_writable(path, first_line(error)) from error
        if not is_damage(error, str(path)):
            raise
        raise WarehouseCorruptError(
            f"The working database {path} is damaged ({first_line(error)}). Readers are not affected. To move the "
            "damaged file aside and replace it with a copy of the published one, run make restore (or python -m "
            "include.warehouse restore). Then clear `load` with downstream."
        ) from error


def _not_writable(path: Path, reason: str) -> WarehouseError:
    return WarehouseError(
        f"This user cannot write the working database {path} ({reason}). Grant write access, or set WAREHOUSE_DIR to "
        "another folder."
    )


def _encryption_key() -> str:
    return os.environ.get("WAREHOUSE_ENCRYPTION_KEY", "")


def _connect_encrypted(path: Path) -> duckdb.DuckDBPyConnection:
    # DuckDB accepts a key only in ATTACH, and encrypts its writes only with the OpenSSL of httpfs.
    connection = duckdb.connect(":memory:", config={"temp_directory": f"{path}.tmp", "temp_file_encryption": True})
    try:
        import duckdb_extensions  # lazily: only encrypted warehouses need it

        duckdb_extensions.import_extension("httpfs", con=connection)  # installs it for dbt too
        connection.load_extension("httpfs")
        _attach(connection, path)
        connection.execute(f"use {warehouse_name()}")
    except BaseException:
        connection.close()
        raise
    return connection


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, *options: str) -> None:
    connection.execute(attach_statement(path, *options))


def attach_statement(path: Path, *options: str, name: str | None = None) -> str:
    """Return the SQL that attaches a database file; it may contain the encryption key.

    Args:
        path: the file.
        options: options for DuckDB's ATTACH.
        name: the catalog name; default the one its views expect.
    """
    if key := _encryption_key():
        options = (*options, f"encryption_key {sql.literal(key)}")
    listed = f" ({', '.join(options)})" if options else ""
    return f"attach {sql.literal(path)} as {name or warehouse_name()}{listed}"


def write_ahead_logs(path: Path) -> list[Path]:
    """Return the WAL files next to a database file: their contents are not in the file yet."""
    return sorted(path.parent.glob(f"{path.name}.wal*"))


def _is_unfinished(path: Path) -> bool:
    # Another process may be creating or removing it, so it may be gone by now.
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size in _UNFINISHED_SIZES and not write_ahead_logs(path)
    return False


@contextlib.contextmanager
def open_read_only(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a published or kept database for reading, under the catalog name its views expect.

    It is attached to a fresh in-memory instance: `duckdb.connect(path)` would share an instance this process may
    already have for the path, which after a publish still shows the previous file.

    Args:
        path: any database file.

    Yields:
        A connection with the file as its default catalog.

    Raises:
        duckdb.Error: the file is missing, damaged or not readable.
    """
    with duckdb.connect(":memory:") as reader, attached(reader, path):
        yield reader


@contextlib.contextmanager
def attached(reader: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    """Like `open_read_only`, but for many files: a new instance costs over 10 ms, attaching 0.5 ms.

    Args:
        reader: an in-memory connection.
        path: the file to make the default catalog within the context.

    Raises:
        duckdb.Error: as `open_read_only`.
    """
    _attach(reader, path, "read_only")
    try:
        reader.execute(f"use {warehouse_name()}")
        yield
    finally:
        reader.execute("use memory")
        reader.execute(f"detach {warehouse_name()}")


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


def replace_table(connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]) -> None:
    """Drop a table, if it exists, and create it; see `target.Target`."""
    name = sql.identifier(schema, table)
    listed = ", ".join(f"{sql.identifier(column)} {type_}" for column, type_ in columns.items())
    connection.execute(f"create schema if not exists {sql.identifier(schema)}")
    drop_table(connection, schema, table)
    connection.execute(f"create table {name} ({listed})")


def drop_table(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
    """Drop a table, if it exists; in PostgreSQL with the views on it, which elsewhere find the next one of its name."""
    cascade = " cascade" if _is_postgres(connection, warehouse_name()) else ""  # a lake refuses the word
    connection.execute(f"drop table if exists {sql.identifier(warehouse_name(), schema, table)}{cascade}")


def _is_postgres(connection: duckdb.DuckDBPyConnection, catalog: str) -> bool:
    kind = connection.execute("select type from duckdb_databases() where database_name = ?", [catalog]).fetchall()
    return kind == [("postgres",)]


def columns_of(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> list[tuple[str, str]]:
    """Return name and type of a table's columns, in order; none if there is no such table."""
    return connection.execute(
        "select column_name, data_type from duckdb_columns() where database_name = ? and schema_name = ?"
        " and table_name = ? order by column_index",
        [warehouse_name(), schema, table],
    ).fetchall()


def stored_type(type_: str) -> str:
    """Return the type itself: DuckDB has all of its types."""
    return type_


def relations(connection: duckdb.DuckDBPyConnection, catalog: str | None = None) -> dict[tuple[str, str], str]:
    """Return the tables and views of the warehouse.

    Args:
        connection: one to which it is attached.
        catalog: the name there; default `warehouse_name()`.

    Returns:
        `table` or `view`, by (schema, name), sorted.
    """
    name = catalog or warehouse_name()
    tables = (
        "select schema_name, table_name from duckdb_tables() where database_name = ? and not internal and not temporary"
    )
    views = "select schema_name, view_name from duckdb_views() where database_name = ? and not internal"
    if _is_postgres(connection, name):  # DuckDB lists its views as tables
        views = f"select schemaname, viewname from {sql.identifier(name)}.pg_catalog.pg_views"
        views += " where ? is not null and schemaname not in ('pg_catalog', 'information_schema')"
    found = dict.fromkeys(connection.execute(tables, [name]).fetchall(), "table")
    found |= dict.fromkeys(connection.execute(views, [name]).fetchall(), "view")
    return dict(sorted(found.items()))


def count_rows(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
    """Count the rows of every table, excluding views.

    `count(*)` reads no column data: on a checkpointed table it costs milliseconds at any size, and unlike
    `duckdb_tables().estimated_size` it is exact after deletes.

    Args:
        connection: opened by this module, so that the catalog is `warehouse_name()`.

    Returns:
        Row counts by (schema, table), sorted.
    """
    counts: dict[tuple[str, str], int] = {}
    for schema, table in (one for one, kind in relations(connection).items() if kind == "table"):
        name = sql.identifier(warehouse_name(), schema, table)
        row = connection.execute(f"select count(*) from {name}").fetchone()
        counts[schema, table] = row[0] if row else 0
    return counts
