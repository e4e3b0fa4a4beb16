"""Load a source into its schema of the working database: all tables in one transaction, or none.

    source ──extract, normalize (dlt)──▶ Parquet ──┐
                                                   ├─ one transaction ─▶ NAME_raw.*, the build graph's record
    rows that violate a CSV contract ──────────────┘                     NAME_raw.rejected_rows

dlt's state is in the same schema (`_dlt_*`), so restoring the warehouse restores the data together with its state.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import dlt
import duckdb
from dlt.common.schema.exceptions import DataValidationError
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials
from dlt.extract import DltSource
from dlt.pipeline.exceptions import PipelineStepFailed

from include import warehouse
from include.dlt_pipelines import drop_folder
from include.dlt_pipelines.file_source import Delivery, FileSource
from include.dlt_pipelines.files import MEMORY, ParsedFile, SourceFileError, TableContract
from include.errors import PipelineError, is_disk_full
from include.runs import artifacts
from include.sql import identifier

logger = logging.getLogger(__name__)

Source = FileSource | DltSource

REJECTS_SHOWN = 5
_FILES_SHOWN = 5
REJECTS_KEPT = 100  # per load, in its summary; the table has all of them
REJECTS_KEPT_DAYS = 90
_REJECTS = "rejected_rows"
# New tables are allowed; a new column or a changed type requires full_refresh.
_CONTRACT: Any = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}


class RejectedRowsError(SourceFileError):
    """More rows were rejected than the run tolerates."""

    runbook = "The load rejected rows"


class SourceContractError(PipelineError):
    """The data has a new column, or a type that doesn't match the table."""

    runbook = "A source file is missing or malformed"


def find_source(name: str) -> Source:
    """Return a source by name: `SOURCE` of the module `NAME_pipeline` in this package.

    Args:
        name: the source's name.

    Raises:
        ModuleNotFoundError: there is no such module.
        ValueError: the source has another name than its module.
    """
    found: Source = import_module(f"{__package__}.{name}_pipeline").SOURCE
    if found.name != name:
        raise ValueError(f"The source in {name}_pipeline.py is named {found.name}: the names must match.")
    return found


