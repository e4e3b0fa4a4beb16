"""Where the warehouse files are. Every other module asks here, and the environment is read at each call."""

import hashlib
import os
import re
from pathlib import Path

from include.settings import REPOSITORY_ROOT, warehouse_name
from include.warehouse.errors import WarehouseError

_PLAIN = re.compile(r"[\w.+@~/-]+")


def use_warehouse(name: str) -> None:
    """Make a warehouse that of this process and of those that it starts; dbt's profile reads the same variables.

    The project's own warehouse has the folder `WAREHOUSE_DIR` itself, any other one a folder of its name inside.

    Args:
        name: the warehouse's name, which is also the id of the DAG that fills it.
    """
    if name != warehouse_name():
        os.environ["WAREHOUSE_DIR"] = str(warehouse_dir() / name)
        os.environ["WAREHOUSE_NAME"] = name


def warehouse_dir() -> Path:
    """Return the folder of all warehouse files: `WAREHOUSE_DIR`, default `data`; relative to the repository root.

    Raises:
        WarehouseError: its name has a character that make, dlt or DuckDB reads as something else.
    """
    folder = os.environ.get("WAREHOUSE_DIR") or "data"
    if not _PLAIN.fullmatch(folder):
        raise WarehouseError(f"WAREHOUSE_DIR may have letters, digits and . _ - + @ ~ / only, not {folder!r}.")
    return (REPOSITORY_ROOT / Path(folder).expanduser()).resolve()


def working_path() -> Path:
    """Return the working database: written by tasks, one at a time, and read by nobody else."""
    return warehouse_dir() / f"{warehouse_name()}.duckdb"


def published_path() -> Path:
    """Return the published database: what readers open, read-only."""
    return warehouse_dir() / "published" / f"{warehouse_name()}.duckdb"


def snapshots_dir() -> Path:
    """Return the folder of the kept snapshots, one file for each."""
    return warehouse_dir() / "snapshots"


def snapshot_path(snapshot_id: str) -> Path:
    """Return the file of one snapshot, which need not exist.

    Args:
        snapshot_id: as `snapshot_id` makes it from a run id.
    """
    return snapshots_dir() / f"{snapshot_id}.duckdb"


def artifacts_dir() -> Path:
    """Return the folder where runs keep their dbt results, load summaries and docs."""
    return warehouse_dir() / "artifacts"


def run_artifacts_dir(run_id: str) -> Path:
    """Return the folder of one run's artifacts, which need not exist."""
    return artifacts_dir() / snapshot_id(run_id)


def snapshot_id(run_id: str) -> str:
    """Return the snapshot id of a run: readable, safe as a file name, always the same, and its own snapshot id.

    A run id that has to be changed for it gets a hash of the original, so that two runs don't share an id.

    Args:
        run_id: for instance `manual__2026-11-23T09:40:00+00:00`.

    Raises:
        ValueError: the run id is empty.
    """
    if not run_id:
        raise ValueError("A snapshot needs a run id, and this one is empty.")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_id)[:100].strip("-.")
    if slug == run_id:
        return slug
    return f"{slug[:91]}-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}".lstrip("-")
