"""The warehouse: what is being built, what is published, the build graph between them.

python -m include.warehouse show | releases | rollback ID | restore [ID] | copy-from TARGET
"""

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager

import duckdb

from include.settings import warehouse_name
from include.warehouse.builds import (
    Node,
    check_current,
    check_not_older,
    drop_unknown,
    loads,
    record_load,
    recorded,
    revert_unpublished,
)
from include.warehouse.connection import columns_of, drop_table, open_read_only, relations
from include.warehouse.errors import (
    DiskFullError,
    NotReadyError,
    PublishError,
    UnknownReleaseError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseLockedError,
)
from include.warehouse.paths import (
    artifacts_dir,
    published_path,
    release_id,
    releases_dir,
    run_artifacts_dir,
    use_warehouse,
    warehouse_dir,
    working_path,
)
from include.warehouse.target import Check, Release, open_release, size_text, target

__all__ = [
    "DiskFullError",
    "Node",
    "NotReadyError",
    "PublishError",
    "Release",
    "UnknownReleaseError",
    "WarehouseCorruptError",
    "WarehouseError",
    "WarehouseLockedError",
    "artifacts_dir",
    "attach_statements",
    "begin_turn",
    "can_be_sandboxed",
    "check_current",
    "check_not_older",
    "columns_of",
    "drop_table",
    "drop_unknown",
    "end_turn",
    "how_to_open",
    "list_releases",
    "loads",
    "open_read_only",
    "open_release",
    "open_working",
    "publish",
    "published_location",
    "published_path",
    "published_release",
    "published_version",
    "record_load",
    "recorded",
    "relations",
    "release_id",
    "releases_dir",
    "replace_table",
    "restore",
    "revert_unpublished",
    "rollback",
    "run_artifacts_dir",
    "size_text",
    "stored_type",
    "use_warehouse",
    "warehouse_dir",
    "warehouse_name",
    "working_path",
]


def open_working(timeout_seconds: float | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Open what is being built, for writing. See `Target`, as for all functions here."""
    return target().open_working(timeout_seconds)


def replace_table(connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]) -> None:
    """Make a table empty, with these columns."""
    target().replace_table(connection, schema, table, columns)


def stored_type(type_: str) -> str:
    """Return the type of a column that is created with a DuckDB type."""
    return target().stored_type(type_)


def begin_turn() -> bool:
    """Wait until no other task writes, if only one can; return whether that is so."""
    return target().begin_turn()


def end_turn() -> None:
    """Let the next task write."""
    target().end_turn()


def attach_statements(release: Release | None = None) -> list[str]:
    """Return the SQL that attaches a release, by default the published one."""
    return target().attach_statements(release)


def can_be_sandboxed() -> bool:
    """Return whether other people's SQL can be run on it safely."""
    return target().can_be_sandboxed()


def publish(run_id: str, check: Check, clean: Check = lambda connection: None) -> Release:
    """Take a release and switch readers to it."""
    return target().publish(run_id, check, clean)


def rollback(release_or_run_id: str) -> Release:
    """Switch readers to a kept release."""
    return target().rollback(release_or_run_id)


def restore(release_or_run_id: str | None = None) -> str:
    """Replace what is being built with a kept release."""
    return target().restore(release_or_run_id)


def list_releases() -> list[Release]:
    """Return the kept releases, newest first."""
    return target().list_releases()


def published_release() -> Release | None:
    """Return the published release, or None before the first publish."""
    return target().published_release()


def published_version() -> Hashable | None:
    """Return what changes with each publish and rollback, or None before the first publish."""
    return target().published_version()


def how_to_open() -> str:
    """Return how a person opens what is published."""
    return target().how_to_open()


def published_location() -> str:
    """Return where readers find what is published, for messages."""
    return target().published_location()
