"""Load a folder of files: parse what is new or changed, and bring the tables to the state of the folder."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow.parquet
from dlt.common.schema.typing import TColumnSchema
from dlt.extract import DltResource, with_file_import

from include.dlt_pipelines import drop_folder, files, rejects
from include.dlt_pipelines.drop_folder import LoadedFile, stat_of
from include.dlt_pipelines.file_source import FileSource, find_problems, refuse
from include.dlt_pipelines.files import (
    ParsedFile,
    SourceChangedError,
    SourceFileError,
    TableContract,
    connect,
    find_files,
    merge,
    parse,
)
from include.dlt_pipelines.files.text import unreadable
from include.dlt_pipelines.loaders import Loader, loaded_tables
from include.runs import artifacts
from include.warehouse.targets import target

logger = logging.getLogger(__name__)

_FILES_SHOWN = 5
_SMALL, _TOGETHER = 10_000_000, 500  # bytes of a Parquet file, and how many become one
# Column names as in the contract, of which dlt would make others: `Store ID` would be loaded as `store_id`.
_NORMALIZERS: Any = {"names": "direct", "json": {"module": "dlt.common.normalizers.json.relational"}}


@dataclass
class Delivery:
    """The files of one table, compared with those that it holds.

    Attributes:
        table: the contract.
        paths: all files, by name.
        files: the same as they are now, with what identifies their data.
        held: whether the table stays, as it holds the other files' rows already.
        removed: names of files that the table holds, but that were changed or withdrawn.
        new: names of the files to parse: new or changed ones.
        parsed: their outcomes.
        superseded: rows of them that others supersede, if the table merges and holds no rows yet.
    """

    table: TableContract
    paths: dict[str, Path]
    files: dict[str, LoadedFile]
    held: bool
    removed: list[str]
    new: list[str]
    parsed: list[ParsedFile] = field(default_factory=list)
    superseded: Path | None = None

    @property
    def build_id(self) -> str:
        """What identifies the table's data: the same for the same files and contract."""
        if not self.table.files:
            return next(iter(self.files.values())).digest
        digests = [(name, file.digest) for name, file in sorted(self.files.items())]
        return hashlib.sha256(repr(digests).encode()).hexdigest()


