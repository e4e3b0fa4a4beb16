"""Daily cleaning of what runs leave behind; the limits are here and in `KEEP_DAYS` (airflow.env).

logs                       by age
artifacts                  those of the last runs (artifacts.prune)
previews, downloads        by age; of releases that are gone
the target's own           files that no release of a lake needs
"""

import os
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from include.runs import artifacts
from include.settings import airflow_env
from include.warehouse.targets import target


def keep_days() -> int:
    """Return how long logs and Airflow's metadata of ended runs are kept: `KEEP_DAYS`, by default from airflow.env.

    Raises:
        ValueError: it is not a whole number of at least 1.
    """
    value = os.environ.get("KEEP_DAYS") or airflow_env()["KEEP_DAYS"]
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"KEEP_DAYS must be a whole number of at least 1, not {value!r}.")
    return int(value)


def clean(logs: Path) -> dict[str, int]:
    """Remove what is not needed any more; return how many files or folders of each kind went.

    Args:
        logs: Airflow's folder of logs. Its processes rotate their own, which are directly in it.
    """
    removed = {"logs": _clean_logs(logs, time.time() - keep_days() * 86_400)}
    removed["artifacts"] = artifacts.prune()
    removed["previews"] = len(_call("include.change.preview", "expire") or ())
    _call("include.warehouse_catalog.files", "make_room")
    removed["lake files"] = target().tidy()
    return removed


def _clean_logs(logs: Path, before: float) -> int:
    """Remove old files, and the folders that are left empty."""
    removed = 0
    for folder, _, names in os.walk(logs, topdown=False):
        if Path(folder) == logs:
            continue
        for file in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):
                if file.lstat().st_mtime < before:
                    file.unlink()
                    removed += 1
        with suppress(OSError):  # not empty; or a task is about to write there, and creates it again
            if Path(folder).stat().st_mtime < before or not any(Path(folder).iterdir()):
                Path(folder).rmdir()
    return removed


def _call(module: str, function: str) -> Any:
    """Call a function of an optional part, if it has not been deleted."""
    try:
        return getattr(import_module(module), function)()
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or " "):
            raise
        return None
