"""How each kind of source is loaded: the steps of a load that differ between them. The next kind is a class."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import dlt
import duckdb
from dlt.extract import DltSource

from include.dlt_pipelines import drop_folder
from include.dlt_pipelines.files import ParsedFile
from include.runs import artifacts
from include.settings import REJECTED_ROWS
from include.warehouse.targets import target

# New tables are allowed; a new column or a changed type requires full_refresh.
_CONTRACT: Any = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}


class Loader(ABC):
    """The load of one source, once. `load` calls the methods in this order.

    Attributes:
        max_rejected_rows: rejected rows that the source tolerates.
        parsed: the files read, with their rejected rows, once extracted.
        stateful: whether what is loaded depends on earlier loads.
    """

    max_rejected_rows = 0
    stateful = False

    def __init__(self, schema: str, full_refresh: bool) -> None:
        """Load nothing yet.

        Args:
            schema: the source's schema in the working database.
            full_refresh: load everything, whatever was loaded before.
        """
        self.schema, self.full_refresh = schema, full_refresh
        self.parsed: list[ParsedFile] = []

    @abstractmethod
    def check(self) -> None:
        """Check the source before the database is opened; raise its errors."""

    @abstractmethod
    def extract(self, connection: duckdb.DuckDBPyConnection, pipeline: dlt.Pipeline, work_dir: Path) -> None:
        """Extract the data into a load package.

        Args:
            connection: the working database, to read what it holds.
            pipeline: the pipeline to extract into.
            work_dir: an existing folder for temporary files.
        """

    @abstractmethod
    def tables(self, pipeline: dlt.Pipeline) -> dict[str, artifacts.TableLoad]:
        """Return what is loaded, by table; for data that dlt parses, only once they are normalized."""

    @abstractmethod
    def prepare(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> None:
        """Drop, create and clear tables, in the load's transaction, before the rows are added."""

    @abstractmethod
    def conclude(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> dict[str, str]:
        """Settle the tables after the rows were added, in the same transaction; return each table's build id."""

    def codes(self) -> dict[str, str]:
        """Return the digest of what each table's rows depend on besides the data, where that is known."""
        return {}


class DltLoader(Loader):
    """Loads any dlt source, by the write dispositions of its resources."""

    def __init__(self, source: DltSource, schema: str, full_refresh: bool) -> None:
        """Load nothing yet.

        Args:
            source: the source.
            schema: its schema in the working database.
            full_refresh: load without the state of earlier loads.
        """
        super().__init__(schema, full_refresh)
        self._source = source
        self.stateful = any(one.write_disposition != "replace" for one in source.selected_resources.values())

    def check(self) -> None:
        """Do nothing: dlt finds errors when it extracts."""

    def extract(self, connection: duckdb.DuckDBPyConnection, pipeline: dlt.Pipeline, work_dir: Path) -> None:
        """Extract, continuing from the state of the last published load."""
        if not self._source.schema_contract:
            self._source.schema_contract = _CONTRACT
        if not self.full_refresh:
            pipeline.sync_destination()
        pipeline.extract(self._source, loader_file_format="parquet")

    def tables(self, pipeline: dlt.Pipeline) -> dict[str, artifacts.TableLoad]:
        """Return the rows that dlt has normalized, by table."""
        if not pipeline.last_trace or not pipeline.last_trace.last_normalize_info:
            return {}
        counts = pipeline.last_trace.last_normalize_info.row_counts
        return {name: artifacts.TableLoad(rows) for name, rows in counts.items() if not name.startswith("_dlt")}

    def prepare(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> None:
        """Drop all tables if they are loaded from scratch."""
        if self.full_refresh:
            for table in loaded_tables(connection, self.schema) - {"_dlt_loads"}:
                target().drop_table(connection, self.schema, table)

    def conclude(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> dict[str, str]:
        """Return a new build for each table: what dlt has changed is not known."""
        return dict.fromkeys(loaded_tables(connection, self.schema), load_id)


def loaded_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> set[str]:
    """Return the tables of a source that have its data or dlt's state.

    Args:
        connection: the working database.
        schema: the source's schema.
    """
    kinds = target().relations(connection)
    tables = {name for (place, name), kind in kinds.items() if (place, kind) == (schema, "table")}
    return tables - {REJECTED_ROWS, drop_folder.LOADED_FILES}