def load(
    source: Source, run_id: str, max_rejected_rows: int | None = None, full_refresh: bool = False
) -> artifacts.Load:
    """Load all tables of a source, or none of them.

    A `FileSource` replaces its tables, and brings those of drop folders to the state of the folder. Any other source
    follows the write dispositions of its resources (replace, append, merge) and continues from the last published load.

    Args:
        source: the source to load.
        run_id: the run whose artifacts get the summary.
        max_rejected_rows: rejected rows to tolerate, over all files of a `FileSource`; default the source's limit.
        full_refresh: load everything again: all files of a drop folder, any other source without its state.

    Returns:
        The summary; it is also kept if rejected rows fail the load.

    Raises:
        SourceFileError: a file is missing, unreadable or violates its contract; a retry cannot fix it.
        RejectedRowsError: more rows were rejected than tolerated; they are in `NAME_raw.rejected_rows`.
        SourceChangedError: a file was modified meanwhile; a retry may succeed.
        SourceContractError: the data has a new column, or a type that doesn't match the table.
        include.warehouse.DiskFullError: the warehouse's disk is full; the tables are unchanged.
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    started = time.monotonic()
    if isinstance(source, FileSource):
        source.check_files()
        if max_rejected_rows is None:
            max_rejected_rows = source.max_rejected_rows
    summary = artifacts.Load(run_id, source.name)
    work_dir = warehouse.warehouse_dir() / "load"
    with warehouse.open_working() as connection:
        connection.execute(f"set memory_limit = '{MEMORY}'")  # otherwise its cache grows with the files
        try:
            # Holding the database means no other load is running: remove leftovers of a killed one.
            shutil.rmtree(work_dir, ignore_errors=True)
            work_dir.mkdir()
            summary = _load(connection, source, work_dir, summary, max_rejected_rows or 0, full_refresh, started)
        except (PipelineStepFailed, duckdb.Error, OSError) as failure:
            if known := _known_error(failure, source.name, work_dir):
                raise known from None  # it may itself be the failure's cause, and a circular chain hangs loggers
            raise
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)
    logger.info("loaded %d rows, %d rejected", summary.rows_loaded, summary.rows_rejected)
    return summary


def _load(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    work_dir: Path,
    summary: artifacts.Load,
    limit: int,
    full_refresh: bool,
    started: float,
) -> artifacts.Load:
    schema = f"{source.name}_raw"
    _drop_helper_schema(connection, schema)  # of a load that was killed
    for table in warehouse.revert_unpublished(connection, schema):
        logger.warning("%s: reverted to its published state, as an unpublished run had changed it", table)
    pipeline = dlt.pipeline(
        source.name,
        pipelines_dir=str(work_dir / "dlt"),
        destination=dlt.destinations.duckdb(_credentials(connection)),
        dataset_name=schema,
    )
    deliveries: list[Delivery] = []
    built: dict[str, str] = {}
    known: dict[str, dict[str, drop_folder.LoadedFile]] = {}
    if isinstance(source, FileSource):
        if not full_refresh:
            known = {table.name: drop_folder.known_files(connection, schema, table) for table in source.tables}
        deliveries = source.extract(pipeline, work_dir, known)
        built = {one.table.name: one.build_id for one in deliveries}
    else:
        if not source.schema_contract:
            source.schema_contract = _CONTRACT
        if not full_refresh:
            pipeline.sync_destination()
        pipeline.extract(source, loader_file_format="parquet")
    packages = pipeline.list_extracted_load_packages()
    load_id = packages[0] if packages else ""
    parsed = [outcome for delivery in deliveries for outcome in delivery.parsed]
    summary = replace(summary, load_id=load_id, rejected=_first_rejects(connection, parsed), tables=_tables(deliveries))
    if summary.rows_rejected > limit:
        error = _too_many_rejected(summary, schema, limit)
        with _transaction(connection):
            _store_rejects(connection, schema, parsed, summary)
            written = artifacts.write_load(_end(replace(summary, error=str(error)), started))
        artifacts.keep(written)
        raise error
    pipeline.normalize()
    if not isinstance(source, FileSource) and pipeline.last_trace and pipeline.last_trace.last_normalize_info:
        rows = pipeline.last_trace.last_normalize_info.row_counts
        tables = {name: artifacts.TableLoad(count) for name, count in rows.items() if not name.startswith("_dlt")}
        summary = replace(summary, tables=tables)
    with _transaction(connection):
        before = _columns(connection, schema)
        kept = {"_dlt_loads"} | {
            name for one in deliveries if known.get(one.table.name) for name in drop_folder.tables_of(one.table)
        }
        if isinstance(source, FileSource) or full_refresh:
            made = {name for one in deliveries for name in _names(one.table)}
            for table in _loaded_tables(connection, schema) - kept - made:
                warehouse.drop_table(connection, schema, table)
        for one in deliveries:
            if known.get(one.table.name):
                drop_folder.remove(connection, schema, one.table, one.removed, load_id)
            else:
                _create_tables(connection, schema, one.table)
        pipeline.load()
        connection.execute(f"use {warehouse.warehouse_name()}")  # dlt has set its own schema
        if isinstance(source, FileSource):
            _store_rejects(connection, schema, parsed, summary)
            for one in deliveries:
                drop_folder.conclude(connection, schema, one.table, one.files, load_id)
        else:
            built = dict.fromkeys(_loaded_tables(connection, schema), summary.load_id)
        stateful = not isinstance(source, FileSource) and any(
            resource.write_disposition != "replace" for resource in source.selected_resources.values()
        )
        if summary.load_id:
            record = {f"{schema}.{table}": build for table, build in built.items()}
            warehouse.record_load(connection, summary.run_id, record, stateful=stateful)
        changes = _changes(before, _columns(connection, schema))
        summary = _end(replace(summary, schema_changes=changes), started)
        written = artifacts.write_load(summary)
    artifacts.keep(written)
    _drop_helper_schema(connection, schema)
    return summary


def _create_tables(connection: duckdb.DuckDBPyConnection, schema: str, table: TableContract) -> None:
    # With the contract's types: dlt would turn TIMESTAMP into TIMESTAMP WITH TIME ZONE, and FLOAT into DOUBLE.
    columns = {**table.columns, **dict.fromkeys(table.added_columns, "varchar")}
    for name in _names(table):
        warehouse.replace_table(connection, schema, name, columns)


def _names(table: TableContract) -> Sequence[str]:
    return list(drop_folder.tables_of(table)) or [table.name]


def _drop_helper_schema(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    # dlt merges from it. DuckDB cannot drop a table in the transaction that created and changed it.
    connection.execute(f"drop schema if exists {identifier(f'{schema}_staging')} cascade")


def _end(summary: artifacts.Load, started: float) -> artifacts.Load:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(summary, ended_at=now, seconds=round(time.monotonic() - started, 3))


class _InTransaction:
    """A connection inside our transaction: dlt works in it, but its begin, commit, rollback and close do nothing.

    One load worker uses it (config.toml).
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Dlt takes a connection of ours if it is one of DuckDB's, which has no subclasses."""
        return duckdb.DuckDBPyConnection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _do_nothing(self) -> "_InTransaction":
        return self

    begin = commit = rollback = close = duplicate = cursor = _do_nothing


def _credentials(connection: duckdb.DuckDBPyConnection) -> DuckDbCredentials:
    credentials = DuckDbCredentials(cast(duckdb.DuckDBPyConnection, _InTransaction(connection)))
    # dlt sets the search path to its schema, which loses an attached database.
    credentials.pragmas = [f"search_path='{warehouse.warehouse_name()}.main'"]
    return credentials


