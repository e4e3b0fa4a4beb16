"""How each kind of source is loaded: the steps of a load that differ between them. The next kind is a class."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
import duckdb
from dlt.extract import DltResource, DltSource

from include.dlt_pipelines import drop_folder
from include.dlt_pipelines.files import ParsedFile
from include.errors import PipelineError
from include.runs import artifacts, manifest
from include.settings import REJECTED_ROWS
from include.warehouse.targets import target

logger = logging.getLogger(__name__)

# New tables are allowed; a new column or a changed type requires full_refresh.
_CONTRACT: Any = {"tables": "evolve", "columns": "freeze", "data_type": "freeze"}


class Loader(ABC):
    """The load of one source, once. `load` calls the methods in this order.

    Attributes:
        max_rejected_rows: rejected rows that the source tolerates.
        parsed: the files read, with their rejected rows, once extracted.
        stateful: whether what is loaded depends on earlier loads.
        adds_rows: whether rows of earlier loads stay.
    """

    max_rejected_rows = 0
    stateful = False
    adds_rows = False

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
        self.adds_rows = self.stateful and not full_refresh

    def check(self) -> None:
        """Do nothing: dlt finds errors when it extracts."""

    def extract(self, connection: duckdb.DuckDBPyConnection, pipeline: dlt.Pipeline, work_dir: Path) -> None:
        """Extract, continuing from the state of the last published load."""
        if not self._source.schema_contract:
            self._source.schema_contract = _CONTRACT
        if not self.full_refresh:
            pipeline.sync_destination()
        there = set() if self.full_refresh else loaded_tables(connection, self.schema)
        source = self._source.clone()
        for name, table in self._static_tables().items():
            columns = self._source.resources[name].compute_table_schema()["columns"]
            if table not in there and columns and all("data_type" in one for one in columns.values()):
                source.resources.add(_empty(self._source.resources[name], table))
        pipeline.extract(source, loader_file_format="parquet")

    def _static_tables(self) -> dict[str, str]:
        """Return the tables of resources that are selected, by resource; without those that rows name."""
        named = {name: one.table_name for name, one in self._source.selected_resources.items()}
        normalize = self._source.schema.naming.normalize_table_identifier
        return {name: normalize(table) for name, table in named.items() if isinstance(table, str)}

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
                target().drop(connection, self.schema, table)

    def conclude(self, connection: duckdb.DuckDBPyConnection, load_id: str) -> dict[str, str]:
        """Return a new build for each table: what dlt has changed is not known.

        Raises:
            EmptyResourceError: dbt reads a table that is not there, as its resource has had no rows yet.
        """
        missing = set(self._static_tables().values()) - loaded_tables(connection, self.schema)
        for table in sorted(missing):
            text = f"{self._source.name}: no rows for {self.schema}.{table}, whose columns are not known: no table."
            if (self.schema, table) in _read_by_dbt():
                raise EmptyResourceError(
                    f"{text} Nothing was loaded. Declare its columns (@dlt.resource(columns=...), or columns in a REST "
                    "resource), so that it can be created empty; then clear this task."
                )
            logger.warning("%s", text)
        return dict.fromkeys(loaded_tables(connection, self.schema), load_id)


class EmptyResourceError(PipelineError):
    """A resource without rows makes no table, and dbt would fail to find it."""

    runbook = "A source cannot be read"


def _empty(resource: DltResource, table: str) -> DltResource:
    """Return a resource that creates a table: dlt makes none for a resource without rows."""

    def nothing() -> Iterator[Any]:
        yield dlt.mark.materialize_table_schema()

    return dlt.resource(
        nothing,
        name=f"{resource.name}__columns",
        table_name=table,
        columns=resource.compute_table_schema()["columns"],
        write_disposition=resource.write_disposition,
    )


def _read_by_dbt() -> set[tuple[str, str]]:
    """Return schema and name of the tables that the dbt project declares as sources, if it has been parsed."""
    if not (file := manifest.latest()):
        return set()
    sources = json.loads(file.read_text())["sources"].values()
    return {(one["schema"], one["identifier"]) for one in sources}


def loaded_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> set[str]:
    """Return the tables of a source that have its data or dlt's state.

    Args:
        connection: the working database.
        schema: the source's schema.
    """
    kinds = target().relations(connection)
    tables = {name for (place, name), kind in kinds.items() if (place, kind) == (schema, "table")}
    return tables - {REJECTED_ROWS, drop_folder.LOADED_FILES}
