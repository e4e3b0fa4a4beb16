"""The warehouse's errors. Messages are for the person on call: the file, the cause, what to do next."""

import duckdb

from include.errors import PipelineError, is_disk_full


class WarehouseError(PipelineError):
    """Base of the errors of this package."""


class WarehouseLockedError(WarehouseError):
    """Another process still held a lock at the timeout."""

    retryable = True
    runbook = "The database is locked"


class WarehouseCorruptError(WarehouseError):
    """A database file is damaged."""

    runbook = "A database file is damaged"


class PublishError(WarehouseError):
    """A release could not be made, or failed verification."""

    retryable = True
    runbook = "Publishing failed"


class DiskFullError(WarehouseError):
    """The warehouse's disk is full."""

    retryable = True
    runbook = "The disk is full"


class NotReadyError(WarehouseError):
    """The working database must not be published: not all of it was built and tested on its current data."""

    runbook = "Publish says that the database is not ready"


class UnknownReleaseError(WarehouseError):
    """No release has this id or run id."""


def first_line(error: BaseException) -> str:
    """Return an error's first line: DuckDB appends stack traces to some messages."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_damage(error: duckdb.Error, path: str) -> bool:
    """Return whether DuckDB refused a file because it is damaged, not because of a lock, permissions or space.

    DuckDB has no error class for damage (it is mostly `IOException`), so this matches the messages of 1.5 and 2.0.

    Args:
        error: raised by opening the file.
        path: the file; removed from the message first, as its name could match.
    """
    text = str(error).replace(path, "")
    if isinstance(error, duckdb.OutOfMemoryException) or is_disk_full(text) or "Permission denied" in text:
        return False
    signs = (
        *("not a valid DuckDB database", "Could not read enough bytes", "orrupt"),
        *("Failure while replaying WAL", "WAL was created for"),
    )
    return isinstance(error, duckdb.SerializationException) or any(sign in text for sign in signs)


def size_text(size_bytes: int) -> str:
    """Return a human-readable size: `12 B`, `1.5 MiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
