"""Tables of a published release as Parquet and CSV files, for readers on other machines.

A file is written when it is first asked for, from the release's own file, which no run ever touches, and kept until
the release is gone, its run has published again, or the space is needed.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import duckdb

from include.errors import is_disk_full
from include.sql import identifier, literal, parquet_type
from include.warehouse import paths
from include.warehouse.connection import time_limit
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog.query import FORMULA, NUMBER, memory_bytes

FORMATS = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8"}
MASK = "•••"
SECONDS = 600.0
MAX_BYTES = 20 * 2**30

_PART = ".part-"
_OPTIONS = {"parquet": "(format parquet, compression zstd)", "csv": "(format csv, header)"}

_writing = threading.BoundedSemaphore(2)
_locks: dict[Path, threading.Lock] = {}


class FileError(Exception):
    """A file cannot be offered; the message is for whoever asked for it."""


class FileBusyError(FileError):
    """Too many files are being written."""


def files_dir() -> Path:
    """Return the folder of the written files: `WAREHOUSE_FILES_DIR`, by default `files` in the warehouse's folder."""
    return Path(os.environ.get("WAREHOUSE_FILES_DIR") or paths.warehouse_dir() / "files")


def table_file(release: Release, schema: str, table: str, kind: str, masked: Sequence[str] = ()) -> Path:
    """Return a file with all rows of a table, and write it first if need be.

    In CSV, text that a spreadsheet would run as a formula gets an apostrophe in front, as on the query page.

    Args:
        release: a kept release.
        schema: the table's schema.
        table: a table or view of it.
        kind: one of `FORMATS`.
        masked: columns whose values are replaced by `MASK`, except NULL.

    Raises:
        FileError: the warehouse is encrypted, the disk is full, or writing takes too much memory or time.
        FileBusyError: other files are being written; a retry may succeed.
        duckdb.Error: the release cannot be read.
    """
    if target().encrypts:
        raise FileError(
            "The warehouse is encrypted, and these files would not be. Read the published database instead."
        )
    path = files_dir() / _folder(release) / f"{schema}.{table}{'.masked' if masked else ''}.{kind}"
    with _locks.setdefault(path, threading.Lock()):
        if not path.exists():
            if not _writing.acquire(timeout=30):
                raise FileBusyError("Other files are being written. Try again in a minute.")
            try:
                _write(release, schema, table, kind, masked, path)
            finally:
                _writing.release()
    os.utime(path, (time.time(), path.stat().st_mtime))  # read now, whatever the file system records
    return path


def columns_of(release: Release, schema: str, table: str) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        duckdb.Error: the release has no such table, or cannot be read.
    """
    with target().open_release(release) as connection:
        return [name for name, _ in _columns(connection, schema, table)]


def _write(release: Release, schema: str, table: str, kind: str, masked: Sequence[str], path: Path) -> None:
    try:
        make_room()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=_PART, dir=path.parent) as part,
            target().open_release(release) as connection,
        ):
            connection.execute(f"set memory_limit = '{memory_bytes()}B'")
            connection.execute(f"set temp_directory = {literal(part)}")
            connection.execute("set threads = 1")
            with time_limit(connection, SECONDS):
                rows = _select(connection, schema, table, kind, masked)
                connection.execute(f"copy ({rows}) to {literal(f'{part}/file')} {_OPTIONS[kind]}")
            Path(part, "file").rename(path)
    except duckdb.InterruptException:
        raise FileError(f"Writing this file takes more than {SECONDS:g} s. Query the part that you need.") from None
    except (OSError, duckdb.Error) as error:
        if is_disk_full(str(error)):
            raise FileError(f"No space left in {files_dir()} for this file. Free some space, then try again.") from None
        if isinstance(error, duckdb.ConversionException):  # its text has the value
            raise FileError(
                "A value does not fit into Parquet, such as an integer of 39 digits: take the CSV."
            ) from None
        if isinstance(error, duckdb.OutOfMemoryException):
            raise FileError("Writing this file takes too much memory. Query the part that you need.") from None
        raise


def _select(connection: duckdb.DuckDBPyConnection, schema: str, table: str, kind: str, masked: Sequence[str]) -> str:
    columns = []
    for column, type_ in _columns(connection, schema, table):
        value = name = identifier(column)
        if column in masked:
            value = f"if({name} is null, null, {literal(MASK)})"
        elif kind == "parquet" and parquet_type(type_) != type_:
            value = f"cast({name} as {parquet_type(type_)})"
        elif kind == "csv" and not NUMBER.fullmatch(type_):
            starts = ", ".join(literal(one) for one in FORMULA)
            text = f"cast({name} as varchar)"
            value = f"if(left({text}, 1) in ({starts}), '''' || {text}, {text})"
        columns.append(f"{value} as {name}")
    return f"select {', '.join(columns)} from {identifier(schema, table)}"


def _columns(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in connection.execute(f"describe {identifier(schema, table)}").fetchall()]


def _folder(release: Release) -> str:
    # A run that is cleared publishes again, under the same id.
    return f"{release.id}.{release.created_at:%Y%m%d%H%M%S%f}"


def make_room() -> None:
    """Remove the files of releases that are gone, then those that nobody has read for longest."""
    kept = {_folder(one) for one in target().list_releases()}
    files: list[tuple[float, int, Path]] = []
    for folder in files_dir().glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
        for part in folder.glob(f"{_PART}*"):  # of a killed process
            if part.stat().st_mtime < time.time() - 2 * SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        for file in folder.glob("[!.]*"):
            with suppress(OSError):
                files.append((file.stat().st_atime, file.stat().st_size, file))
    size = sum(one[1] for one in files)
    for _, own, file in sorted(files):
        if size <= MAX_BYTES:
            break
        file.unlink(missing_ok=True)
        size -= own
