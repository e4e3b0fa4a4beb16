"""Load the jaffle shop's CSV files into the schema `jaffle_shop_raw` of the working database.

    include/data/raw_*.csv ──parse──▶ Parquet ──dlt──▶ jaffle_shop_raw_incoming.* ──one transaction──▶ jaffle_shop_raw.*
                              └─ rejected rows ───────────────────────────────────▶ jaffle_shop_raw.rejected_rows

Run it alone with `python include/dlt_pipelines/jaffle_shop_pipeline.py`.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT_DIR))  # run as a script, only this file's folder is on the path
os.environ.setdefault("DLT_PROJECT_DIR", str(Path(__file__).resolve().parent))

import dlt  # noqa: E402
import duckdb  # noqa: E402
import pyarrow.parquet  # noqa: E402
from dlt.common.schema.typing import TColumnSchema  # noqa: E402
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials  # noqa: E402
from dlt.extract import DltResource, with_file_import  # noqa: E402
from dlt.pipeline.exceptions import PipelineStepFailed  # noqa: E402

from include import warehouse  # noqa: E402
from include.dlt_pipelines.csv_files import (  # noqa: E402
    MEMORY,
    ParsedFile,
    SourceChangedError,
    SourceFileError,
    TableContract,
    find_file,
    parse,
    read_header,
)
from include.errors import PipelineError, is_disk_full  # noqa: E402

log = logging.getLogger(__name__)

SCHEMA = "jaffle_shop_raw"
INCOMING = f"{SCHEMA}_incoming"
REJECTS_SHOWN = 5
REJECTS_KEPT = 100  # of a load, with its summary; all are in the table
REJECTS_KEPT_DAYS = 90

TABLES = (
    TableContract(
        "raw_customers",
        {"id": "BIGINT", "first_name": "VARCHAR", "last_name": "VARCHAR"},
        primary_key=("id",),
    ),
    TableContract(
        "raw_orders",
        {"id": "BIGINT", "user_id": "BIGINT", "order_date": "DATE", "status": "VARCHAR"},
        primary_key=("id",),
    ),
    TableContract(
        "raw_payments",
        {"id": "BIGINT", "order_id": "BIGINT", "payment_method": "VARCHAR", "amount": "BIGINT"},
        primary_key=("id",),
    ),
)


class RejectedRowsError(SourceFileError):
    """More rows were rejected than the run tolerates.

    Attributes:
        rejected: the first `REJECTS_KEPT` of them.
    """

    runbook = "The load rejected rows"

    def __init__(self, message: str, rejected: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.rejected = rejected

    @property
    def summary(self) -> str:
        """The first line and the places, without the rows' texts."""
        return "\n".join([str(self).splitlines()[0], *(_place(row) for row in self.rejected[:REJECTS_SHOWN])])


@dlt.source(name="jaffle_shop", section="jaffle_shop")
def jaffle_shop(work_dir: Path, parsed: dict[str, ParsedFile], data_dir: str = dlt.config.value) -> list[DltResource]:
    """Return one resource per table of the contract.

    Args:
        work_dir: an existing folder for the Parquet files.
        parsed: receives the outcome of each table as it is extracted.
        data_dir: the folder of the CSV files, relative to the project.
    """
    return [_resource(table, PROJECT_DIR / data_dir, work_dir, parsed) for table in TABLES]


def _resource(table: TableContract, data_dir: Path, work_dir: Path, parsed: dict[str, ParsedFile]) -> DltResource:
    def rows() -> Iterator[Any]:
        load_id = dlt.current.load_package_state()["load_id"]
        path = find_file(data_dir, table)
        log.info("%s: parsing %.1f MB", path, path.stat().st_size / 1e6)
        outcome = parsed[table.name] = parse(path, table, work_dir, load_id)
        log.info("%s: %d rows, %d rejected", path, outcome.rows_loaded, outcome.rows_rejected)
        with pyarrow.parquet.ParquetFile(outcome.parquet) as parquet:
            empty = parquet.schema_arrow.empty_table()
        yield with_file_import(str(outcome.parquet), "parquet", outcome.rows_loaded, hints=empty)

    # Nullable, as duplicate and missing keys are for dbt's tests to judge.
    keys: dict[str, TColumnSchema] = {name: {"primary_key": True, "nullable": True} for name in table.primary_key}
    return dlt.resource(rows, name=table.name, write_disposition="replace", columns=keys)


