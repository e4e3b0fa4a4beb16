"""A folder of files as a source: one file per table, or a drop folder, each with a contract."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from include.dlt_pipelines import landing
from include.dlt_pipelines.files import (
    CsvDialect,
    SourceFileError,
    TableContract,
    check,
    find_files,
)
from include.settings import REPOSITORY_ROOT
from include.warehouse import paths

__all__ = ["CsvDialect", "FileSource", "TableContract"]

logger = logging.getLogger(__name__)

_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class FileSource:
    """Files delivered and loaded together.

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
            return paths.warehouse_dir() / "landing" / self.name
        return REPOSITORY_ROOT / self._location

    @property
    def location(self) -> str:
        """Where the files are delivered: an absolute path, or the URL of a folder in an object store."""
        return self._location.rstrip("/") if "://" in self._location else str(self.data_dir)

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
            # Of a drop folder, a load checks the new files: there may be thousands of others.
            problems += [] if table.files else find_problems(table, paths)
        refuse(problems)


def find_problems(table: TableContract, paths: Iterable[Path]) -> list[str]:
    """Return how files violate a contract, as far as that can be seen without reading their rows."""
    problems = []
    for path in paths:
        try:
            check(path, table)
        except SourceFileError as error:
            problems.append(str(error))
    return problems


def refuse(problems: Sequence[str]) -> None:
    """Raise SourceFileError with all problems, if there are any."""
    if problems:
        more = [f"... and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
        lines = [*problems[:_PROBLEMS_SHOWN], *more, "Nothing was loaded. Fix the files, then clear this task."]
        raise SourceFileError("\n".join(lines))
