"""A folder of CSV files as a source: one file per table, each with a contract."""

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlt
import pyarrow.parquet
from dlt.common.schema.typing import TColumnSchema
from dlt.extract import DltResource, with_file_import

from include.dlt_pipelines import csv_files
from include.dlt_pipelines.csv_files import (
    ParsedFile,
    SourceChangedError,
    SourceFileError,
    TableContract,
    find_file,
    parse,
    read_header,
)
from include.settings import REPOSITORY_ROOT

__all__ = ["CsvSource", "TableContract"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CsvSource:
    """CSV files delivered and loaded together; each load replaces the tables in full.

    Attributes:
        name: the source's name; its tables go to the schema `NAME_raw`.
        folder: folder of the files, relative to the project; `SOURCES__NAME__DATA_DIR` overrides it.
        tables: the contracts.
        max_rejected_rows: rejected rows to tolerate per load, over all files, before it fails.
    """

    name: str
    folder: str
    tables: tuple[TableContract, ...]
    max_rejected_rows: int = 0

    @property
    def data_dir(self) -> Path:
        """The folder of the files."""
        return REPOSITORY_ROOT / (os.environ.get(f"SOURCES__{self.name.upper()}__DATA_DIR") or self.folder)

    def check_files(self) -> None:
        """Check all file names and headers, and report every problem at once.

        Raises:
            SourceFileError: a file is missing or unreadable, or its header violates the contract.
        """
        problems = []
        for table in self.tables:
            try:
                read_header(find_file(self.data_dir, table), table)
            except SourceFileError as error:
                problems.append(str(error))
        if problems:
            raise SourceFileError("\n".join([*problems, "Nothing was loaded. Fix the files, then clear this task."]))

    def extract(self, pipeline: dlt.Pipeline, work_dir: Path) -> tuple[dict[str, ParsedFile], dict[str, str]]:
        """Parse all files into a load package.

        Args:
            pipeline: the pipeline to extract into.
            work_dir: an existing folder for temporary files.

        Returns:
            The outcome by table, and what identifies the data of each: the same for the same file and contract.

        Raises:
            SourceFileError: a file violates its contract; a retry cannot fix it.
            SourceChangedError: a file was modified meanwhile; a retry may succeed.
        """
        before = {table.name: find_file(self.data_dir, table).stat() for table in self.tables}
        parsed: dict[str, ParsedFile] = {}
        resources = [self._resource(table, work_dir, parsed) for table in self.tables]
        try:
            pipeline.extract(dlt.source(lambda: resources, name=self.name, section=self.name)())
            with ThreadPoolExecutor() as threads:
                found = threads.map(self._digest, self.tables, [parsed[table.name].file for table in self.tables])
                digests = dict(zip((table.name for table in self.tables), found, strict=True))
        finally:
            # Otherwise a half-written file would be reported as a bad one, and a digest could be that of other data.
            self._check_unchanged(before)
        return parsed, digests

    def _digest(self, table: TableContract, file: Path) -> str:
        """Return what identifies a table's data: the bytes of its file, its contract and the parser."""
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256")
        found.update(f"{dict(table.columns)} {table.primary_key}".encode() + Path(csv_files.__file__).read_bytes())
        return found.hexdigest()

    def _resource(self, table: TableContract, work_dir: Path, parsed: dict[str, ParsedFile]) -> DltResource:
        def rows() -> Iterator[Any]:
            load_id = dlt.current.load_package_state()["load_id"]
            path = find_file(self.data_dir, table)
            log.info("%s: parsing %.1f MB", path, path.stat().st_size / 1e6)
            outcome = parsed[table.name] = parse(path, table, work_dir, load_id)
            log.info("%s: %d rows, %d rejected", path, outcome.rows_loaded, outcome.rows_rejected)
            with pyarrow.parquet.ParquetFile(outcome.parquet) as parquet:
                empty = parquet.schema_arrow.empty_table()
            yield with_file_import(str(outcome.parquet), "parquet", outcome.rows_loaded, hints=empty)

        # Nullable: duplicate and missing keys are left to dbt tests.
        keys: dict[str, TColumnSchema] = {name: {"primary_key": True, "nullable": True} for name in table.primary_key}
        return dlt.resource(rows, name=table.name, write_disposition="replace", columns=keys)

    def _check_unchanged(self, before: dict[str, os.stat_result]) -> None:
        for table in self.tables:
            old, path = before[table.name], self.data_dir / f"{table.name}.csv"
            try:
                path = find_file(self.data_dir, table)
                new = path.stat()
                changed = (old.st_ino, old.st_size, old.st_mtime_ns) != (new.st_ino, new.st_size, new.st_mtime_ns)
            except (SourceFileError, OSError):
                changed = True
            if changed:
                raise SourceChangedError(
                    f"{path}: modified while being read. Nothing was loaded. Deliver files under a temporary name and "
                    "rename them when complete, then clear this task."
                )