def load(run_id: str, max_rejected_rows: int | None = None) -> dict[str, Any]:
    """Replace all raw tables by what the CSV files hold, or none of them.

    Args:
        run_id: names the folder of the summary among the artifacts.
        max_rejected_rows: rejected rows to tolerate, over all files; default from `.dlt/config.toml`.

    Returns:
        The summary: `load_id`, `seconds`, `bytes`, `rows_loaded`, `rows_rejected`, the same for each of `tables`, and
        `schema_changes`, one line for each column that came, went or changed its type, and the first of the rejected
        rows in `rejected`. Also kept as an artifact, and that also when rejected rows fail the load.

    Raises:
        SourceFileError: a file is missing, unreadable or not as its contract says; a retry cannot mend it.
        RejectedRowsError: more rows were rejected than tolerated; they are in `jaffle_shop_raw.rejected_rows`.
        SourceChangedError: a file was written to meanwhile; a retry can mend it.
        include.warehouse.DiskFullError: the warehouse's disk is full; the raw tables are as they were.
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    started = time.monotonic()
    limit = dlt.config["sources.jaffle_shop.max_rejected_rows"] if max_rejected_rows is None else max_rejected_rows
    data_dir = PROJECT_DIR / dlt.config["sources.jaffle_shop.data_dir"]
    _check_files(data_dir)
    work_dir = warehouse.warehouse_dir() / "load"
    summary: dict[str, Any] = {"run_id": run_id}
    with warehouse.open_working() as con:
        con.execute(f"set memory_limit = '{MEMORY}'")  # else its cache grows with the files
        # Whoever holds the database is the only load; what a killed one left is litter.
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir()
        try:
            _extract_and_load(con, data_dir, work_dir, limit, summary)
        except RejectedRowsError as error:
            _keep(summary | {"rows_loaded": 0, "error": str(error)}, started)
            raise
        except (PipelineStepFailed, duckdb.Error, OSError) as failure:
            if told := _told(failure, work_dir):
                raise told from None  # it may be the cause of the failure, and a chain in a circle hangs loggers
            raise
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)
    _keep(summary, started)
    log.info("loaded %d rows, %d rejected", summary["rows_loaded"], summary["rows_rejected"])
    return summary


def _extract_and_load(
    con: duckdb.DuckDBPyConnection, data_dir: Path, work_dir: Path, limit: int, summary: dict[str, Any]
) -> None:
    before = _signatures(data_dir)
    con.execute(f"drop schema if exists {INCOMING} cascade")
    parsed: dict[str, ParsedFile] = {}
    pipeline = dlt.pipeline(
        "jaffle_shop",
        pipelines_dir=str(work_dir / "dlt"),
        destination=dlt.destinations.duckdb(_credentials(con)),
        dataset_name=INCOMING,
    )
    try:
        pipeline.extract(jaffle_shop(work_dir, parsed))
        # The same files are the same data: publish then need not see everything built again.
        with ThreadPoolExecutor() as threads:
            data = " ".join(threads.map(_digest, [outcome.file for outcome in parsed.values()]))
    finally:
        _check_unchanged(data_dir, before)  # else a half-written file would be told as a bad one
    summary["load_id"] = pipeline.list_extracted_load_packages()[0]
    summary["bytes"] = sum(stat.st_size for stat in before.values())
    summary["rows_loaded"] = sum(outcome.rows_loaded for outcome in parsed.values())
    summary["rows_rejected"] = sum(outcome.rows_rejected for outcome in parsed.values())
    summary["rejected"] = _first_rejects(con, parsed)
    summary["tables"] = {
        name: {
            "file": str(outcome.file),
            "bytes": before[name].st_size,
            "rows_loaded": outcome.rows_loaded,
            "rows_rejected": outcome.rows_rejected,
        }
        for name, outcome in parsed.items()
    }
    if summary["rows_rejected"] > limit:
        with _transaction(con):
            _store_rejects(con, parsed)
        raise _too_many_rejected(summary, limit)
    pipeline.normalize()
    pipeline.load()
    with _transaction(con):
        warehouse.record_load(con, summary["run_id"], data)
        summary["schema_changes"] = _promote(con, parsed)


def _keep(summary: dict[str, Any], started: float) -> None:
    summary["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    summary["seconds"] = round(time.monotonic() - started, 3)
    folder = warehouse.run_artifacts_dir(summary["run_id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.json").write_text(json.dumps(summary, indent=2, default=str) + "\n")


def _credentials(con: duckdb.DuckDBPyConnection) -> DuckDbCredentials:
    # dlt works on duplicates of the connection, and these forget which database it uses, where that is an attached one.
    credentials = DuckDbCredentials(con)
    credentials.pragmas = [f"search_path='{warehouse.working_path().stem}.main'"]
    return credentials


def _check_files(data_dir: Path) -> None:
    """Raise all that can be told from the files' names and headers at once, before the database is touched."""
    problems = []
    for table in TABLES:
        try:
            read_header(find_file(data_dir, table), table)
        except SourceFileError as error:
            problems.append(str(error))
    if problems:
        raise SourceFileError("\n".join([*problems, "Nothing was loaded. Mend the files, then clear this task."]))


def _signatures(data_dir: Path) -> dict[str, os.stat_result]:
    return {table.name: find_file(data_dir, table).stat() for table in TABLES}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_unchanged(data_dir: Path, before: dict[str, os.stat_result]) -> None:
    for table in TABLES:
        old, path = before[table.name], data_dir / f"{table.name}.csv"
        try:
            path = find_file(data_dir, table)
            new = path.stat()
            changed = (old.st_ino, old.st_size, old.st_mtime_ns) != (new.st_ino, new.st_size, new.st_mtime_ns)
        except (SourceFileError, OSError):
            changed = True
        if changed:
            raise SourceChangedError(
                f"{path}: written to while it was read. Nothing was loaded. Deliver files under another name and "
                "rename them when complete, then clear this task."
            )