class FileLoader(Loader):
    """Loads files with a contract: replaces a table by its file, and brings that of a drop folder to its state."""

    def __init__(self, source: FileSource, schema: str, full_refresh: bool) -> None:
        """Load nothing yet.

        Args:
            source: the source.
            schema: its schema in the working database.
            full_refresh: read all files of drop folders.
        """
        super().__init__(schema, full_refresh)
        self._source = source
        self._deliveries: list[Delivery] = []
        self.max_rejected_rows = source.max_rejected_rows
        self.adds_rows = not full_refresh and any(table.files for table in source.tables)

    def check(self) -> None:
        """Check all file names and headers.

        Raises:
            SourceFileError: with every problem found.
        """
        self._source.check_files()

    def extract(self, connection: duckdb.DuckDBPyConnection, pipeline: dlt.Pipeline, work_dir: Path) -> None:
        """Parse the files; of a drop folder, only those that are new or have changed.

        Raises:
            SourceFileError: a file violates its contract; a retry cannot fix it.
            SourceChangedError: a file was modified meanwhile; a retry may succeed.
        """
        tables = self._source.tables
        paths = {table.name: find_files(self._source.data_dir, table) for table in tables}
        before = {path: path.stat() for found in paths.values() for path in found.values()}
        try:
            with ThreadPoolExecutor() as threads:
                for table in tables:
                    known = {} if self.full_refresh else drop_folder.known_files(connection, self.schema, table)
                    self._deliveries.append(_compare(table, paths[table.name], before, known, threads))
            folders = [one for one in self._deliveries if one.table.files]
            refuse([said for one in folders for said in find_problems(one.table, map(one.paths.__getitem__, one.new))])
            resources = [_resource(delivery, work_dir) for delivery in self._deliveries]
            schema = dlt.Schema(self._source.name, _NORMALIZERS)
            pipeline.extract(dlt.source(lambda: resources, section=self._source.name, schema=schema)())
        finally:
            # Otherwise a half-written file would be reported as a bad one, and a digest could be that of other data.
            self._check_unchanged(before, paths)
        self.parsed = [outcome for delivery in self._deliveries for outcome in delivery.parsed]

    def tables(self, pipeline: dlt.Pipeline) -> dict[str, artifacts.TableLoad]:
        """Return the rows, files and bytes read, by table."""
        return {
            one.table.name: artifacts.TableLoad(
                rows_loaded=sum(outcome.rows_loaded for outcome in one.parsed),
                rows_rejected=sum(outcome.rows_rejected for outcome in one.parsed),
                file=", ".join(str(outcome.file) for outcome in one.parsed[:_FILES_SHOWN]),
                bytes=sum(outcome.file.stat().st_size for outcome in one.parsed),
                files=len(one.parsed),
                files_removed=len(one.removed),
            )
            for one in self._deliveries
        }

    def prepare(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> None:
        """Drop tables that no contract declares, clear those to replace, and remove rows of changed files."""
        declared = {name for one in self._deliveries for name in _names(one.table)}
        for name in loaded_tables(connection, self.schema) - declared - {"_dlt_loads"}:
            target().drop(connection, self.schema, name)
        for one in self._deliveries:
            if one.held:
                drop_folder.remove(connection, self.schema, one.table, one.removed, load_id)
            else:
                _create_tables(connection, self.schema, one.table)

    def conclude(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> dict[str, str]:
        """Store rejected rows, and record the files of drop folders; return what identifies each table's data."""
        rejects.store(connection, self.schema, self.parsed, load_id)
        for one in self._deliveries:
            drop_folder.conclude(connection, self.schema, one.table, one.files, load_id, one.superseded)
        return {one.table.name: one.build_id for one in self._deliveries}

    def codes(self) -> dict[str, str]:
        """Return the digests of the contracts."""
        return {name: table.code for table in self._source.tables for name in _names(table)}

    def _check_unchanged(self, before: Mapping[Path, os.stat_result], paths: Mapping[str, Mapping[str, Path]]) -> None:
        for table in self._source.tables:
            try:
                now = find_files(self._source.data_dir, table)
            except (SourceFileError, OSError):
                now = {}
            for name, path in paths[table.name].items():
                old = before[path]
                try:
                    new = path.stat()
                    changed = (old.st_ino, old.st_size, old.st_mtime_ns) != (new.st_ino, new.st_size, new.st_mtime_ns)
                except OSError:
                    changed = True
                if changed or name not in now:
                    raise SourceChangedError(
                        f"{path}: modified while being read. Nothing was loaded. Deliver files under a temporary name "
                        "and rename them when complete, then clear this task."
                    )


def _compare(
    table: TableContract,
    paths: dict[str, Path],
    stats: Mapping[Path, os.stat_result],
    known: Mapping[str, LoadedFile],
    threads: ThreadPoolExecutor,
) -> Delivery:
    definition = table.definition.encode() + _parser()
    mark, now = hashlib.sha256(definition).hexdigest()[:16], time.time_ns()

    def look(name: str) -> LoadedFile:
        found = stat_of(stats[paths[name]], now)
        old, stat = known.get(name), f"{mark} {found}" if found else ""
        if old and stat and old.stat == stat:
            return old
        try:
            with paths[name].open("rb") as content:
                digest = hashlib.file_digest(content, "sha256")
        except OSError as error:
            raise unreadable(paths[name], error) from None
        digest.update(definition)
        return LoadedFile(digest.hexdigest(), stat)

    files = dict(zip(paths, threads.map(look, paths), strict=True))
    new = [name for name in files if name not in known]
    changed = [name for name in files if name in known and known[name].digest != files[name].digest]
    withdrawn = [name for name in known if name not in files]
    if table.files:
        unchanged = len(files) - len(new) - len(changed)
        counts = (len(new), len(changed), len(withdrawn), unchanged)
        logger.info("%s: %d files new, %d changed, %d withdrawn, %d unchanged", table.name, *counts)
    if withdrawn:
        logger.warning("%s: withdrawn, so their rows are removed: %s", table.name, _some(withdrawn))
    return Delivery(table, paths, files, bool(known), [*changed, *withdrawn], [*new, *changed])


def _resource(delivery: Delivery, work_dir: Path) -> DltResource:
    table = delivery.table

    def rows() -> Iterator[Any]:
        load_id = dlt.current.load_package_state()["load_id"]
        with connect(table, work_dir / "spill") as connection:
            parts: Iterable[Path] = _parse(delivery, connection, work_dir, load_id)
            if table.files and len(table.columns) <= files.WIDE:
                is_settled = table.write_disposition == "merge" and not delivery.held
                if not is_settled or len(delivery.new) > _TOGETHER:
                    parts = _in_fewer(parts, connection, work_dir / f"{table.name}-together")
                if is_settled:
                    settled, delivery.superseded = drop_folder.settle(connection, table, list(parts), work_dir)
                    parts = [settled]
            for part in parts:
                with pyarrow.parquet.ParquetFile(part) as parquet:
                    empty, count = parquet.schema_arrow.empty_table(), parquet.metadata.num_rows
                yield with_file_import(str(part), "parquet", count, hints=empty)

    # Nullable: duplicate and missing keys are left to dbt tests.
    hints: dict[str, TColumnSchema] = {name: {"primary_key": True, "nullable": True} for name in table.primary_key}
    for name, type_ in table.columns.items():
        if type_ in ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"):
            # Otherwise dlt rewrites the file, to add a time zone.
            hints[name] = {**hints.get(name, {}), "data_type": "timestamp", "timezone": False}
    disposition: Any = "append" if table.files else "replace"
    return dlt.resource(rows, name=table.name, write_disposition=disposition, columns=hints)


def _parse(delivery: Delivery, connection: duckdb.DuckDBPyConnection, work_dir: Path, load_id: str) -> Iterator[Path]:
    """Parse the files, and yield Parquet files of their rows."""
    for number, name in enumerate(sorted(delivery.new)):
        path, out_dir = delivery.paths[name], work_dir / f"{delivery.table.name}-{number}"
        out_dir.mkdir()
        logger.info("%s: parsing %.1f MB", path, path.stat().st_size / 1e6)
        outcome = parse(path, delivery.table, out_dir, load_id, connection)
        outcome = replace(outcome, table=delivery.table.name, digest=delivery.files[name].digest)
        delivery.parsed.append(outcome)
        logger.info("%s: %d rows, %d rejected", path, outcome.rows_loaded, outcome.rows_rejected)
        yield outcome.parquet


def _in_fewer(parts: Iterable[Path], connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[Path]:
    """Yield small Parquet files together: each costs dlt as much as 100,000 rows."""
    folder.mkdir()
    small: list[Path] = []
    for number, part in enumerate(parts):
        if part.stat().st_size > _SMALL:
            yield part
            continue
        small.append(part)
        if len(small) == _TOGETHER:
            yield merge(connection, small, folder / f"{number}.parquet")
            small = []
    if small:
        yield merge(connection, small, folder / "rest.parquet")


def _create_tables(connection: duckdb.DuckDBPyConnection, schema: str, table: TableContract) -> None:
    # With the contract's types: dlt would turn TIMESTAMP into TIMESTAMP WITH TIME ZONE, and FLOAT into DOUBLE.
    columns = {**table.columns, **dict.fromkeys(table.added_columns, "varchar")}
    for name in _names(table):
        target().replace_table(connection, schema, name, columns)


def _names(table: TableContract) -> Sequence[str]:
    return list(drop_folder.tables_of(table)) or [table.name]


@cache
def _parser() -> bytes:
    """Return what identifies the code that parses files."""
    modules = sorted(Path(files.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).digest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
