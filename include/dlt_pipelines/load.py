"""Load a source into its schema of the working database: all tables in one transaction, or none.

    source ──extract, normalize (dlt)──▶ Parquet ──┐
                                                   ├─ one transaction ─▶ NAME_raw.*, the build graph's record
    rows that violate a file's contract ───────────┘                     NAME_raw.rejected_rows

dlt's state is in the same schema (`_dlt_*`), so restoring the warehouse restores the data together with its state.
"""

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

import dlt
import duckdb
from dlt.common.schema.exceptions import DataValidationError
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials
from dlt.extract import DltSource
from dlt.pipeline.exceptions import PipelineStepFailed

from include import masking
from include.dlt_pipelines import drop_folder, rejects
from include.dlt_pipelines.file_loader import FileLoader
from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import MEMORY
from include.dlt_pipelines.loaders import DltLoader, Loader
from include.dlt_pipelines.source_errors import describe, secrets_of
from include.errors import PipelineError, is_disk_full
from include.runs import artifacts
from include.settings import REJECTED_ROWS, warehouse_name
from include.sql import identifier
from include.warehouse import builds, paths
from include.warehouse.errors import DiskFullError
from include.warehouse.targets import target

logger = logging.getLogger(__name__)

Source = FileSource | DltSource

_PROBE = re.compile(r'\s*select\b[^;]*?\bfrom "([^"]+)"\."(_dlt_\w+)"', re.IGNORECASE | re.DOTALL)


class SourceContractError(PipelineError):
    """The data has a new column, or a type that doesn't match the table."""

    runbook = "A source file is missing or malformed"


def find_source(name: str) -> Source:
    """Return a source by name: `SOURCE` of the module `NAME_pipeline` in this package.

    Args:
        name: the source's name.

    Raises:
        SourceError: there is no such module, or it cannot be imported.
        ValueError: the source has another name than its module.
    """
    try:
        found: Source = import_module(f"{__package__}.{name}_pipeline").SOURCE
    except Exception as failure:  # noqa: BLE001, any library that a source uses can raise its own
        raise describe(failure, name, declaring=True) from None
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
        SourceError: the source cannot be read.
        include.warehouse.DiskFullError: the warehouse's disk is full; the tables are unchanged.
        include.warehouse.errors.WarehouseError: the working database cannot be opened.
    """
    with masking.masked_logs(secrets_of(source.name)):
        return _load_masked(source, run_id, max_rejected_rows, full_refresh)


def _load_masked(source: Source, run_id: str, max_rejected_rows: int | None, full_refresh: bool) -> artifacts.Load:
    started = time.monotonic()
    loader = _loader(source, full_refresh)
    loader.check()
    limit = loader.max_rejected_rows if max_rejected_rows is None else max_rejected_rows
    with target().open_working() as connection:
        connection.execute(f"set memory_limit = '{MEMORY}'")  # otherwise its cache grows with the files
        connection.execute("set preserve_insertion_order = false")  # a table has none, and it costs a quarter
        try:
            with _work_dir() as work_dir:
                summary = _load(connection, loader, work_dir, artifacts.Load(run_id, source.name), limit, started)
        except (PipelineStepFailed, duckdb.Error, OSError) as failure:
            if known := _known_error(failure, source.name):
                raise known from None  # it may itself be the failure's cause, and a circular chain hangs loggers
            if isinstance(failure, PipelineStepFailed):
                raise describe(failure, source.name) from None
            raise
    logger.info("loaded %d rows, %d rejected", summary.rows_loaded, summary.rows_rejected)
    return summary


@contextmanager
def _work_dir() -> Iterator[Path]:
    """Yield an empty folder for the load's files, and remove it; if they should be encrypted, even after a SIGKILL.

    Holding the database means that no other load is running, so what is there is left over from a killed one.
    """
    folder = paths.warehouse_dir() / "load"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work_dir = Path(tempfile.mkdtemp(dir=folder))  # of its own: the remover of a killed load may be late
    try:
        with _removed_if_killed(work_dir) if target().encrypts else nullcontext():
            yield work_dir
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _removed_if_killed(folder: Path) -> Iterator[None]:
    alive, ours = os.pipe()
    # It reads until this process closes the pipe, which the kernel does for a process that is killed.
    remover = subprocess.Popen(["sh", "-c", 'cat; rm -rf -- "$0"', folder], stdin=alive, start_new_session=True)
    os.close(alive)
    try:
        yield
    finally:
        remover.kill()
        remover.wait()
        os.close(ours)


def _loader(source: Source, full_refresh: bool) -> Loader:
    schema = f"{source.name}_raw"
    if isinstance(source, FileSource):
        return FileLoader(source, schema, full_refresh)
    return DltLoader(source, schema, full_refresh)


def _load(
    connection: duckdb.DuckDBPyConnection,
    loader: Loader,
    work_dir: Path,
    summary: artifacts.Load,
    limit: int,
    started: float,
) -> artifacts.Load:
    _revert(connection, loader.schema)
    technical = (REJECTED_ROWS, drop_folder.LOADED_FILES)
    target().fetch(
        connection, loader.schema, lambda one: loader.adds_rows or one in technical or one.startswith("_dlt")
    )
    pipeline = _pipeline(connection, summary.source, loader.schema, work_dir)
    loader.extract(connection, pipeline, work_dir)
    load_id = next(iter(pipeline.list_extracted_load_packages()), "")
    summary = replace(summary, load_id=load_id, rejected=rejects.first(connection, loader.parsed))
    rejected = sum(one.rows_rejected for one in loader.parsed)
    if rejected > limit:
        _fail(connection, loader, replace(summary, tables=loader.tables(pipeline)), limit, started)
    pipeline.normalize()
    summary = replace(summary, tables=loader.tables(pipeline))
    with target().transaction(connection):
        before = _columns(connection, loader.schema)
        # Else dlt cannot set its search path, an error that aborts a transaction of DuckDB 2.
        connection.execute(f"create schema if not exists {identifier(loader.schema)}")
        loader.prepare(connection, load_id)
        pipeline.load()
        connection.execute(f"use {warehouse_name()}")  # dlt has set its own schema
        built = loader.conclude(connection, load_id)
        if load_id:
            record, codes = (
                {f"{loader.schema}.{table}": one for table, one in ones.items()} for ones in (built, loader.codes())
            )
            builds.record_load(connection, summary.run_id, record, stateful=loader.stateful, codes=codes)
        changes = _changes(before, _columns(connection, loader.schema))
        summary = _end(replace(summary, schema_changes=changes), started)
        written = artifacts.write_load(summary)
    artifacts.keep(written)
    _drop_helper_schema(connection, loader.schema)
    return summary


def _revert(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Set the tables back to their published state, if a run that was killed or failed has changed them."""
    _drop_helper_schema(connection, schema)
    for table in builds.revert_unpublished(connection, schema):
        logger.warning("%s: reverted to its published state, as an unpublished run had changed it", table)


