"""Read and write run artifacts: load summaries, dbt results, failing rows, the manifest.

artifacts/RUN/load-SOURCE.json       one per source
              TASK.json              dbt's run_results.json
              TASK.failures.json     the first rows that failed each of its tests
              TASK.error.json        why a task failed
              TASK.cost.json         seconds of CPU time that each of its tries took
              manifest.json.gz       dbt's manifest, if the run published
              semantic_manifest.json.gz  dbt's semantic models and metrics, if it published
              difference.json        what it changed for readers (include/change)
              gate.json              why its release had to wait for a person, who decided and why (include/change)
              shape.json             rows, NULLs and distinct values of what it published, and what is unusual
"""

import gzip
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from include.errors import storage_errors
from include.warehouse.paths import artifacts_dir, run_artifacts_dir, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json.gz"
SEMANTIC_MANIFEST = "semantic_manifest.json.gz"
FAILED = ("fail", "error", "warn", "runtime error")
_RUNS_KEPT = 400  # a year of daily runs
TEST_KINDS = ("test.", "unit_test.")
_LOAD, _FAILURES, _ERROR, _COST, _SHAPE = "load-", ".failures.json", ".error.json", ".cost.json", "shape.json"
_DIFFERENCE, _DECISION = "difference.json", "gate.json"
_SETTLED_NS = 2 * 10**9


@dataclass(frozen=True)
class Result:
    """The result of one dbt node in a task's last try.

    Attributes:
        task_id: the Airflow task.
        status: dbt's status: pass, fail, warn, error, skipped, success.
        failures: number of failing rows, for a test that ran.
        ended_at: ISO time; empty if it did not run.
        billed: bytes, where the engine says (BigQuery).
    """

    unique_id: str
    task_id: str
    status: str
    failures: int | None
    seconds: float
    message: str
    ended_at: str = ""
    billed: int | None = None


@dataclass(frozen=True)
class TableLoad:
    """The outcome of a load for one table.

    Attributes:
        file: the source file, the first ones of a drop folder, or empty.
        bytes: the size of the files read.
        files: how many files were read; of a drop folder, those that were new or changed.
        files_removed: files of a drop folder that were changed or withdrawn since the load before.
    """

    rows_loaded: int
    rows_rejected: int = 0
    file: str = ""
    bytes: int = 0
    files: int = 0
    files_removed: int = 0


@dataclass(frozen=True)
class Load:
    """The summary of a source's load.

    Attributes:
        load_id: dlt's load id.
        ended_at: ISO time.
        tables: by name.
        schema_changes: one line per column added, dropped or changed in type.
        rejected: the first rejected rows: table_name, file, line, column_name, reason, text.
        error: why the load failed, or empty.
    """

    run_id: str
    source: str
    load_id: str = ""
    ended_at: str = ""
    seconds: float = 0.0
    tables: dict[str, TableLoad] = field(default_factory=dict)
    schema_changes: tuple[str, ...] = ()
    rejected: tuple[dict[str, Any], ...] = ()
    error: str = ""

    @property
    def rows_loaded(self) -> int:
        """Rows loaded into all tables; 0 if the load failed."""
        return 0 if self.error else sum(table.rows_loaded for table in self.tables.values())

    @property
    def rows_rejected(self) -> int:
        """Rows rejected across all tables."""
        return sum(table.rows_rejected for table in self.tables.values())


@dataclass(frozen=True)
class Shape:
    """The shape of a published table.

    Attributes:
        columns: number of NULLs and approximate number of distinct values, by name; empty if they took too long.
    """

    rows: int
    columns: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Failure:
    """The rows that failed one test.

    Attributes:
        rows: number of failing rows.
        columns: column names of the sample.
        sample: the first rows, values as text.
        sql: the query that found them.
        row_columns: the tested table's columns, if the sample has only the tested one.
        rows_with: the table's first rows with those values.
    """

    rows: int | None
    columns: tuple[str, ...]
    sample: tuple[tuple[str | None, ...], ...]
    sql: str
    row_columns: tuple[str, ...] = ()
    rows_with: tuple[tuple[str | None, ...], ...] = ()


@dataclass(frozen=True)
class Error:
    """Why a task failed.

    Attributes:
        text: for the person on call.
        runbook: title of the section of docs/runbook.md to read.
        may_have_values: whether the text may contain values from rows.
        at: when.
    """

    text: str
    runbook: str
    may_have_values: bool
    at: datetime


