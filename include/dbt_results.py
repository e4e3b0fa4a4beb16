"""What a dbt command left behind: its results, kept with the run, and the rows that failed its tests."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import duckdb

from include import warehouse

log = logging.getLogger(__name__)

ROWS_SHOWN = 5


def keep(target_dir: Path, run_id: str, name: str) -> Path | None:
    """Copy `run_results.json` to the run's artifacts.

    Args:
        target_dir: dbt's target folder.
        run_id: the run whose artifacts these are.
        name: the file's name among them, without its ending.

    Returns:
        The copy, or None where dbt stopped before it wrote results.
    """
    results = target_dir / "run_results.json"
    if not results.exists():
        return None
    folder = warehouse.artifacts_dir() / warehouse.snapshot_id(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(results, folder / f"{name}.json"))


def failing_rows(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Run each failed data test's own SQL again and return its first rows.

    Args:
        results: a `run_results.json`.

    Returns:
        Up to `ROWS_SHOWN` rows, as column and value, by test name.

    Raises:
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    failed = {
        result["unique_id"].split(".")[2]: result["compiled_code"]
        for result in json.loads(results.read_text())["results"]
        if result["unique_id"].startswith("test.") and result["status"] in ("fail", "warn") and result["compiled_code"]
    }
    if not failed:
        return {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with warehouse.open_working() as con:
        for test, sql in failed.items():
            try:
                cursor = con.execute(f"from ({sql}) limit {ROWS_SHOWN}")
            except duckdb.Error as error:
                log.warning("%s: its failing rows cannot be shown: %s", test, error)
                continue
            names = [column[0] for column in cursor.description or []]
            rows[test] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return rows


def tell(target_dir: Path, run_id: str, name: str) -> None:
    """Keep a command's results, and log the first rows of each test that failed.

    Args:
        target_dir: dbt's target folder.
        run_id: the run whose artifacts these are.
        name: the file's name among them, without its ending.
    """
    if kept := keep(target_dir, run_id, name):
        for test, rows in failing_rows(kept).items():
            for row in rows:
                log.error("%s: failing row: %s", test, ", ".join(f"{key}={value}" for key, value in row.items()))
