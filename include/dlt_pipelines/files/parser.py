"""What the parser of each format does."""

from abc import ABC, abstractmethod
from pathlib import Path

import duckdb

from include.dlt_pipelines.files.contract import TableContract
from include.dlt_pipelines.files.output import Output


class Parser(ABC):
    """Parses one file of a format."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: TableContract, output: Output) -> None:
        """Parse nothing yet.

        Args:
            connection: an empty database.
            table: the contract.
            output: where the rows go.
        """
        self._connection, self._table, self._output = connection, table, output
        self._dialect = table.dialect

    @staticmethod
    @abstractmethod
    def check(path: Path, table: TableContract) -> None:
        """Check what can be seen without reading the rows, such as the names of columns.

        Args:
            path: the file.
            table: the contract.

        Raises:
            SourceFileError: the file is no such file, is unreadable or violates the contract.
        """

    @abstractmethod
    def parse(self, path: Path, out_dir: Path) -> int | None:
        """Give each row to the output, as a good or a rejected one.

        Args:
            path: the file.
            out_dir: an existing folder for temporary files.

        Returns:
            The number of rows as counted in another way; None if the output's are counted so already.

        Raises:
            SourceFileError: the file cannot be read or violates the contract.
        """
