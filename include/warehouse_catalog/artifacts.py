"""What the runs left among their artifacts: the load's summary, dbt's results, the rows that failed its tests."""

import json
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from include.warehouse import run_artifacts_dir

logger = logging.getLogger(__name__)

FAILED = ("fail", "error", "warn", "runtime error")
_TEST_KINDS = ("test.", "unit_test.")


@dataclass(frozen=True)
class Result:
    """How one dbt node fared in one task's last try.

    Attributes:
        task_id: the Airflow task.
        status: dbt's word: pass, fail, warn, error, skipped, success.
        failures: failing rows of a test, if it was a test that ran.
    """

    unique_id: str
    task_id: str
    status: str
    failures: int | None
    seconds: float
    message: str


@dataclass(frozen=True)
class TableLoad:
    """What the load made of one file."""

    rows_loaded: int
    rows_rejected: int


@dataclass(frozen=True)
class Load:
    """The load's summary.

    Attributes:
        loaded_at: ISO time, or empty where the load failed.
        error: why it failed, or empty. Can quote values of the files.
        rejected: the first rejected rows: table_name, file, line, column_name, reason, text.
    """

    run_id: str
    loaded_at: str
    seconds: float
    rows_loaded: int
    rows_rejected: int
    tables: dict[str, TableLoad]
    error: str
    rejected: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Failure:
    """The rows that failed one test.

    Attributes:
        rows: how many there are.
        columns: names of the sample's columns.
        sample: the first of them, values as text.
        sql: what found them.
    """

    rows: int | None
    columns: tuple[str, ...]
    sample: tuple[tuple[str | None, ...], ...]
    sql: str


def load_of(run_id: str) -> Load | None:
    """Return the summary of a run's load, or None where it left none."""
    path = run_artifacts_dir(run_id) / "load.json"
    try:
        return _load(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        _unreadable(path, error)
        return None


def results_of(run_id: str) -> list[Result]:
    """Return how every dbt node of a run fared."""
    found: list[Result] = []
    try:
        entries = sorted(run_artifacts_dir(run_id).glob("*.json"))
    except OSError:
        return []
    for path in entries:
        if path.name == "load.json" or path.name.endswith(".failures.json"):
            continue
        try:
            found += _results(path, path.stat().st_mtime_ns)
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            _unreadable(path, error)
    return found


def test_results_of(run_id: str) -> dict[str, Result]:
    """Return the results of a run's data and unit tests, by unique id."""
    return {one.unique_id: one for one in results_of(run_id) if one.unique_id.startswith(_TEST_KINDS)}


def failure_of(run_id: str, result: Result) -> Failure:
    """Return the failing rows that a test's task kept, and the SQL that finds them.

    Args:
        run_id: the run.
        result: the test's result in it.
    """
    folder = run_artifacts_dir(run_id)
    sql = compiled_sql(run_id, result)
    path = folder / f"{result.task_id}.failures.json"
    try:
        kept = json.loads(path.read_text()).get(result.unique_id) or {}
        columns = tuple(str(name) for name in kept.get("columns") or ())
        sample = tuple(
            tuple(None if value is None else str(value) for value in row) for row in kept.get("sample") or ()
        )
        return Failure(kept.get("rows", result.failures), columns, sample, sql)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        _unreadable(path, error)
        return Failure(result.failures, (), (), sql)


def compiled_sql(run_id: str, result: Result) -> str:
    """Return the SQL that dbt ran for a result, or an empty string."""
    path = run_artifacts_dir(run_id) / f"{result.task_id}.json"
    try:
        raw = json.loads(path.read_text())
        return next(
            (str(one.get("compiled_code") or "") for one in raw["results"] if one["unique_id"] == result.unique_id), ""
        ).strip()
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        _unreadable(path, error)
        return ""


def without_values(reason: str) -> str:
    """Return why a row was rejected up to the first quotation mark: what follows can be a value of the row."""
    return re.split(r"[\"'`]", reason, maxsplit=1)[0].strip().rstrip(":")


@lru_cache(maxsize=512)
def _load(path: Path, _modified_ns: int) -> Load:
    raw = json.loads(path.read_text())
    tables = {
        str(name): TableLoad(int(table.get("rows_loaded") or 0), int(table.get("rows_rejected") or 0))
        for name, table in (raw.get("tables") or {}).items()
    }
    return Load(
        run_id=str(raw.get("run_id") or ""),
        loaded_at="" if raw.get("error") else str(raw.get("ended_at") or ""),
        seconds=float(raw.get("seconds") or 0),
        rows_loaded=int(raw.get("rows_loaded") or 0),
        rows_rejected=int(raw.get("rows_rejected") or 0),
        tables=tables,
        error=str(raw.get("error") or ""),
        rejected=tuple(dict(row) for row in raw.get("rejected") or ()),
    )


@lru_cache(maxsize=16384)
def _results(path: Path, _modified_ns: int) -> tuple[Result, ...]:
    task_id = path.name.removesuffix(".json")
    return tuple(
        Result(
            unique_id=str(raw["unique_id"]),
            task_id=task_id,
            status=str(raw["status"]).lower(),
            failures=raw.get("failures"),
            seconds=float(raw.get("execution_time") or 0),
            message=str(raw.get("message") or ""),
        )
        for raw in json.loads(path.read_text())["results"]
    )


def _unreadable(path: Path, error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        logger.warning("%s cannot be read: %s", path, error)
