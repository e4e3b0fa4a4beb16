"""Load the jaffle shop's CSV files into the schema `jaffle_shop_raw` of the working database.

    include/data/raw_*.csv ──parse──▶ Parquet ──dlt──▶ jaffle_shop_raw_incoming.* ──one transaction──▶ jaffle_shop_raw.*
                              └─ rejected rows ───────────────────────────────────▶ jaffle_shop_raw.rejected_rows

Run it alone with `python include/dlt_pipelines/jaffle_shop_pipeline.py`.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
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
from dlt.extract import DltResource, with_file_import  # noqa: E402
from dlt.pipeline.exceptions import PipelineStepFailed  # noqa: E402

from include import warehouse  # noqa: E402
from include.dlt_pipelines.csv_files import (  # noqa: E402
    ParsedFile,
    SourceChangedError,
    SourceFileError,
    TableContract,
    find_file,
    parse,
    read_header,
)

log = logging.getLogger(__name__)

SCHEMA = "jaffle_shop_raw"
INCOMING = f"{SCHEMA}_incoming"
REJECTS_SHOWN = 5

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
    """More rows were rejected than the run tolerates."""


class DiskFullError(Exception):
    """The warehouse's disk is full; a retry can succeed once there is space."""


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
        `schema_changes`, one line for each column that came, went or changed its type. Also kept as an artifact.

    Raises:
        SourceFileError: a file is missing, unreadable or not as its contract says; a retry cannot mend it.
        RejectedRowsError: more rows were rejected than tolerated; they are in `jaffle_shop_raw.rejected_rows`.
        SourceChangedError: a file was written to meanwhile; a retry can mend it.
        DiskFullError: the warehouse's disk is full; the raw tables are as they were.
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    started = time.monotonic()
    limit = dlt.config["sources.jaffle_shop.max_rejected_rows"] if max_rejected_rows is None else max_rejected_rows
    data_dir = PROJECT_DIR / dlt.config["sources.jaffle_shop.data_dir"]
    _check_files(data_dir)
    work_dir = warehouse.warehouse_dir() / "load"
    with warehouse.open_working() as con:
        # Whoever holds the database is the only load; what a killed one left is litter.
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir()
        before = _signatures(data_dir)
        try:
            con.execute(f"drop schema if exists {INCOMING} cascade")
            parsed: dict[str, ParsedFile] = {}
            pipeline = dlt.pipeline(
                "jaffle_shop",
                pipelines_dir=str(work_dir / "dlt"),
                destination=dlt.destinations.duckdb(con),
                dataset_name=INCOMING,
            )
            try:
                pipeline.extract(jaffle_shop(work_dir, parsed))
            finally:
                _check_unchanged(data_dir, before)  # else a half-written file would be told as a bad one
            load_id = pipeline.list_extracted_load_packages()[0]
            rejected = sum(outcome.rows_rejected for outcome in parsed.values())
            if rejected > limit:
                with _transaction(con):
                    _store_rejects(con, parsed)
                raise RejectedRowsError(_rejects_message(con, load_id, rejected, limit))
            pipeline.normalize()
            pipeline.load()
            changes = _promote(con, parsed)
        except (PipelineStepFailed, duckdb.Error, OSError) as failure:
            if told := _told(failure, work_dir):
                raise told from None  # it may be the cause of the failure, and a chain in a circle hangs loggers
            raise
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)
    tables = {
        name: {
            "file": str(outcome.file),
            "bytes": before[name].st_size,
            "rows_loaded": outcome.rows_loaded,
            "rows_rejected": outcome.rows_rejected,
        }
        for name, outcome in parsed.items()
    }
    summary = {
        "run_id": run_id,
        "load_id": load_id,
        "loaded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 3),
        "bytes": sum(stat.st_size for stat in before.values()),
        "rows_loaded": sum(outcome.rows_loaded for outcome in parsed.values()),
        "rows_rejected": rejected,
        "tables": tables,
        "schema_changes": changes,
    }
    folder = warehouse.artifacts_dir() / warehouse.snapshot_id(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.json").write_text(json.dumps(summary, indent=2) + "\n")
    log.info("loaded %d rows in %.1f s, %d rejected", summary["rows_loaded"], summary["seconds"], rejected)
    return summary


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
        if "No space left on device" in str(error):
            return DiskFullError(
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


def _rejects_message(con: duckdb.DuckDBPyConnection, load_id: str, rejected: int, limit: int) -> str:
    first = con.execute(
        f"select file, line, column_name, reason, text from {SCHEMA}.rejected_rows where _dlt_load_id = ? "
        "order by table_name, line limit ?",
        [load_id, REJECTS_SHOWN],
    ).fetchall()
    lines = [
        f"{file}:{line}: {f'column {column}: ' if column else ''}{' '.join(reason.split())[:300]}: {text[:200]!r}"
        for file, line, column, reason, text in first
    ]
    if rejected > len(lines):
        lines.append(f"... and {rejected - len(lines)} more")
    return "\n".join(
        [
            f"{rejected} row(s) rejected, at most {limit} tolerated. Nothing was loaded.",
            *lines,
            f"All of them, in the working database: from {SCHEMA}.rejected_rows where _dlt_load_id = '{load_id}'",
            "Mend the file, then clear this task; or trigger a run with a higher max_rejected_rows.",
        ]
    )


def _promote(con: duckdb.DuckDBPyConnection, parsed: dict[str, ParsedFile]) -> list[str]:
    """Move all loaded tables into the raw schema in one transaction, and return what that changed in it.

    dlt's own atomic replace is one transaction for each table, and a kill between two would mix two loads.
    """
    with _transaction(con):
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
    except (SourceFileError, SourceChangedError, DiskFullError, warehouse.WarehouseError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
