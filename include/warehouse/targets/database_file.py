"""Open DuckDB's files: the working one to write, published and kept ones to read, with or without a key."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb

from include import sql
from include.duckdb_session import open_duckdb
from include.settings import warehouse_name
from include.warehouse import guard, locks, paths
from include.warehouse.errors import WarehouseCorruptError, WarehouseError, first_line, is_damage

logger = logging.getLogger(__name__)

# DuckDB creates a file in three writes of 4096 bytes; a process killed between them leaves one of these sizes.
_UNFINISHED_SIZES = (0, 4096, 8192)


def encryption_key() -> str:
    """Return `WAREHOUSE_ENCRYPTION_KEY`, with which the files of an encrypted warehouse are encrypted; empty: none.

    Raises:
        WarehouseError: it has a character that DuckDB, dbt or their errors would garble, and so print.
    """
    key = os.environ.get("WAREHOUSE_ENCRYPTION_KEY", "")
    if not all(character.isascii() and character.isprintable() and character != "\\" for character in key):
        raise WarehouseError(
            "WAREHOUSE_ENCRYPTION_KEY may have printable ASCII characters only, and no backslash. Create one with: "
            "openssl rand -base64 32"
        )
    return key


def open_working(timeout_seconds: float | None, key: str) -> duckdb.DuckDBPyConnection:
    """Open the working database for writing, creating it (and its folder) if missing.

    Waits for a lock held by another process and logs the holder once. A file whose creation was interrupted by a kill
    is empty, so it is recreated.

    Args:
        timeout_seconds: how long to wait; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.
        key: encrypts the file; empty: none.

    Returns:
        A connection; close it to let the next writer in.

    Raises:
        WarehouseLockedError: the lock was still held at the timeout; names the holder.
        WarehouseCorruptError: the file is damaged; says how to proceed.
        WarehouseError: this user may not write the file.
        duckdb.Error: any other DuckDB error, unchanged: a full disk, a newer file format.
    """
    path = paths.working_path()
    guard.check_checkout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, str(error)) from error
    advice = (
        f"Readers should open the published file {paths.published_path()} instead. "
        "To let this task write, close that session or stop that process, then clear the task."
    )
    try:
        return locks.wait_for_lock(lambda: connect(path, key), path, timeout_seconds, advice)
    except WarehouseCorruptError:
        if not _is_unfinished(path):
            raise
    # If several processes get here at once, one recreates the file and the others find it. Don't wait for DuckDB's lock
    # here: publish takes the two locks in the opposite order.
    with locks.releases_lock(), contextlib.suppress(locks.LockHeldError):
        try:
            return connect(path, key)
        except WarehouseCorruptError:
            if _is_unfinished(path):
                logger.warning("Recreating %s: its creation was interrupted and it is empty", path)
                path.unlink()
            return connect(path, key)
    return locks.wait_for_lock(lambda: connect(path, key), path, timeout_seconds, advice)


def connect(path: Path, key: str) -> duckdb.DuckDBPyConnection:
    """Open a database file for writing like `open_working`, but without waiting for locks or recreating the file."""
    try:
        return _connect_encrypted(path, key) if key else open_duckdb(str(path))
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


def _connect_encrypted(path: Path, key: str) -> duckdb.DuckDBPyConnection:
    # DuckDB accepts a key only in ATTACH, and encrypts its writes only with the OpenSSL of httpfs.
    connection = open_duckdb(config={"temp_directory": f"{path}.tmp", "temp_file_encryption": True})
    try:
        import duckdb_extensions  # lazily: only encrypted warehouses need it

        duckdb_extensions.import_extension("httpfs", con=connection)  # installs it for dbt too
        connection.load_extension("httpfs")
        connection.execute(attach_statement(path, key=key))
        connection.execute(f"use {warehouse_name()}")
    except BaseException:
        connection.close()
        raise
    return connection


def attach_statement(path: Path, *options: str, key: str, name: str | None = None) -> str:
    """Return the SQL that attaches a database file; it may contain the encryption key.

    Args:
        path: the file.
        options: options for DuckDB's ATTACH.
        key: the encryption key; empty: the file is not encrypted.
        name: the catalog name; default the one its views expect.
    """
    if key:
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
def open_read_only(path: Path, key: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a published or kept database for reading, under the catalog name its views expect.

    It is attached to a fresh in-memory instance: `duckdb.connect(path, key)` would share an instance this process may
    already have for the path, which after a publish still shows the previous file.

    Args:
        path: any database file.
        key: its encryption key, if any.

    Yields:
        A connection with the file as its default catalog.

    Raises:
        duckdb.Error: the file is missing, damaged or not readable.
    """
    with open_duckdb() as reader, attached(reader, path, key):
        yield reader


@contextlib.contextmanager
def attached(reader: duckdb.DuckDBPyConnection, path: Path, key: str) -> Iterator[None]:
    """Like `open_read_only`, but for many files: a new instance costs over 10 ms, attaching 0.5 ms.

    Args:
        reader: an in-memory connection.
        path: the file to make the default catalog within the context.
        key: its encryption key; empty: none.

    Raises:
        duckdb.Error: as `open_read_only`.
    """
    reader.execute(attach_statement(path, "read_only", key=key))
    try:
        reader.execute(f"use {warehouse_name()}")
        yield
    finally:
        reader.execute("use memory")
        reader.execute(f"detach {warehouse_name()}")
