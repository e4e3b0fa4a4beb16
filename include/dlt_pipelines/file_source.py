"""A folder of CSV files as a source: one file per table, or a drop folder, each with a contract."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import dlt
import pyarrow.parquet
from dlt.common.schema.typing import TColumnSchema
from dlt.extract import DltResource, with_file_import

from include import warehouse
from include.dlt_pipelines import files, landing
from include.dlt_pipelines.drop_folder import LoadedFile, stat_of
from include.dlt_pipelines.files import (
    CsvDialect,
    ParsedFile,
    SourceChangedError,
    SourceFileError,
    TableContract,
    find_files,
    parse,
    read_header,
)
from include.settings import REPOSITORY_ROOT

__all__ = ["CsvDialect", "FileSource", "TableContract"]

logger = logging.getLogger(__name__)

_PROBLEMS_SHOWN = 20
# Column names as in the contract, of which dlt would make others: `Store ID` would be loaded as `store_id`.
_NORMALIZERS: Any = {"names": "direct", "json": {"module": "dlt.common.normalizers.json.relational"}}


@dataclass
class Delivery:
    """The files of one table, compared with those that it holds.

    Attributes:
        table: the contract.
        paths: all files, by name.
        files: the same as they are now, with what identifies their data.
        removed: names of files that the table holds, but that were changed or withdrawn.
        new: names of the files to parse: new or changed ones.
        parsed: their outcomes.
    """

    table: TableContract
    paths: dict[str, Path]
    files: dict[str, LoadedFile]
    removed: list[str]
    new: list[str]
    parsed: list[ParsedFile] = field(default_factory=list)

    @property
    def build_id(self) -> str:
        """What identifies the table's data: the same for the same files and contract."""
        if not self.table.files:
            return next(iter(self.files.values())).digest
        digests = [(name, file.digest) for name, file in sorted(self.files.items())]
        return hashlib.sha256(repr(digests).encode()).hexdigest()


@dataclass(frozen=True)
class FileSource:
    """CSV files delivered and loaded together.

    Each load replaces a table by its file, and brings the table of a drop folder to the state of the folder.

    Attributes:
        name: the source's name; its tables go to the schema `NAME_raw`.
        folder: folder of the files, relative to the project; `SOURCES__NAME__DATA_DIR` overrides it, and may also be
            the URL of a folder in an object store.
        tables: the contracts.
        max_rejected_rows: rejected rows to tolerate per load, over all files that it reads, before it fails.
    """

    name: str
    folder: str
    tables: tuple[TableContract, ...]
    max_rejected_rows: int = 0

    @property
    def data_dir(self) -> Path:
        """The folder of the files; of those in an object store, of their copies."""
        if "://" in self._location:
            return warehouse.warehouse_dir() / "landing" / self.name
        return REPOSITORY_ROOT / self._location

    @property
    def _location(self) -> str:
        return os.environ.get(f"SOURCES__{self.name.upper()}__DATA_DIR") or self.folder

    def check_files(self) -> None:
        """Check all file names and headers, and report every problem at once; copy them from an object store first.

        Raises:
            SourceFileError: a file is missing or unreadable, or its header violates the contract.
        """
        if "://" in self._location:
            landing.copy(self._location, self.data_dir)
        problems = []
        for table in self.tables:
            try:
                paths = find_files(self.data_dir, table).values()
            except SourceFileError as error:
                problems.append(str(error))
                continue
            for path in paths:
                try:
                    read_header(path, table)
                except SourceFileError as error:
                    problems.append(str(error))
        if problems:
            more = [f"... and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
            lines = [*problems[:_PROBLEMS_SHOWN], *more, "Nothing was loaded. Fix the files, then clear this task."]
            raise SourceFileError("\n".join(lines))

    def extract(
        self, pipeline: dlt.Pipeline, work_dir: Path, known: Mapping[str, Mapping[str, LoadedFile]]
    ) -> list[Delivery]:
        """Parse the files into a load package; of a drop folder, only those that are new or have changed.

        Args:
            pipeline: the pipeline to extract into.
            work_dir: an existing folder for temporary files.
            known: the files that the tables of drop folders hold, by table and name.

        Returns:
            One per table.

        Raises:
            SourceFileError: a file violates its contract; a retry cannot fix it.
            SourceChangedError: a file was modified meanwhile; a retry may succeed.
        """
        paths = {table.name: find_files(self.data_dir, table) for table in self.tables}
        before = {path: path.stat() for found in paths.values() for path in found.values()}
        try:
            with ThreadPoolExecutor() as threads:
                deliveries = [
                    self._compare(table, paths[table.name], before, known.get(table.name, {}), threads)
                    for table in self.tables
                ]
            resources = [self._resource(delivery, work_dir) for delivery in deliveries]
            schema = dlt.Schema(self.name, _NORMALIZERS)
            pipeline.extract(dlt.source(lambda: resources, section=self.name, schema=schema)())
        finally:
            # Otherwise a half-written file would be reported as a bad one, and a digest could be that of other data.
            self._check_unchanged(before, paths)
        return deliveries

    def _compare(
        self,
        table: TableContract,
        paths: dict[str, Path],
        stats: Mapping[Path, os.stat_result],
        known: Mapping[str, LoadedFile],
        threads: ThreadPoolExecutor,
    ) -> Delivery:
        what = dict(table.columns), table.primary_key, table.write_disposition, table.format, table.sheet, table.dialect
        definition = repr(what).encode() + _parser()
        mark, now = hashlib.sha256(definition).hexdigest()[:16], time.time_ns()

        def look(name: str) -> LoadedFile:
            found = stat_of(stats[paths[name]], now)
            old, stat = known.get(name), f"{mark} {found}" if found else ""
            if old and stat and old.stat == stat:
                return old
            with paths[name].open("rb") as content:
                digest = hashlib.file_digest(content, "sha256")
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
        return Delivery(table, paths, files, [*changed, *withdrawn], [*new, *changed])

    def _resource(self, delivery: Delivery, work_dir: Path) -> DltResource:
        table = delivery.table

        def rows() -> Iterator[Any]:
            load_id = dlt.current.load_package_state()["load_id"]
            for number, name in enumerate(sorted(delivery.new)):
                path, out_dir = delivery.paths[name], work_dir / f"{table.name}-{number}"
                out_dir.mkdir()
                logger.info("%s: parsing %.1f MB", path, path.stat().st_size / 1e6)
                outcome = parse(path, table, out_dir, load_id)
                delivery.parsed.append(outcome)
                logger.info("%s: %d rows, %d rejected", path, outcome.rows_loaded, outcome.rows_rejected)
                with pyarrow.parquet.ParquetFile(outcome.parquet) as parquet:
                    empty = parquet.schema_arrow.empty_table()
                yield with_file_import(str(outcome.parquet), "parquet", outcome.rows_loaded, hints=empty)

        # Nullable: duplicate and missing keys are left to dbt tests.
        keys: dict[str, TColumnSchema] = {name: {"primary_key": True, "nullable": True} for name in table.primary_key}
        disposition: Any = "append" if table.files else "replace"
        return dlt.resource(rows, name=table.name, write_disposition=disposition, columns=keys)

    def _check_unchanged(self, before: Mapping[Path, os.stat_result], paths: Mapping[str, Mapping[str, Path]]) -> None:
        for table in self.tables:
            try:
                now = find_files(self.data_dir, table)
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


@cache
def _parser() -> bytes:
    """Return what identifies the code that parses files."""
    modules = sorted(Path(files.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).digest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