def _told(failure: BaseException, work_dir: Path) -> Exception | None:
    """Return the error that tells what to do, which dlt may have wrapped; None where it is none of ours."""
    error: BaseException | None = failure
    while error:
        if isinstance(error, SourceFileError):
            return error
        if is_disk_full(str(error)):
            return warehouse.DiskFullError(
                f"No space left in {work_dir.parent} for the load. The raw tables are as they were. Free some space, "
                "then clear this task."
            )
        error = error.__cause__ or error.__context__
    return None


def _store_rejects(con: duckdb.DuckDBPyConnection, parsed: dict[str, ParsedFile]) -> None:
    con.execute(f"create schema if not exists {SCHEMA}")
    con.execute(
        f"create table if not exists {SCHEMA}.rejected_rows (_dlt_load_id varchar, table_name varchar, file varchar, "
        "line bigint, column_name varchar, reason varchar, text varchar, rejected_at timestamptz)"
    )
    for outcome in parsed.values():
        if outcome.rejects:
            con.execute(f"insert into {SCHEMA}.rejected_rows by name from read_parquet(?)", [str(outcome.rejects)])
    con.execute(f"delete from {SCHEMA}.rejected_rows where rejected_at < now() - interval '{REJECTS_KEPT_DAYS} days'")


def _first_rejects(con: duckdb.DuckDBPyConnection, parsed: dict[str, ParsedFile]) -> list[dict[str, Any]]:
    files = [str(outcome.rejects) for outcome in parsed.values() if outcome.rejects]
    if not files:
        return []
    columns = ("table_name", "file", "line", "column_name", "reason", "text")
    rows = con.execute(
        f"select {', '.join(columns)} from read_parquet(?) order by table_name, line limit ?", [files, REJECTS_KEPT]
    )
    return [dict(zip(columns, row, strict=True)) for row in rows.fetchall()]


def _place(row: dict[str, Any]) -> str:
    column = f"column {row['column_name']}: " if row["column_name"] else ""
    return f"{row['file']}:{row['line']}: {column}{' '.join(row['reason'].split())[:300]}"


def _too_many_rejected(summary: dict[str, Any], limit: int) -> RejectedRowsError:
    rejected, first = summary["rows_rejected"], summary["rejected"]
    lines = [f"{_place(row)}: {row['text'][:200]!r}" for row in first[:REJECTS_SHOWN]]
    if rejected > len(lines):
        lines.append(f"... and {rejected - len(lines)} more")
    message = "\n".join(
        [
            f"{rejected} row(s) rejected, at most {limit} tolerated. Nothing was loaded.",
            *lines,
            f"All of them, in the working database: from {SCHEMA}.rejected_rows where _dlt_load_id = "
            f"'{summary['load_id']}'",
            "Mend the file, then clear this task; or trigger a run with a higher max_rejected_rows.",
        ]
    )
    return RejectedRowsError(message, first)


def _promote(con: duckdb.DuckDBPyConnection, parsed: dict[str, ParsedFile]) -> list[str]:
    """Move all loaded tables into the raw schema and return what that changed in it; within one transaction.

    dlt's own atomic replace is one transaction for each table, and a kill between two would mix two loads.
    """
    con.execute(f"create schema if not exists {SCHEMA}")
    old = _columns(con)
    for table in TABLES:
        con.execute(f"create or replace table {SCHEMA}.{table.name} as from {INCOMING}.{table.name}")
    con.execute(f"create table if not exists {SCHEMA}._dlt_loads as from {INCOMING}._dlt_loads limit 0")
    con.execute(f"insert into {SCHEMA}._dlt_loads by name from {INCOMING}._dlt_loads")
    _store_rejects(con, parsed)
    con.execute(f"drop schema {INCOMING} cascade")
    new = _columns(con)
    return [
        f"{column}: {old.get(column, 'absent')} -> {new.get(column, 'absent')}"
        for column in sorted(old.keys() | new.keys())
        if old.get(column) != new.get(column)
    ]


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    con.begin()
    try:
        yield
        con.commit()
    except BaseException:
        with suppress(duckdb.Error):  # the first error counts; a failed commit has rolled back already
            con.rollback()
        raise


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    rows = con.execute(
        "select table_name || '.' || column_name, data_type from duckdb_columns() "
        "where schema_name = ? and table_name in (select unnest(?))",
        [SCHEMA, [table.name for table in TABLES]],
    )
    return dict(rows.fetchall())


def main(arguments: Sequence[str] | None = None) -> int:
    """Load once from the command line and print the summary; return the exit code."""
    parser = argparse.ArgumentParser(description="Load the CSV files into the working database.")
    parser.add_argument("--max-rejected-rows", type=int, help="rejected rows to tolerate (default: .dlt/config.toml)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        summary = load(f"script__{datetime.now(UTC).isoformat(timespec='seconds')}", options.max_rejected_rows)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
