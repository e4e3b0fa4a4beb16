"""Copy the published marts to a database server, for tools and applications that want one: PostgreSQL or MySQL.

`SERVE_URL` names it, without a password: postgresql://user@host:5432/database or mysql://user@host:3306. The password
is in `SERVE_PASSWORD`. Readers find the tables in the schema (in MySQL, the database) WAREHOUSE_marts, all of one
release, which its table `_release` names. That schema is this project's: other tables in it go with the next release.
"""

import logging
import os
import time
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import duckdb

from include.runs import project
from include.serving.base import RELEASE, ServeError, Server, Table
from include.serving.mysql import MySQL
from include.serving.postgres import Postgres
from include.settings import MARTS_SCHEMA, warehouse_name
from include.sql import identifier, literal
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

__all__ = ["RELEASE", "ServeError", "serve"]

logger = logging.getLogger(__name__)

_MEMORY = "512MB"
_WRONG_LOGIN = ("authentication failed", "Access denied", "permission denied", "does not exist", "Unknown database")
# Their values arrive unchanged everywhere, so what is unique here is unique there.
_INTEGERS = {f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE")}
_KEY_TYPES = _INTEGERS | {"INTEGER", "UINTEGER", "DECIMAL", "VARCHAR", "UUID", "DATE"}
_LONGEST_KEY = 2000  # bytes of text; PostgreSQL indexes 2,704


def serve() -> dict[str, int]:
    """Copy what is published, and switch the server's readers to it in one step.

    Returns:
        The number of rows of each table.

    Raises:
        ServeError: it failed; readers of the server still see the release before.
        include.warehouse.errors.WarehouseError: nothing is published, or it cannot be read.
    """
    started = time.monotonic()
    server = _server()
    release = target().published_release()
    if release is None:
        raise ServeError(f"Nothing is published as {target().published_location()}.", retryable=False)
    with target().open_release(release) as connection:
        connection.execute(f"set memory_limit = '{_MEMORY}'")
        connection.execute("set preserve_insertion_order = false")
        tables = _tables(connection, release)
        try:
            server.attach(connection)
        except duckdb.Error as error:
            raise _error(server, " ".join(str(error).split())[:1000]) from error
        server.check(connection, tables)
        try:
            server.replace(connection, tables)
        except duckdb.Error as error:
            # Not `from error`: its text has the statement, and so values.
            raise _error(server, server.describe(error)) from None
        rows = {one.name: _count(connection, one.source) for one in tables if one.name != RELEASE}
    logger.info("Served %s to %s in %.1f s", release.id, server.place, time.monotonic() - started)
    return rows


def _error(server: Server, text: str) -> ServeError:
    return ServeError(f"{server.place}: {text}", retryable=not any(sign in text for sign in _WRONG_LOGIN))


def _count(connection: duckdb.DuckDBPyConnection, source: str) -> int:
    (rows,) = connection.execute(f"select count(*) from {source}").fetchall()[0]
    return int(rows)


def _tables(connection: duckdb.DuckDBPyConnection, release: Release) -> list[Table]:
    query = """
        select table_name, list((column_name, data_type) order by column_index) from duckdb_columns()
        where database_name = ? and schema_name = ? group by all order by all
    """
    dbt = project.of_run(release.run_id)
    found = []
    for name, columns in connection.execute(query, [warehouse_name(), MARTS_SCHEMA]).fetchall():
        node = dbt.node_of(MARTS_SCHEMA, name)
        descriptions = {one.name: _text(one.description) for one in node.columns.values()} if node else {}
        source = f"{identifier(MARTS_SCHEMA)}.{identifier(name)}"
        description = _text(node.description) if node else ""
        key = _key(connection, source, columns, dbt.tests_of(node.unique_id) if node else ())
        found.append(Table(name, source, tuple(columns), key, description, descriptions))
    columns = (("release_id", "VARCHAR"), ("run_id", "VARCHAR"), ("created_at", "TIMESTAMP WITH TIME ZONE"))
    values = (release.id, release.run_id, release.created_at.isoformat())
    listed = ", ".join(f"{literal(one)}::{type_} as {name}" for one, (name, type_) in zip(values, columns, strict=True))
    found.append(Table(RELEASE, f"(select {listed})", columns, "", "The release that these tables are of.", {}))
    return found


def _text(description: str) -> str:
    return description.replace("\0", "")


def _key(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    columns: Iterable[tuple[str, str]],
    tests: Iterable[project.Test],
) -> str:
    """Return the first column that dbt tests to be unique and not null in every row, or ""."""
    tested = {(one.column.lower(), one.kind) for one in tests if not one.is_conditional}
    for name, type_ in columns:
        if {(name.lower(), "unique"), (name.lower(), "not_null")} <= tested and type_.split("(")[0] in _KEY_TYPES:
            if type_ != "VARCHAR":
                return name
            (longest,) = connection.execute(f"select max(strlen({identifier(name)})) from {source}").fetchall()[0]
            if (longest or 0) <= _LONGEST_KEY:
                return name
    return ""


def _server() -> Server:
    url = urlsplit(os.environ.get("SERVE_URL", ""))
    kinds: dict[str, type[Server]] = {"postgresql": Postgres, "postgres": Postgres, "mysql": MySQL}
    if url.scheme not in kinds or not url.hostname:
        raise ServeError(
            "SERVE_URL must be like postgresql://user@host/database or mysql://user@host.", retryable=False
        )
    if url.password:
        raise ServeError("SERVE_URL must not contain a password: use SERVE_PASSWORD.", retryable=False)
    given = {
        "host": url.hostname,
        "port": str(url.port or ""),
        "user": unquote(url.username or ""),
        "password": os.environ.get("SERVE_PASSWORD", ""),
        "database": url.path.strip("/"),
    }
    secret = {name: value for name, value in given.items() if value}
    kind = kinds[url.scheme]
    return kind(f"{kind.title} at {url.hostname}", secret)