def _tables(deliveries: Iterable[Delivery]) -> dict[str, artifacts.TableLoad]:
    return {
        one.table.name: artifacts.TableLoad(
            rows_loaded=sum(outcome.rows_loaded for outcome in one.parsed),
            rows_rejected=sum(outcome.rows_rejected for outcome in one.parsed),
            file=", ".join(str(outcome.file) for outcome in one.parsed[:_FILES_SHOWN]),
            bytes=sum(outcome.file.stat().st_size for outcome in one.parsed),
            files=len(one.parsed),
            files_removed=len(one.removed),
        )
        for one in deliveries
    }


def _known_error(failure: BaseException, source: str, work_dir: Path) -> Exception | None:
    """Return the error that says what to do, even if dlt has wrapped it; None for an unknown error."""
    error: BaseException | None = failure
    while error:
        if isinstance(error, PipelineError):
            return error
        if isinstance(error, DataValidationError):
            return SourceContractError(
                f"{source}: {' '.join(str(error).split())}. Nothing was loaded. If the source has changed "
                "permanently, start a run with full_refresh; otherwise have it fixed, then clear this task."
            )
        if is_disk_full(str(error)):
            return warehouse.DiskFullError(
                f"No space left in {work_dir.parent} for the load. The raw tables are unchanged. Free some space, "
                "then clear this task."
            )
        error = error.__cause__ or error.__context__
    return None


def _store_rejects(
    connection: duckdb.DuckDBPyConnection, schema: str, parsed: Sequence[ParsedFile], summary: artifacts.Load
) -> None:
    table = f"{schema}.{_REJECTS}"
    connection.execute(f"create schema if not exists {schema}")
    connection.execute(
        f"create table if not exists {table} (_dlt_load_id varchar, table_name varchar, file varchar, "
        "line bigint, column_name varchar, reason varchar, text varchar, rejected_at timestamptz)"
    )
    for outcome in parsed:
        if outcome.rejects:
            connection.execute(f"insert into {table} by name from read_parquet(?)", [str(outcome.rejects)])
    row = connection.execute(
        f"delete from {table} where rejected_at < now() - interval '{REJECTS_KEPT_DAYS} days'"
    ).fetchone()
    known = table in warehouse.recorded(connection, "node = relation")
    if summary.rows_rejected or (row and row[0]) or not known:
        warehouse.record_load(connection, "", {table: summary.load_id})  # of no run: a failed load changes it too


def _first_rejects(connection: duckdb.DuckDBPyConnection, parsed: Sequence[ParsedFile]) -> tuple[dict[str, Any], ...]:
    files = [str(outcome.rejects) for outcome in parsed if outcome.rejects]
    if not files:
        return ()
    columns = ("table_name", "file", "line", "column_name", "reason", "text")
    rows = connection.execute(
        f"select {', '.join(columns)} from read_parquet(?) order by table_name, line limit ?", [files, REJECTS_KEPT]
    )
    return tuple(dict(zip(columns, row, strict=True)) for row in rows.fetchall())


def _too_many_rejected(summary: artifacts.Load, schema: str, limit: int) -> RejectedRowsError:
    places = []
    for row in summary.rejected[:REJECTS_SHOWN]:
        column = f"column {row['column_name']}: " if row["column_name"] else ""
        places.append(f"{row['file']}:{row['line']}: {column}{' '.join(row['reason'].split())[:300]}")
    if summary.rows_rejected > len(places):
        places.append(f"... and {summary.rows_rejected - len(places)} more")
    return RejectedRowsError(
        "\n".join(
            [
                f"{summary.rows_rejected} row(s) rejected, at most {limit} tolerated. Nothing was loaded.",
                *places,
                f"To see them all, in the working database: from {schema}.{_REJECTS} where _dlt_load_id = "
                f"'{summary.load_id}'",
                "Fix the file, then clear this task; or trigger a run with a higher max_rejected_rows.",
            ]
        )
    )


def _loaded_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> set[str]:
    tables = {
        name for (place, name), kind in warehouse.relations(connection).items() if (place, kind) == (schema, "table")
    }
    return tables - {_REJECTS, drop_folder.LOADED_FILES}


def _columns(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, str]:
    rows = connection.execute(
        "select table_name || '.' || column_name, data_type from duckdb_columns() where database_name = ?"
        " and schema_name = ? and table_name not in (?, ?) and not starts_with(table_name, '_dlt')",
        [warehouse.warehouse_name(), schema, _REJECTS, drop_folder.LOADED_FILES],
    )
    return dict(rows.fetchall())


def _changes(old: dict[str, str], new: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{column}: {old.get(column, 'absent')} -> {new.get(column, 'absent')}"
        for column in sorted(old.keys() | new.keys())
        if old.get(column) != new.get(column)
    )


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException:
        with suppress(duckdb.Error):  # keep the first error; a failed commit has already rolled back
            connection.rollback()
        raise