def write_load(load: Load) -> Path:
    """Write a load's summary to a temporary file, so that a full disk surfaces before the load commits.

    Args:
        load: the summary.

    Returns:
        The temporary file; `keep` moves it into place.

    Raises:
        OSError: the file cannot be written.
    """
    folder = run_artifacts_dir(load.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{_LOAD}{load.source}.json.tmp"
    written.write_text(json.dumps(asdict(load), indent=2, default=str) + "\n")
    return written


def keep(written: Path) -> None:
    """Move a temporary file into place. A failure is only logged: the load it describes is already committed."""
    try:
        written.rename(written.with_suffix(""))
    except storage_errors() as error:
        logger.warning("%s could not be kept: %s", written, error)


def keep_results(results_file: Path, run_id: str, task_id: str, failures: dict[str, dict[str, Any]]) -> None:
    """Keep a dbt command's results, and the first rows of each test that failed or warned.

    Args:
        results_file: dbt's `run_results.json`.
        run_id: the run.
        task_id: the task, which names the files.
        failures: by unique id, with the keys of `Failure`.
    """
    folder = run_artifacts_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{task_id}.json", results_file.read_text())
    kept = folder / f"{task_id}{_FAILURES}"
    if failures:
        write_whole(kept, json.dumps(failures, indent=2, default=str) + "\n")
    else:
        kept.unlink(missing_ok=True)


def keep_manifest(manifest_file: Path, run_id: str) -> None:
    """Keep dbt's manifest, and the semantic manifest beside it, with the artifacts of the run published with it."""
    folder = run_artifacts_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    semantic = manifest_file.with_name("semantic_manifest.json")
    for file, kept in ((semantic, SEMANTIC_MANIFEST), (manifest_file, MANIFEST)):
        if file == manifest_file or file.exists():
            (folder / kept).write_bytes(gzip.compress(file.read_bytes(), compresslevel=3))


def was_published(run_id: str) -> bool:
    """Return whether a run has published."""
    return (run_artifacts_dir(run_id) / MANIFEST).exists()


def prune() -> int:
    """Remove the artifacts of the oldest runs; return of how many. In an object store, a lifecycle rule does that."""
    if "://" in str(artifacts_dir()):
        return 0
    found = (path for path in artifacts_dir().glob("*") if path.is_dir())
    old = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[_RUNS_KEPT:]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    return len(old)


def keep_shape(run_id: str, shape: dict[str, Shape], unusual: dict[str, str]) -> None:
    """Keep the shape of what a run published, by table, and what is unusual about it."""
    folder = run_artifacts_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {table: asdict(one) for table, one in shape.items()}
    (folder / _SHAPE).write_text(json.dumps({"unusual": unusual, "tables": tables}, indent=2) + "\n")


def shape_of(run_id: str) -> dict[str, Shape]:
    """Return the shape of what a run published, by table; empty if it is not known."""
    try:
        return {table: Shape(one["rows"], dict(one["columns"])) for table, one in _shape(run_id)["tables"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _unreadable(run_artifacts_dir(run_id) / _SHAPE, error)
        return {}


def unusual_in(run_id: str) -> dict[str, str]:
    """Return the tables that a run published with an unusual shape, and what is unusual about each."""
    return dict(_shape(run_id)["unusual"])


def _shape(run_id: str) -> dict[str, dict[str, Any]]:
    path = run_artifacts_dir(run_id) / _SHAPE
    try:
        kept = json.loads(path.read_text())
        return {name: dict(kept[name]) for name in ("unusual", "tables")}
    except storage_errors(ValueError, TypeError, KeyError) as error:
        _unreadable(path, error)
        return {"unusual": {}, "tables": {}}


def keep_difference(run_id: str, difference: str) -> None:
    """Keep what a run changed for readers, as JSON text."""
    write_whole(run_artifacts_dir(run_id) / _DIFFERENCE, difference)


def difference_of(run_id: str) -> str:
    """Return what a run changed for readers, as JSON text; empty if that is not known."""
    return _kept_text(run_id, _DIFFERENCE)


def keep_decision(run_id: str, decision: str) -> None:
    """Keep what was decided about a run's release, as JSON text."""
    write_whole(run_artifacts_dir(run_id) / _DECISION, decision)


def decision_of(run_id: str) -> str:
    """Return what was decided about a run's release, as JSON text; empty if it did not have to wait."""
    return _kept_text(run_id, _DECISION)


def _kept_text(run_id: str, name: str) -> str:
    path = run_artifacts_dir(run_id) / name
    try:
        return path.read_text()
    except storage_errors(ValueError) as error:
        _unreadable(path, error)
        return ""


def loads_of(run_id: str) -> list[Load]:
    """Return the summaries of a run's loads, by source."""
    folder = run_artifacts_dir(run_id)
    settled = _settled(folder)
    return list(_settled_loads(folder, settled)) if settled else _read_loads(folder)


@lru_cache(maxsize=512)
def _settled_loads(folder: Path, _modified_ns: int) -> tuple[Load, ...]:
    return tuple(_read_loads(folder))


def _read_loads(folder: Path) -> list[Load]:
    found = []
    for path in sorted(folder.glob(f"{_LOAD}*.json")):
        try:
            found.append(_load(path, path.stat().st_mtime_ns))
        except storage_errors(ValueError, AttributeError, TypeError, KeyError) as error:
            _unreadable(path, error)
    return found


def results_of(run_id: str) -> list[Result]:
    """Return the result of every dbt node in a run."""
    folder = run_artifacts_dir(run_id)
    settled = _settled(folder)
    return list(_settled_results(folder, settled)) if settled else _read_results(folder)


def _settled(folder: Path) -> int | None:
    """Return what changes with any file of a folder; None if it just did, or in an object store, which does not say.

    Files here are replaced, never rewritten, so the folder's own time is enough. It has a resolution of milliseconds.
    """
    if "://" in str(folder):
        return None
    with suppress(OSError):
        modified_ns = folder.stat().st_mtime_ns
        return modified_ns if time.time_ns() - modified_ns > _SETTLED_NS else None
    return None


@lru_cache(maxsize=128)
def _settled_results(folder: Path, _modified_ns: int) -> tuple[Result, ...]:
    return tuple(_read_results(folder, _parsed_results))


@lru_cache(maxsize=128)
def _settled_tests(folder: Path, _modified_ns: int) -> dict[str, Result]:
    return _tests(_settled_results(folder, _modified_ns))


def _tests(results: Iterable[Result]) -> dict[str, Result]:
    return {one.unique_id: one for one in results if one.unique_id.startswith(TEST_KINDS)}


def _read_results(folder: Path, read: Callable[[Path, int], Iterable[Result]] | None = None) -> list[Result]:
    read = read or _results
    found: list[Result] = []
    try:
        entries = sorted(folder.glob("*.json"))
    except OSError:  # not a store that is down, which would look like a run without results
        return []
    for path in entries:
        if path.name.startswith(_LOAD) or path.name.endswith(
            (_FAILURES, _ERROR, _COST, _SHAPE, _DIFFERENCE, _DECISION)
        ):
            continue
        try:
            found += read(path, path.stat().st_mtime_ns)
        except storage_errors(ValueError, AttributeError, TypeError, KeyError) as error:
            _unreadable(path, error)
    return found


def test_results_of(run_id: str) -> dict[str, Result]:
    """Return the results of a run's data and unit tests, by unique id."""
    folder = run_artifacts_dir(run_id)
    settled = _settled(folder)
    return dict(_settled_tests(folder, settled)) if settled else _tests(_read_results(folder))


def failure_of(run_id: str, result: Result) -> Failure:
    """Return the failing rows kept by a test's task, and the SQL that finds them.

    Args:
        run_id: the run.
        result: the test's result in that run.
    """
    folder = run_artifacts_dir(run_id)
    sql = compiled_sql(run_id, result)
    path = folder / f"{result.task_id}{_FAILURES}"
    try:
        kept = json.loads(path.read_text()).get(result.unique_id) or {}
        columns, row_columns = (
            tuple(str(name) for name in kept.get(names) or ()) for names in ("columns", "row_columns")
        )
        sample, rows_with = (
            tuple(tuple(None if value is None else str(value) for value in row) for row in kept.get(rows) or ())
            for rows in ("sample", "rows_with")
        )
        return Failure(kept.get("rows", result.failures), columns, sample, sql, row_columns, rows_with)
    except storage_errors(ValueError, AttributeError, TypeError) as error:
        _unreadable(path, error)
        return Failure(result.failures, (), (), sql)


def keep_error(run_id: str, task_id: str, text: str, runbook: str, may_have_values: bool) -> None:
    """Keep why a task failed; attributes as of `Error`. A failure to do so is only logged."""
    kept = Error(text, runbook, may_have_values, datetime.now(UTC))
    try:
        path = run_artifacts_dir(run_id) / f"{task_id}{_ERROR}"
        write_whole(path, json.dumps(asdict(kept), indent=2, default=str) + "\n")
    except storage_errors() as error:
        logger.warning("Why %s failed could not be kept: %s", task_id, error)


def keep_cost(run_id: str, task_id: str, try_number: int, cpu_seconds: float) -> None:
    """Keep how much CPU time a try of a task took. A failure to do so is only logged."""
    path = run_artifacts_dir(run_id) / f"{task_id}{_COST}"
    try:
        write_whole(path, json.dumps(_cost(path) | {str(try_number): round(cpu_seconds, 3)}))
    except storage_errors() as error:
        logger.warning("What %s cost could not be kept: %s", task_id, error)


def costs_of(run_id: str) -> dict[str, float]:
    """Return the CPU time of each task of a run, in seconds, in all of its tries; without tries that were killed."""
    found = {path.name.removesuffix(_COST): _cost(path) for path in sorted(run_artifacts_dir(run_id).glob(f"*{_COST}"))}
    return {task: sum(tries.values()) for task, tries in found.items() if tries}


def _cost(path: Path) -> dict[str, float]:
    try:
        return {str(number): float(seconds) for number, seconds in json.loads(path.read_text()).items()}
    except storage_errors(ValueError, AttributeError, TypeError) as error:
        _unreadable(path, error)
        return {}


def error_of(run_id: str, task_id: str, since: datetime | None = None) -> Error | None:
    """Return why a task failed, or None if that is not known: its process died.

    Args:
        run_id: the run.
        task_id: the task.
        since: when its last try started; an error from before is of another one.
    """
    path = run_artifacts_dir(run_id) / f"{task_id}{_ERROR}"
    try:
        kept = json.loads(path.read_text())
        found = Error(**kept | {"at": datetime.fromisoformat(kept["at"])})
    except storage_errors(ValueError, TypeError, KeyError) as error:
        _unreadable(path, error)
        return None
    return None if since and found.at < since else found


def compiled_sql(run_id: str, result: Result) -> str:
    """Return the SQL that dbt ran for a result, or an empty string."""
    path = run_artifacts_dir(run_id) / f"{result.task_id}.json"
    try:
        raw = json.loads(path.read_text())
        return next(
            (str(one.get("compiled_code") or "") for one in raw["results"] if one["unique_id"] == result.unique_id), ""
        ).strip()
    except storage_errors(ValueError, AttributeError, TypeError, KeyError) as error:
        _unreadable(path, error)
        return ""


def without_values(reason: str) -> str:
    """Return a rejection reason up to the first quotation mark: what follows may be a value from the row."""
    return re.split(r"[\"'`]", reason, maxsplit=1)[0].strip().rstrip(":")


@lru_cache(maxsize=512)
def _load(path: Path, _modified_ns: int) -> Load:
    raw = json.loads(path.read_text())
    tables = {name: TableLoad(**table) for name, table in raw.pop("tables").items()}
    raw |= {name: tuple(raw[name]) for name in ("schema_changes", "rejected")}
    return Load(**raw, tables=tables)


@lru_cache(maxsize=4096)
def _results(path: Path, _modified_ns: int) -> tuple[Result, ...]:
    return _parsed_results(path, _modified_ns)


def _parsed_results(path: Path, _modified_ns: int) -> tuple[Result, ...]:
    task_id = sys.intern(path.name.removesuffix(".json"))
    return tuple(
        Result(
            unique_id=sys.intern(str(raw["unique_id"])),  # the same in each run
            task_id=task_id,
            status=str(raw["status"]).lower(),
            failures=raw.get("failures"),
            seconds=float(raw.get("execution_time") or 0),
            message=str(raw.get("message") or ""),
            ended_at=str(next((one["completed_at"] for one in reversed(raw.get("timing") or ())), "") or ""),
            billed=(raw.get("adapter_response") or {}).get("bytes_billed"),
        )
        for raw in orjson.loads(path.read_bytes())["results"]
    )


def _unreadable(path: Path, error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        logger.warning("%s cannot be read: %s", path, error)
