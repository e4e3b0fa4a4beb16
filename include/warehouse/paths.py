"""Paths of the warehouse files, the only place that knows them. The environment is read on each call."""

import hashlib
import os
import re
from pathlib import Path
from typing import cast

from include.settings import REPOSITORY_ROOT, default_warehouse, warehouse_name
from include.warehouse.errors import WarehouseError

_PLAIN = re.compile(r"[\w.+@~/-]+")


def use_warehouse(name: str) -> None:
    """Switch this process and its children to a warehouse; dbt's profile reads the same variables.

    The project's own warehouse is in `WAREHOUSE_DIR` itself, any other in a subfolder of its name.

    Args:
        name: the warehouse's name, also the id of the DAG that fills it.
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
    found = (REPOSITORY_ROOT / Path(folder).expanduser()).resolve()
    return found if warehouse_name() == default_warehouse() else found / warehouse_name()


def working_path() -> Path:
    """Return the working database: written by one task at a time, and read by nothing else."""
    return warehouse_dir() / f"{warehouse_name()}.duckdb"


def published_path() -> Path:
    """Return the published database: what readers open, read-only."""
    return warehouse_dir() / "published" / f"{warehouse_name()}.duckdb"


def releases_dir() -> Path:
    """Return the folder of the kept releases, one file each; by its old name until `locks.releases_lock` renames it."""
    folder, old = warehouse_dir() / "releases", old_releases_dir()
    return old if old.exists() and not folder.exists() else folder


def old_releases_dir() -> Path:
    """Return what the folder of the kept releases was called before."""
    return warehouse_dir() / "snapshots"


def release_path(release_id: str) -> Path:
    """Return the file of a kept release, which need not exist.

    Args:
        release_id: as returned by `release_id`.
    """
    return releases_dir() / f"{release_id}.duckdb"


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: not in place, where a full disk or a kill would leave half of it.

    An object store shows a file once it is complete.
    """
    written = path if "://" in str(path) else path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(text)
    if written != path:
        written.replace(path)


def waiting_dir() -> Path:
    """Return the folder of the release that waits for a person, in a file as those of the kept releases."""
    return releases_dir() / "waiting"


def artifacts_dir() -> Path:
    """Return the folder of the runs' dbt results, load summaries and manifests.

    It is in the warehouse's folder, or, for workers that share no disk, below the URL in `WAREHOUSE_ARTIFACTS`.
    """
    if url := os.environ.get("WAREHOUSE_ARTIFACTS"):
        from upath import UPath  # lazily: with fsspec's s3fs, it is in a lock file of its own

        # It has the methods of a Path that artifacts are read and written with.
        return cast(Path, UPath(url, use_listings_cache=False) / warehouse_name())
    return warehouse_dir() / "artifacts"


def run_artifacts_dir(run_id: str) -> Path:
    """Return the folder of a run's artifacts, which need not exist."""
    return artifacts_dir() / release_id(run_id)


def release_id(run_id: str) -> str:
    """Return the release id of a run: readable, deterministic, safe as a file name; idempotent.

    A run id that has to be altered gets a hash of the original appended, so that no two runs share an id.

    Args:
        run_id: for instance `manual__2026-11-23T09:40:00+00:00`.

    Raises:
        ValueError: the run id is empty.
    """
    if not run_id:
        raise ValueError("A release needs a run id; this one is empty.")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_id)[:100].strip("-.")
    if slug == run_id:
        return slug
    return f"{slug[:91]}-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}".lstrip("-")
