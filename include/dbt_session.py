"""dbt commands one after another in one process: they share the parsed project and the open database.

A process that runs several tasks (plugins/resident_process.py) calls `start` once. Without it, nothing here does
anything, and each command parses what has changed, and closes the database at its end. Each command has an adapter of
its own, so it knows no relations from before.
"""

import time

from include.warehouse.targets import target

_active = False
_open_since: float | None = None  # on time.monotonic()
_first_in_line: str | None = None


def start() -> None:
    """Keep the parsed project and the open database from now on."""
    global _active
    from include.patches import dbt_kept_manifest, dbt_quiet_events, dbt_secrets, dbt_templates

    if not _active:
        _active = True
        for patch in (dbt_secrets, dbt_quiet_events, dbt_templates, dbt_kept_manifest):
            patch.apply()


def is_active() -> bool:
    """Return whether the database stays open between commands."""
    return _active


def keep_database() -> None:
    """Leave the database open for the next command."""
    global _open_since
    _open_since = _open_since or time.monotonic()


def set_first_in_line(run_id: str) -> None:
    """Remember that no other run has loaded after this one, until the database is closed."""
    global _first_in_line
    _first_in_line = run_id


def is_first_in_line(run_id: str) -> bool:
    """Return whether that is known, and still true, as the database has been open since."""
    return _open_since is not None and _first_in_line == run_id


def close_database() -> None:
    """Close the database that dbt commands have left open, if any."""
    global _open_since, _first_in_line
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    _open_since = _first_in_line = None
    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]


def rest(after: float = 0) -> None:
    """Close the database, and let others write.

    Args:
        after: not if it has been open for fewer seconds.
    """
    if not after or (_open_since is not None and time.monotonic() >= _open_since + after):
        close_database()
        target().end_turn()
