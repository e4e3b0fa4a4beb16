"""Whether the last backup of the compose deployment is old."""

import os
import time

from include.warehouse import paths


def overdue() -> str:
    """Return what is wrong, in one line, if the last backup is older than `BACKUP_DAYS`; empty if it is not set.

    Raises:
        ValueError: it is not a number of days.
    """
    limit = os.environ.get("BACKUP_DAYS")
    if not limit:
        return ""
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f"BACKUP_DAYS must be a whole number of at least 1, not {limit!r}.")
    try:
        age = time.time() - (paths.warehouse_dir() / "artifacts" / "last-backup").stat().st_mtime
    except FileNotFoundError:
        return f"There is no backup yet, and BACKUP_DAYS={limit}. Make one: make backup DIR=…"
    if age <= int(limit) * 86_400:
        return ""
    return f"The last backup is {age / 86_400:.1f} days old, and BACKUP_DAYS={limit}. Make one: make backup DIR=…"
