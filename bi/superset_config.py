"""Superset's settings; see https://superset.apache.org/docs/configuration/configuring-superset for all of them."""

import os
import threading
from pathlib import Path
from typing import Any

import duckdb
from duckdb_engine import ConnectionWrapper
from superset.config import TALISMAN_CONFIG  # which imports this file at its end

SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]
SQLALCHEMY_DATABASE_URI = os.environ["SUPERSET_DATABASE_URI"]
APP_NAME = "Warehouse"
# Browsers talk to this server only: the pages contain a telemetry pixel that no setting of 6.1 removes.
TALISMAN_CONFIG["content_security_policy"] |= {
    "img-src": ["'self'", "blob:", "data:"],
    "connect-src": ["'self'"],
    "style-src": ["'self'", "'unsafe-inline'"],
}
SESSION_COOKIE_SAMESITE = "Strict"
SUPERSET_WEBSERVER_TIMEOUT = 60
SQL_MAX_ROW = 100_000

NAME = os.environ["WAREHOUSE_NAME"]
PUBLISHED = Path(os.environ["WAREHOUSE_DIR"]) / "published" / f"{NAME}.duckdb"
QUERY_SECONDS = 60


def open_published() -> ConnectionWrapper:
    """Open what is published, for one query: read-only, and with no way out to the machine's files.

    Attached to an instance of its own, since DuckDB shares the instance of a path within a process: a query that is
    still running would keep the next ones on the release before.
    """
    connection = duckdb.connect(
        ":memory:", config={"threads": 2, "memory_limit": "1GB", "max_temp_directory_size": "0B"}
    )
    options = ["read_only"]
    if key := os.environ.get("WAREHOUSE_ENCRYPTION_KEY"):
        options.append(f"encryption_key {_literal(key)}")
    try:
        connection.execute(f"attach {_literal(str(PUBLISHED))} as {NAME} ({', '.join(options)})")
        connection.execute(f"use {NAME}")
        connection.execute(f"set global TimeZone = {_literal(os.environ.get('WAREHOUSE_TIMEZONE', 'UTC'))}")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        if not PUBLISHED.exists():
            raise duckdb.IOException("Nothing is published yet: run the pipeline, then reload.") from error
        raise
    return LimitedConnection(connection)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class LimitedConnection(ConnectionWrapper):
    """A connection whose query ends after a minute.

    Superset's own limit (SQLLAB_TIMEOUT) needs the main thread, which serves no requests here.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        super().__init__(connection)
        self._timer = threading.Timer(QUERY_SECONDS, connection.interrupt)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Close it, before or after the minute."""
        self._timer.cancel()
        super().close()


def DB_CONNECTION_MUTATOR(  # noqa: N802  (the setting's name)
    uri: Any, params: dict[str, Any], username: str, security_manager: Any, source: Any
) -> tuple[Any, dict[str, Any]]:
    """Connect the database `warehouse` to what is published; Superset calls this for each connection."""
    if uri.drivername == "duckdb":
        params["creator"] = open_published
    return uri, params
