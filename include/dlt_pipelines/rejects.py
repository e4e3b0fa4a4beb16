"""Rows that violate a contract: kept in `NAME_raw.rejected_rows`, and reported in the load's summary and its error."""

from collections.abc import Sequence
from typing import Any

import duckdb

from include.dlt_pipelines.files import ParsedFile, SourceFileError
from include.runs import artifacts
from include.settings import REJECTED_ROWS
from include.warehouse import builds
from include.warehouse.targets import target

KEPT = 100  # per load, in its summary; the table has all of them
KEPT_DAYS = 90
_SHOWN = 5


class RejectedRowsError(SourceFileError):
    """More rows were rejected than the run tolerates."""

    runbook = "The load rejected rows"


def store(
    connection: duckdb.DuckDBPyConnection, schema: str, parsed: Sequence[ParsedFile], load_id: str, failed: bool = False
) -> None:
    """Add the rejected rows of a load to the table, once for each content of a file, and drop old ones.

    Args:
        connection: the working database, in a transaction.
        schema: the source's schema.
        parsed: the files.
        load_id: the load's.
        failed: whether the load has rejected too many: its rows stay until the next one succeeds, or a run publishes.
    """
    table = f"{schema}.{REJECTED_ROWS}"
    connection.execute(f"create schema if not exists {schema}")
    connection.execute(
        f"create table if not exists {table} (_dlt_load_id varchar, table_name varchar, file varchar, "
        "line bigint, column_name varchar, reason varchar, text varchar, rejected_at timestamptz, digest varchar)"
    )
    if "digest" not in dict(target().columns_of(connection, schema, REJECTED_ROWS)):
        connection.execute(f"alter table {table} add column digest varchar")
    loads = target().columns_of(connection, schema, "_dlt_loads")
    dropped = 0 if failed else builds.drop_rejects_of_failed_loads(connection, schema)
    for outcome in parsed:
        if outcome.rejects:
            same = [outcome.table, str(outcome.file), outcome.digest]
            # Rows that an earlier load tolerated belong to what is loaded, so a load that fails leaves them.
            also = f" and _dlt_load_id not in (select load_id from {schema}._dlt_loads)" if failed and loads else ""
            connection.execute(f"delete from {table} where table_name = ? and file = ? and digest = ?{also}", same)
            connection.execute(
                f"insert into {table} by name select *, ? as digest from read_parquet(?)",
                [outcome.digest, str(outcome.rejects)],
            )
    row = connection.execute(f"delete from {table} where rejected_at < now() - interval '{KEPT_DAYS} days'").fetchone()
    connection.execute(builds.CREATE)  # in DuckDB 2, looking for a missing table would abort the transaction
    known = table in builds.recorded(connection, "node = relation")
    if any(outcome.rejects for outcome in parsed) or dropped or (row and row[0]) or not known:
        builds.record_load(connection, "", {table: load_id})  # of no run: a failed load changes it too


def first(connection: duckdb.DuckDBPyConnection, parsed: Sequence[ParsedFile]) -> tuple[dict[str, Any], ...]:
    """Return the first rejected rows of a load, for its summary.

    Args:
        connection: the working database.
        parsed: the files.
    """
    files = [str(outcome.rejects) for outcome in parsed if outcome.rejects]
    if not files:
        return ()
    columns = ("table_name", "file", "line", "column_name", "reason", "text")
    rows = connection.execute(
        f"select {', '.join(columns)} from read_parquet(?) order by table_name, line limit ?", [files, KEPT]
    )
    return tuple(dict(zip(columns, row, strict=True)) for row in rows.fetchall())


def too_many(summary: artifacts.Load, schema: str, limit: int) -> RejectedRowsError:
    """Return the error of a load that rejected more rows than tolerated.

    Args:
        summary: the load's.
        schema: the source's schema.
        limit: the rows tolerated.
    """
    places = []
    for row in summary.rejected[:_SHOWN]:
        column = f"column {row['column_name']}: " if row["column_name"] else ""
        places.append(f"{row['file']}:{row['line']}: {column}{' '.join(row['reason'].split())[:300]}")
    if summary.rows_rejected > len(places):
        places.append(f"... and {summary.rows_rejected - len(places)} more")
    return RejectedRowsError(
        "\n".join(
            [
                f"{summary.rows_rejected} row(s) rejected, at most {limit} tolerated. Nothing was loaded.",
                *places,
                f"To see them all, in the working database: from {schema}.{REJECTED_ROWS} where _dlt_load_id = "
                f"'{summary.load_id}'",
                "Fix the file, then clear this task; or trigger a run with a higher max_rejected_rows.",
            ]
        )
    )