def _pipeline(connection: duckdb.DuckDBPyConnection, name: str, schema: str, work_dir: Path) -> dlt.Pipeline:
    return dlt.pipeline(
        name,
        pipelines_dir=str(work_dir / "dlt"),
        destination=dlt.destinations.duckdb(_credentials(connection)),
        dataset_name=schema,
    )


def _fail(
    connection: duckdb.DuckDBPyConnection, loader: Loader, summary: artifacts.Load, limit: int, started: float
) -> NoReturn:
    """Keep the rejected rows and the summary of a load that rejected too many, and raise its error."""
    error = rejects.too_many(summary, loader.schema, limit)
    with target().transaction(connection):
        rejects.store(connection, loader.schema, loader.parsed, summary.load_id, failed=True)
        written = artifacts.write_load(_end(replace(summary, error=str(error)), started))
    artifacts.keep(written)
    raise error


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

    def execute(self, query: object, *arguments: Any) -> duckdb.DuckDBPyConnection:
        """Answer dlt if it looks for a table of its own that is missing: an error aborts a transaction of DuckDB 2."""
        probe = _PROBE.match(query) if isinstance(query, str) else None
        if probe:
            exists = "select 1 from duckdb_tables() where (database_name, schema_name, table_name) = (?, ?, ?)"
            if not self._connection.execute(exists, [warehouse_name(), *probe.groups()]).fetchall():
                raise duckdb.CatalogException(f"Table with name {probe[2]} does not exist!")
        return self._connection.execute(query, *arguments)  # type: ignore[arg-type]

    def _do_nothing(self) -> "_InTransaction":
        return self

    begin = commit = rollback = close = duplicate = cursor = _do_nothing


def _credentials(connection: duckdb.DuckDBPyConnection) -> DuckDbCredentials:
    credentials = DuckDbCredentials(cast(duckdb.DuckDBPyConnection, _InTransaction(connection)))
    # dlt sets the search path to its schema, which loses an attached database.
    credentials.pragmas = [f"search_path='{warehouse_name()}.main'"]
    return credentials


def _known_error(failure: BaseException, source: str) -> Exception | None:
    """Return the error that says what to do, even if dlt has wrapped it; None for an unknown error."""
    error: BaseException | None = failure
    while error:
        if isinstance(error, PipelineError):
            return error
        if isinstance(error, DataValidationError):
            text = masking.mask(" ".join(str(error).split()), secrets_of(source))
            return SourceContractError(
                f"{source}: {text}. Nothing was loaded. If the source has changed "
                "permanently, start a run with full_refresh; otherwise have it fixed, then clear this task."
            )
        if is_disk_full(str(error)):
            return DiskFullError(
                f"No space left in {paths.warehouse_dir()} for the load. The raw tables are unchanged. Free some "
                "space, then clear this task."
            )
        error = error.__cause__ or error.__context__
    return None


def _columns(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, str]:
    return {
        f"{table}.{column}": type_
        for table, column, type_ in target().columns(connection, schema)
        if table not in (REJECTED_ROWS, drop_folder.LOADED_FILES) and not table.startswith("_dlt")
    }


def _changes(old: dict[str, str], new: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{column}: {old.get(column, 'absent')} -> {new.get(column, 'absent')}"
        for column in sorted(old.keys() | new.keys())
        if old.get(column) != new.get(column)
    )
