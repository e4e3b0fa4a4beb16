"""Opening the warehouse's databases: the working one to write, a published or kept one to read."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb

from include import sql
from include.settings import warehouse_name
from include.warehouse import locks, paths
from include.warehouse.errors import WarehouseCorruptError, WarehouseError, first_line, is_damage

logger = logging.getLogger(__name__)

# DuckDB makes a new file by three writes of 4096 bytes; a process killed between them leaves one of these sizes.
_UNFINISHED_SIZES = (0, 4096, 8192)


def open_working(timeout_seconds: float | None = None) -> duckdb.DuckDBPyConnection:
    """Open the working database to write, and create it (and its folder) where it is missing.

    Where `WAREHOUSE_ENCRYPTION_KEY` is set, the file is encrypted with it.

    Waits for a lock that another process holds, and logs once for whom. A file whose creation was cut short by a kill
    holds nothing yet: it is made anew.

    Args:
        timeout_seconds: how long to wait; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.

    Returns:
        A connection; close it to let the next writer in.

    Raises:
        WarehouseLockedError: the lock was still held after the bound; names the holder.
        WarehouseCorruptError: the file is damaged; tells how to go on.
        WarehouseError: this user may not write it.
        duckdb.Error: anything else that DuckDB reports, unchanged: a full disk, a newer file format.
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
    # Of those who come here together one makes the file anew and the others find it. No waiting for DuckDB's lock in
    # here: publish takes the two locks in the other order.
    with locks.snapshots_lock(), contextlib.suppress(locks.LockHeldError):
        try:
            return connect(path)
        except WarehouseCorruptError:
            if _is_unfinished(path):
                logger.warning("Making %s anew: its creation was cut short and it holds nothing", path)
                path.unlink()
            return connect(path)
    return locks.wait_for_lock(lambda: connect(path), path, timeout_seconds, advice)


def connect(path: Path) -> duckdb.DuckDBPyConnection:
    """Open a database file to write, as `open_working` does, but without waiting for a lock or for its making."""
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
            f"The working database {path} is damaged ({first_line(error)}). Readers go on with the published file. "
            "Move the damaged one aside and put a copy of what readers see in its place: make restore (or python -m "
            "include.warehouse restore). Then clear `load` with downstream."
        ) from error


def _not_writable(path: Path, reason: str) -> WarehouseError:
    return WarehouseError(
        f"The working database {path} cannot be written by this user ({reason}). Allow it, or set WAREHOUSE_DIR to "
        "another folder."
    )


def _encryption_key() -> str:
    return os.environ.get("WAREHOUSE_ENCRYPTION_KEY", "")


def _connect_encrypted(path: Path) -> duckdb.DuckDBPyConnection:
    # DuckDB takes a key only where a file is attached, and encrypts what it writes only with the OpenSSL of httpfs.
    connection = duckdb.connect(":memory:", config={"temp_directory": f"{path}.tmp", "temp_file_encryption": True})
    try:
        import duckdb_extensions  # here, as only an encrypted warehouse has a use for it

        duckdb_extensions.import_extension("httpfs", con=connection)  # for dbt too, which finds it where this puts it
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
    """Return the SQL that attaches a database file; it can contain the encryption key.

    Args:
        path: the file.
        options: of DuckDB's ATTACH.
        name: the catalog name; default the one that the views inside expect.
    """
    if key := _encryption_key():
        options = (*options, f"encryption_key {sql.literal(key)}")
    listed = f" ({', '.join(options)})" if options else ""
    return f"attach {sql.literal(path)} as {name or warehouse_name()}{listed}"


def write_ahead_logs(path: Path) -> list[Path]:
    """Return the WAL files beside a database file: what they hold is not in the file itself."""
    return sorted(path.parent.glob(f"{path.name}.wal*"))


def _is_unfinished(path: Path) -> bool:
    # Another process may be making or removing it, so it may be gone by now.
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size in _UNFINISHED_SIZES and not write_ahead_logs(path)
    return False


@contextlib.contextmanager
def open_read_only(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a published or kept database to read, under the catalog name that its views expect.

    It is attached to a fresh in-memory instance: `duckdb.connect(path)` shares the instance that this process may
    already have for the path, which after a publish still shows the file of before.

    Args:
        path: any database file.

    Yields:
        A connection with the file as its default catalog.

    Raises:
        duckdb.Error: the file is missing, damaged or may not be read.
    """
    with duckdb.connect(":memory:") as reader, attached(reader, path):
        yield reader


@contextlib.contextmanager
def attached(reader: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    """Do what `open_read_only` does for one of many files: a new instance costs 10 ms and more, attaching 0.5 ms.

    Args:
        reader: an in-memory connection.
        path: the file that is the default catalog within the context.

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


def count_rows(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
    """Count the rows of every table (views left out).

    `count(*)` reads no column data: on a checkpointed table it costs milliseconds at any size, and unlike
    `duckdb_tables().estimated_size` it is exact after deletes.

    Args:
        connection: one of this module's, so that the catalog is `warehouse_name()`.

    Returns:
        The number of rows by (schema, table), in that order.
    """
    tables = connection.execute(
        "select schema_name, table_name from duckdb_tables() where database_name = ? and not temporary order by all",
        [warehouse_name()],
    ).fetchall()
    counts: dict[tuple[str, str], int] = {}
    for schema, table in tables:
        name = sql.identifier(warehouse_name(), schema, table)
        row = connection.execute(f"select count(*) from {name}").fetchone()
        counts[schema, table] = row[0] if row else 0
    return counts
