"""Collect the outcome of a dbt command: results to keep with the run, failing rows, errors."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import duckdb

from include import dbt_session
from include.errors import NO_SPACE, PipelineError
from include.runs import artifacts, project
from include.runs.dbt_stop import DbtStoppedError
from include.settings import is_audit
from include.sql import identifier
from include.warehouse.errors import WarehouseError, first_line
from include.warehouse.targets import target

logger = logging.getLogger(__name__)

ROWS_KEPT = 20
ROWS_SHOWN = 3
_NODES_SHOWN = 5
# A part of a relation's name, as adapters quote them.
_PART = re.compile(r'"((?:[^"]|"")*)"|([^"`.]+)')
_PASSED = ("success", "pass", "no-op")
# A dbt failure whose text contains one of these may go away on a retry.
TRANSIENT = (
    "IO Error",
    "IOException",
    "Could not set lock",
    "Connection Error",
    # Of a lake: another task committed first.
    "Failed to commit DuckLake transaction",
    # Of PostgreSQL, also as a lake's catalog: it restarts, or two tasks waited for each other.
    "connection to server",
    "terminating connection",
    "the database system is",
    "deadlock detected",
    "server closed the connection",
    "server terminated abnormally",
    # Of BigQuery: another transaction has changed the same table.
    "due to concurrent update",
    # Out of memory, but not of DuckDB's limit for it: the next try has a process of its own.
    "bad allocation",
    "bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
    *NO_SPACE,
)


class DbtFailedError(PipelineError):
    """A model or test failed in a way that a retry cannot fix."""

    def __init__(self, message: str, runbook: str) -> None:
        super().__init__(message)
        self.runbook = runbook


def conclude(target_dir: Path, run_id: str, task_id: str) -> None:
    """Close the database, unless the next command gets it, keep the results of a dbt command, report what failed.

    Args:
        target_dir: dbt's target folder.
        run_id: the run whose artifacts get the results.
        task_id: the task, which names the files.

    Raises:
        DbtFailedError: a permanent failure. Transient ones are left for the caller to raise.
        DbtStoppedError: an error without any text, which is `MemoryError`.
        include.warehouse.errors.WarehouseError: the working database cannot be opened.
    """
    results_file = target_dir / "run_results.json"
    results = json.loads(results_file.read_text())["results"] if results_file.exists() else []
    if dbt_session.is_active() and results and all(result["status"] in _PASSED for result in results):
        dbt_session.keep_database()
    else:
        # The profile keeps the file open, and so locked, until dbt's process ends; this task has more to do.
        dbt_session.close_database()
    if not results_file.exists():  # dbt stopped before it ran anything
        return
    failures = _failures([result for result in results if result["status"] in ("fail", "warn")], target_dir)
    artifacts.keep_results(results_file, run_id, task_id, failures)
    described = {}
    if failures:
        dbt = project.read(target_dir / "manifest.json")
        described = {
            node: _describe(failure, dbt, dbt.tests.get(node)) for node, failure in failures.items() if failure["table"]
        }
    for text in described.values():
        logger.error(text)
    bad = [result for result in results if result["status"] in ("fail", "error", "runtime error")]
    if bad and not any(result["message"] for result in bad):
        raise DbtStoppedError("MemoryError")
    if bad and not all(_is_transient(result["message"]) for result in bad):
        lines = [described.get(result["unique_id"]) or _message(result) for result in bad[:_NODES_SHOWN]]
        if len(bad) > _NODES_SHOWN:
            lines.append(f"... and {len(bad) - _NODES_SHOWN} more")
        tested = all(result["unique_id"].startswith("test.") for result in bad)
        raise DbtFailedError("\n".join(lines), "A test failed" if tested else "A model failed")


def _is_transient(message: str | None) -> bool:
    return not message or any(sign in message for sign in TRANSIENT)


def failing_tests(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return the audit tables that hold failing rows, `schema.table`, with their row counts.

    Args:
        connection: the working database.
    """
    counts = target().count_rows(connection)
    return {".".join(table): rows for table, rows in counts.items() if rows and is_audit(table[0])}


def _failures(results: list[dict[str, Any]], target_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what to keep for each failed or warned test, with the first rows of its audit table."""
    if not results:
        return {}
    dbt = project.read(target_dir / "manifest.json")
    failures = {}
    with target().open_working() as connection:
        for result in results:
            table = result.get("relation_name") if result["unique_id"].startswith("test.") else None
            failure = {
                "name": result["unique_id"].split(".")[2],
                "status": result["status"],
                "rows": result["failures"],
                "message": result["message"],
                "table": table,
                "columns": [],
                "sample": [],
            }
            if table:
                # Without the database: here it has the warehouse's name.
                schema, name = [one[0].replace('""', '"') or one[1] for one in _PART.findall(table)][-2:]
                audit = identifier(schema, name)
                target().fetch(connection, schema, name.__eq__)
                cursor = connection.execute(f"from {audit} limit {ROWS_KEPT}")
                failure["columns"] = [column[0] for column in cursor.description or []]
                failure["sample"] = cursor.fetchall()
                failure |= _rows_with(connection, dbt, result["unique_id"], (schema, name))
            failures[result["unique_id"]] = failure
    return failures


def _rows_with(
    connection: duckdb.DuckDBPyConnection, dbt: project.Project, unique_id: str, audit: tuple[str, str]
) -> dict[str, Any]:
    """Return the tested table's rows with the first values that failed, for a test that gives only those."""
    test = dbt.tests.get(unique_id)
    node = dbt.nodes.get(test.node) if test else None
    value = project.VALUE_COLUMNS.get(test.kind) if test and test.column else None
    if test is None or node is None or value is None:
        return {}
    try:
        columns, rows = target().rows_with(
            connection, (node.schema, node.table), test.column, (audit, value), ROWS_KEPT
        )
        return {"row_columns": columns, "rows_with": rows}
    except (duckdb.Error, WarehouseError) as error:
        logger.warning("The rows that fail %s could not be read: %s", test.name, first_line(error))
        return {}


def _describe(failure: dict[str, Any], dbt: project.Project, test: project.Test | None) -> str:
    """Return one line on a failing test, showing only the columns of its first rows that anyone may see."""
    shown = [at for at, column in enumerate(failure["columns"]) if dbt.is_open_in_test(test, column)]
    rows = [", ".join(f"{failure['columns'][at]}={row[at]}" for at in shown) for row in failure["sample"][:ROWS_SHOWN]]
    more = "; ..." if failure["rows"] > len(rows) else ""
    plural = "row" if failure["rows"] == 1 else "rows"
    counted = f"{failure['name']}: {failure['rows']} failing {plural}"
    return f"{counted}: {'; '.join(rows)}{more} (show all: make failures)"


def _message(result: dict[str, Any]) -> str:
    return f"{result['unique_id'].split('.')[2]}: {' '.join((result['message'] or '').split())}"
