"""Whether the warehouse's disk has space for the next runs."""

import shutil
from dataclasses import dataclass

from include.warehouse import paths
from include.warehouse.errors import size_text

FREE_PERCENT = 5


@dataclass(frozen=True)
class Disk:
    """The disk of the warehouse's folder, in bytes.

    Attributes:
        shortage: as `shortage` returns it.
    """

    free: int
    total: int
    shortage: str


def look() -> Disk | None:
    """Return the state of the warehouse's disk; None before there is a folder."""
    folder = paths.warehouse_dir()
    if not folder.exists():
        return None
    usage = shutil.disk_usage(folder)
    return Disk(usage.free, usage.total, shortage())


def shortage() -> str:
    """Return what is wrong if the disk fills, in one line; empty if it has enough space.

    A run needs about twice the working database: its load, and the copy that becomes the release.
    """
    folder = paths.warehouse_dir()
    if not folder.exists():
        return ""
    usage, working = shutil.disk_usage(folder), paths.working_path()
    needed = 2 * working.stat().st_size if working.exists() else 0
    if usage.free >= max(needed, usage.total * FREE_PERCENT // 100):
        return ""
    return (
        f"The disk of {folder} has {size_text(usage.free)} left of {size_text(usage.total)}, and a run needs about "
        f"{size_text(needed)}. Free some space, lower WAREHOUSE_KEEP_RELEASES or enlarge the disk before runs fail."
    )
