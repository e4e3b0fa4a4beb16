"""The warehouse in BigQuery: a dataset for each schema, in a project of its own (`remote.py`).

Settings: `BIGQUERY_PROJECT`, and `BIGQUERY_LOCATION` for the datasets. The login is Google's usual one: `gcloud auth
application-default login`, a service account that the machine has, or `GOOGLE_APPLICATION_CREDENTIALS`.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import google.auth.exceptions
import pyarrow
import requests
from google.api_core import exceptions
from google.cloud import bigquery

from include.masking import without_values
from include.sql import escaped_literal
from include.warehouse.errors import WarehouseError, first_line
from include.warehouse.targets.remote import Column, Remote, UnreachableError, readers_schema

_TYPES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "INT64"),
    **dict.fromkeys(("UBIGINT", "HUGEINT", "UHUGEINT"), "BIGNUMERIC(38, 0)"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "FLOAT64"),
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"), "DATETIME"),
    "BOOLEAN": "BOOL",
    "DATE": "DATE",
    "TIME": "TIME",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP",
    "BLOB": "BYTES",
}
_BACK = {
    "INT64": "BIGINT",
    "FLOAT64": "DOUBLE",
    "DATETIME": "TIMESTAMP",
    "BOOL": "BOOLEAN",
    "DATE": "DATE",
    "TIME": "TIME",
    "TIMESTAMP": "TIMESTAMP WITH TIME ZONE",
    "BYTES": "BLOB",
    # Of more digits than DuckDB has; dbt's models rarely say how many they need.
    "NUMERIC": "DECIMAL(38,9)",
    "BIGNUMERIC": "DECIMAL(38,9)",
}
_DECIMAL = re.compile(r"(?:BIG)?(?:NUMERIC|DECIMAL)\((\d+)(?:, ?(\d+))?\)")


class _ConflictError(WarehouseError):
    """Another transaction has changed the same table, so ours was cancelled as a whole."""

    retryable = True


class BigQuery(Remote):
    """Datasets of a project."""

    def schemas(self) -> list[str]:
        with _errors():
            return [one.dataset_id for one in _client().list_datasets()]

    def columns_there(self, schemas: Sequence[str]) -> list[Column]:
        if not schemas:
            return []
        each = " union all ".join(
            "select c.table_schema, c.table_name, t.table_type, c.column_name, c.data_type, c.ordinal_position"
            f" from {self.name_of(one)}.INFORMATION_SCHEMA.COLUMNS as c"
            f" join {self.name_of(one)}.INFORMATION_SCHEMA.TABLES as t on t.table_name = c.table_name"
            for one in schemas
        )
        return [
            Column(
                str(schema),
                str(table),
                "view" if str(kind).endswith("VIEW") else "table",
                str(name),
                self.duckdb_type(str(type_)),
            )
            for schema, table, kind, name, type_, _ in self.query(f"{each} order by 1, 2, 6")
        ]

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with _errors():
            return [tuple(row) for row in _client().query(sql).result()]

    def change(self, statements: Sequence[str]) -> None:
        self.query(";\n".join(["begin transaction", *statements, "commit transaction"]))

    def rows(self, schema: str, table: str, columns: Mapping[str, str]) -> pyarrow.RecordBatchReader:
        # Arrow's decimals of 76 digits are none of DuckDB's.
        listed = ", ".join(
            f"cast({name} as string) as {name}" if columns[one].startswith("DECIMAL") else name
            for one in columns
            for name in [self.name_of(one)]
        )
        with _errors():
            found = _client().query(f"select {listed} from {self.name_of(schema, table)}").result()
            return found.to_arrow(create_bqstorage_client=False).to_reader()

    def upload(self, file: Path, schema: str, table: str) -> None:
        settings = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
        with _errors(), file.open("rb") as content:
            place = f"{_client().project}.{schema}.{table}"
            _client().load_table_from_file(content, place, job_config=settings).result()

    def size(self, schema: str) -> int:
        with _errors():
            tables = [_client().get_table(one) for one in _client().list_tables(schema)]
            return sum(one.num_bytes or 0 for one in tables)

    def drop_schema(self, schema: str) -> None:
        with _errors():
            _client().delete_dataset(schema, delete_contents=True, not_found_ok=True)

    def name_of(self, *parts: str) -> str:
        return ".".join(f"`{part.replace(chr(92), chr(92) * 2).replace('`', chr(92) + '`')}`" for part in parts)

    def literal(self, text: str | None) -> str:
        return "null" if text is None else escaped_literal(text)

    def type_of(self, type_: str) -> str:
        if found := _DECIMAL.fullmatch(type_):
            precision, scale = int(found[1]), int(found[2] or 0)
            fits = scale <= 9 and precision - scale <= 29
            return f"{'' if fits else 'BIG'}NUMERIC({precision}, {scale})"
        return _TYPES.get(type_, "STRING")

    def duckdb_type(self, type_: str) -> str:
        if found := _DECIMAL.fullmatch(type_):
            precision, scale = int(found[1]), int(found[2] or 0)
            return f"DECIMAL({precision},{scale})" if precision <= 38 else "DECIMAL(38,9)"
        return _BACK.get(type_, "VARCHAR")

    def published_location(self) -> str:
        return f"the dataset {readers_schema()} of {_client().project}"

    def how_to_open(self) -> str:
        return f"Query it with any client of BigQuery:\n  select * from `{_client().project}.{readers_schema()}.orders`"


def _client() -> bigquery.Client:
    project = os.environ.get("BIGQUERY_PROJECT")
    if not project:
        raise WarehouseError("DBT_TARGET=bigquery needs BIGQUERY_PROJECT: a project for this warehouse alone.")
    return _connected(project, os.environ.get("BIGQUERY_LOCATION") or None)


@cache
def _connected(project: str, location: str | None) -> bigquery.Client:
    with _errors():
        return bigquery.Client(project, location=location)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise the service's errors as the warehouse's, with its own message."""
    try:
        yield
    except (exceptions.ServerError, exceptions.RetryError, requests.ConnectionError) as error:
        raise UnreachableError(f"BigQuery cannot be reached: {first_line(error)}") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise WarehouseError(
            f"BigQuery: no login ({first_line(error)}): gcloud auth application-default login"
        ) from error
    except exceptions.GoogleAPIError as error:
        kind = _ConflictError if "due to concurrent update" in str(error) else WarehouseError
        raise kind(f"BigQuery: {without_values(first_line(error))}") from error
