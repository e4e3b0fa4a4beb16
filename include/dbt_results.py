"""What a dbt command left behind: results to keep with the run, rows that failed its tests, what publish may trust."""

import gzip
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from include import warehouse
from include.errors import NO_SPACE, PipelineError
from include.sql import identifier
from include.warehouse_catalog import project

log = logging.getLogger(__name__)

ROWS_KEPT = 20
ROWS_SHOWN = 3
_NODES_TOLD = 5
# A failure of dbt with one of these in its text may be gone the next time.
TRANSIENT = ("IO Error", "IOException", "Could not set lock", "Connection Error", *NO_SPACE)


class DbtFailedError(PipelineError):
    """A model or a test failed in a way that a retry cannot mend."""

    def __init__(self, message: str, runbook: str) -> None:
        super().__init__(message)
        self.runbook = runbook


def conclude(target_dir: Path, run_id: str, name: str) -> None:
    """Keep what a dbt command left behind, and tell what failed.

    Among the run's artifacts: its `run_results.json` as `NAME.json`, and the first rows of each test that failed or
    warned as `NAME.failures.json`. In the working database: the ledger that publish reads; the audit table of a test
    stays for as long as it has failing rows.

    Args:
        target_dir: dbt's target folder.
        run_id: the run whose artifacts these are.
        name: the file's name among them, without its ending.

    Raises:
        DbtFailedError: something failed for good. What a retry can mend is left for the caller to raise.
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    results_file, manifest_file = target_dir / "run_results.json", target_dir / "manifest.json"
    if not results_file.exists():  # dbt stopped before it ran anything
        return
    folder = warehouse.run_artifacts_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(results_file, folder / f"{name}.json")
    results = json.loads(results_file.read_text())["results"]
    _close_database()
    with warehouse.open_working() as connection:
        failures = {}
        for result in results:
            table = result.get("relation_name") if result["unique_id"].startswith("test.") else None
            if table and result["status"] == "pass":
                connection.execute(f"drop table if exists {table}")
            elif result["status"] in ("fail", "warn"):
                failures[result["unique_id"]] = _failure(connection, result, table)
        warehouse.record_nodes(
            connection,
            run_id,
            [(result["unique_id"], result["status"], result.get("compiled_code") or "") for result in results],
            lambda node: _descendants(json.loads(manifest_file.read_text())["child_map"], node),
        )
    kept = folder / f"{name}.failures.json"
    if failures:
        kept.write_text(json.dumps(failures, indent=2, default=str) + "\n")
    else:
        kept.unlink(missing_ok=True)
    told = {}
    if failures:
        dbt = project.read(manifest_file)
        told = {
            node: _told(failure, dbt, dbt.tests.get(node)) for node, failure in failures.items() if failure["table"]
        }
    for text in told.values():
        log.error(text)
    bad = [result for result in results if result["status"] in ("fail", "error", "runtime error")]
    if bad and not all(any(sign in (result["message"] or "") for sign in TRANSIENT) for result in bad):
        lines = [told.get(result["unique_id"]) or _message(result) for result in bad[:_NODES_TOLD]]
        if len(bad) > _NODES_TOLD:
            lines.append(f"... and {len(bad) - _NODES_TOLD} more")
        tested = all(result["unique_id"].startswith("test.") for result in bad)
        raise DbtFailedError("\n".join(lines), "A test failed" if tested else "A model failed")


def _close_database() -> None:
    # The profile keeps the file open, and so locked, until dbt's process ends. Here that is a task with more to do.
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]


def failing_tests(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return the audit tables that hold failing rows, and how many.

    Args:
        connection: the working database.
    """
    tables = connection.execute("select table_name from duckdb_tables() where schema_name = 'audit' order by 1")
    counts = {}
    for (table,) in tables.fetchall():
        row = connection.execute(f"select count(*) from {identifier('audit', table)}").fetchone()
        counts[table] = int(row[0]) if row else 0
    return {table: rows for table, rows in counts.items() if rows}


def check_ready(connection: duckdb.DuckDBPyConnection, manifest_file: Path) -> None:
    """Make sure that all models and tests of a manifest have passed on the data in the working database.

    Args:
        connection: the working database.
        manifest_file: dbt's manifest, which says what there is to pass.

    Raises:
        include.warehouse.NotReadyError: not all have.
    """
    nodes = json.loads(manifest_file.read_text())["nodes"].values()
    kinds = ("model", "seed", "snapshot", "test")
    wanted = [
        node["unique_id"]
        for node in nodes
        if node["resource_type"] in kinds and node["config"].get("materialized") != "ephemeral"
    ]
    warehouse.check_ready(connection, wanted)


def keep_manifest(manifest_file: Path, run_id: str) -> None:
    """Keep a manifest among the artifacts of the run that was published with it.

    Args:
        manifest_file: dbt's manifest.
        run_id: the run.
    """
    folder = warehouse.run_artifacts_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / project.MANIFEST).write_bytes(gzip.compress(manifest_file.read_bytes(), compresslevel=3))


def _failure(connection: duckdb.DuckDBPyConnection, result: dict[str, Any], table: str | None) -> dict[str, Any]:
    failure: dict[str, Any] = {
        "name": result["unique_id"].split(".")[2],
        "status": result["status"],
        "rows": result["failures"],
        "message": result["message"],
        "table": table,
        "columns": [],
        "sample": [],
    }
    if table:
        cursor = connection.execute(f"from {table} limit {ROWS_KEPT}")
        failure["columns"] = [column[0] for column in cursor.description or []]
        failure["sample"] = cursor.fetchall()
    return failure


def _told(failure: dict[str, Any], dbt: project.Project, test: project.Test | None) -> str:
    """Return one line on a failing test, with those columns of its first rows that everybody may see."""
    shown = [at for at, column in enumerate(failure["columns"]) if dbt.is_open_in_test(test, column)]
    rows = [", ".join(f"{failure['columns'][at]}={row[at]}" for at in shown) for row in failure["sample"][:ROWS_SHOWN]]
    more = "; ..." if failure["rows"] > len(rows) else ""
    plural = "row" if failure["rows"] == 1 else "rows"
    counted = f"{failure['name']}: {failure['rows']} failing {plural}"
    return f"{counted}: {'; '.join(rows)}{more} (all of them: make failures)"


def _message(result: dict[str, Any]) -> str:
    return f"{result['unique_id'].split('.')[2]}: {' '.join((result['message'] or '').split())}"


def _descendants(children: dict[str, list[str]], node: str) -> Iterator[str]:
    seen, todo = set(), [node]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in seen:
                seen.add(child)
                todo.append(child)
                yield child
