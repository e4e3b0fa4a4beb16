"""The warehouse in Snowflake: a schema for each schema, in a database of its own (`remote.py`).

Settings and login are in the environment, where the profile of the same name reads them too: `SNOWFLAKE_ACCOUNT`,
`_USER`, `_DATABASE`, `_WAREHOUSE` and `_ROLE`; `_PRIVATE_KEY_PATH` with `_PRIVATE_KEY_PASSPHRASE`, or another
`_AUTHENTICATOR` with its `_TOKEN` or `_PASSWORD`.

A name without quotes, as dbt's SQL has them, is in upper case there, and case does not count, as in DuckDB. So all
names are in lower case here and in upper case there; others, which need quotes, are refused.

A transaction is one request: a worker that dies in the middle of one leaves none open, with its locks. Each statement
in it sees what others have committed by then. So it starts with an update, for which the next one waits.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow
from snowflake import connector
from snowflake.connector import errors

from include.sql import escaped_literal, identifier
from include.warehouse.errors import WarehouseError
from include.warehouse.targets.remote import Column, Remote, UnreachableError, readers_schema

_INTEGER = "NUMBER(19, 0)"
_TYPES = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), _INTEGER),
    **dict.fromkeys(("UBIGINT", "HUGEINT", "UHUGEINT"), "NUMBER(38, 0)"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "FLOAT"),
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"), "TIMESTAMP_NTZ"),
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
    "TIME": "TIME",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP_TZ",
    "BLOB": "BINARY",
}
_BACK = {
    "FLOAT": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
    "TIME": "TIME",
    "TIMESTAMP_NTZ": "TIMESTAMP",
    "TIMESTAMP_TZ": "TIMESTAMP WITH TIME ZONE",
    "TIMESTAMP_LTZ": "TIMESTAMP WITH TIME ZONE",
    "BINARY": "BLOB",
}
_NUMBER = re.compile(r"(?:NUMBER|DECIMAL)\((\d+)(?:, ?(\d+))?\)")
_SETTINGS = {
    **{one: one for one in ("account", "user", "database", "warehouse", "role", "authenticator", "token", "password")},
    **{one: one for one in ("host", "port", "protocol")},
    "private_key_path": "private_key_file",
    "private_key_passphrase": "private_key_file_pwd",
}
_LOGIN_EXPIRED = (390112, 390114, 390195)


class Snowflake(Remote):
    """Schemas of a database."""

    # dbt's tables are transient too, of which only another such one can be a clone.
    new_table: ClassVar[str] = "transient table"

    def schemas(self) -> list[str]:
        found = self.query("select schema_name from information_schema.schemata")
        return [_here(row[0]) for row in found if row[0] != "INFORMATION_SCHEMA"]

    def columns_there(self, schemas: Sequence[str]) -> list[Column]:
        if not schemas:
            return []
        listed = ", ".join(self.literal(one.upper()) for one in schemas)
        rows = self.query(
            "select c.table_schema, c.table_name, v.table_name, c.column_name, c.data_type, c.numeric_precision,"
            " c.numeric_scale from information_schema.columns as c left join information_schema.views as v"
            " on v.table_schema = c.table_schema and v.table_name = c.table_name"
            f" where c.table_schema in ({listed}) order by c.table_schema, c.table_name, c.ordinal_position"
        )
        return [
            Column(
                _here(schema),
                _here(table),
                "view" if view else "table",
                _here(name),
                self.duckdb_type(f"{type_}({digits}, {scale})" if type_ == "NUMBER" else str(type_)),
            )
            for schema, table, view, name, type_, digits, scale in rows
        ]

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with _errors(), _connection().cursor() as cursor:
            cursor.execute(sql)
            return [tuple(row) for row in cursor.fetchall()]

    def change(self, statements: Sequence[str]) -> None:
        with _errors(), _connection().cursor() as cursor:
            try:
                lock = f"update {self.name_of('warehouse', 'builds')} set passed = passed where node = relation"
                request = ["begin transaction", lock, *statements, "commit"]
                cursor.execute(";\n".join(request), num_statements=len(request))
            except errors.Error:
                cursor.execute("rollback")
                raise

    def fail_unless(self, condition: str, message: str) -> str:
        # It has no function that fails: this number cannot be one, which the error quotes.
        return f"select to_number(iff({condition}, '1', {self.literal(message)}))"

    def rows(self, schema: str, table: str, columns: Mapping[str, str]) -> pyarrow.RecordBatchReader:
        listed = ", ".join(self.name_of(one) for one in columns)
        # The width of its integers differs from batch to batch.
        wanted = ", ".join(f"null::{type_} as {identifier(name)}" for name, type_ in columns.items())
        expected = duckdb.sql(f"select {wanted}").to_arrow_table().schema

        def batches() -> Iterator[pyarrow.RecordBatch]:
            with _errors():
                for one in found:
                    yield from one.rename_columns(list(columns)).cast(expected).to_batches()

        with _errors():
            cursor = _connection().cursor()
            cursor.execute(f"select {listed} from {self.name_of(schema, table)}")
            found = cursor.fetch_arrow_batches(force_microsecond_precision=True)
        return pyarrow.RecordBatchReader.from_batches(expected, batches())

    def upload(self, file: Path, schema: str, table: str) -> None:
        stage = f"@{schema}.%{table}"
        self.query(f"put {escaped_literal(f'file://{file}')} {stage} auto_compress = false")
        self.query(
            f"copy into {self.name_of(schema, table)} from {stage} match_by_column_name = case_insensitive"
            " file_format = (type = parquet use_logical_type = true binary_as_text = false)"
        )

    def size(self, schema: str) -> int:
        place = self.literal(schema.upper())
        [(found,)] = self.query(f"select sum(bytes) from information_schema.tables where table_schema = {place}")
        return int(str(found or 0))

    def drop_schema(self, schema: str) -> None:
        self.query(f"drop schema if exists {self.name_of(schema)} cascade")

    def name_of(self, *parts: str) -> str:
        return identifier(*(one.upper() for one in parts))

    def literal(self, text: str | None) -> str:
        return "null" if text is None else escaped_literal(text)

    def type_of(self, type_: str) -> str:
        if found := _NUMBER.fullmatch(type_):
            return f"NUMBER({found[1]}, {found[2] or 0})"
        return _TYPES.get(type_, "VARCHAR")

    def duckdb_type(self, type_: str) -> str:
        if found := _NUMBER.fullmatch(type_):
            digits, scale = int(found[1]), int(found[2] or 0)
            return f"DECIMAL({digits},{scale})" if scale or digits > 19 else "BIGINT"
        return _BACK.get(type_, "VARCHAR")

    def published_location(self) -> str:
        return f"the schema {readers_schema()} of {_settings()['database']}"

    def how_to_open(self) -> str:
        place = f"{_settings()['database']}.{readers_schema()}"
        return f"Query it with any client of Snowflake:\n  select * from {place}.orders"


def _here(name: object) -> str:
    """Return our name for one of theirs."""
    text = str(name)
    if text != text.upper():
        raise WarehouseError(
            f'Snowflake: the name "{text}" was made with quotes, and is not in upper case. The pipeline has names'
            " that need no quotes: rename it, or move it to another database."
        )
    return text.lower()


def _settings() -> dict[str, str]:
    given = {name: os.environ.get(f"SNOWFLAKE_{name.upper()}") for name in _SETTINGS}
    missing = [f"SNOWFLAKE_{name.upper()}" for name in ("account", "database") if not given[name]]
    if missing:
        raise WarehouseError(
            f"DBT_TARGET=snowflake needs {' and '.join(missing)}; SNOWFLAKE_DATABASE is for this warehouse alone."
        )
    return {_SETTINGS[name]: value for name, value in given.items() if value}


def _connection() -> connector.SnowflakeConnection:
    return _connected(os.getpid(), tuple(_settings().items()))


@cache
def _connected(_: int, settings: tuple[tuple[str, str], ...]) -> connector.SnowflakeConnection:
    given: dict[str, Any] = dict(settings)
    # Else decimals would be doubles on their way to the worker.
    return connector.connect(**given, autocommit=True, arrow_number_to_decimal=True)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise the service's errors as the warehouse's, with its own message."""
    try:
        yield
    except errors.Error as error:
        text = " ".join(str(error.msg or error).split())
        if error.errno in _LOGIN_EXPIRED:
            _connected.cache_clear()
        elif not isinstance(error, errors.OperationalError | errors.InterfaceError | errors.InternalError):
            raise WarehouseError(f"Snowflake: {text}") from error
        raise UnreachableError(f"Snowflake cannot be reached: {text}") from error
