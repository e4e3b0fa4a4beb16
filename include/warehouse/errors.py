"""What can go wrong, told to the person on call: the file, the cause, what readers see, what to do next."""

import duckdb

from include.errors import PipelineError, is_disk_full


class WarehouseError(PipelineError):
    """Base of the errors of this package."""


class WarehouseLockedError(WarehouseError):
    """Another process held a lock for longer than the bound."""

    retry_can_mend = True
    runbook = "The database is locked"


class WarehouseCorruptError(WarehouseError):
    """A database file is damaged."""

    runbook = "A database file is damaged"


class PublishError(WarehouseError):
    """A snapshot could not be made or did not pass its verification."""

    retry_can_mend = True
    runbook = "Publishing failed"


class DiskFullError(WarehouseError):
    """The warehouse's disk is full."""

    retry_can_mend = True
    runbook = "The disk is full"


class NotReadyError(WarehouseError):
    """The working database is not what may be published: not all of it was built and tested on its data."""

    runbook = "Publish says that the database is not ready"


class UnknownSnapshotError(WarehouseError):
    """No snapshot has this id or run id."""


def first_line(error: BaseException) -> str:
    """Return an error's first line: DuckDB appends stack traces to some of its messages."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_damage(error: duckdb.Error, path: str) -> bool:
    """Tell whether DuckDB refused a file because its content is damaged, not for a lock, permissions or space.

    DuckDB has no error class for it (most are `IOException`), so the texts of 1.5 decide.

    Args:
        error: what opening the file raised.
        path: the file, taken out of the message first because its name may contain any of the words.
    """
    text = str(error).replace(path, "")
    if isinstance(error, duckdb.OutOfMemoryException) or is_disk_full(text) or "Permission denied" in text:
        return False
    signs = ("not a valid DuckDB database", "Could not read enough bytes", "orrupt", "Failure while replaying WAL")
    return isinstance(error, duckdb.SerializationException) or any(sign in text for sign in signs)
