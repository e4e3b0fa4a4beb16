"""Let models be built beside one that has an index: ask for the list of indexes outside the transaction.

What: wraps `DuckDBCursorWrapper.execute`, for statements that read `duckdb_indexes()`.
Why: DuckDB looks for the name that another transaction has given a table with an index, and does not find it: as long
     as the reader's own transaction lasts, which DuckDB 2 aborts then. dbt-duckdb reads the list before it replaces any
     table, so `dbt build` with several threads fails. What is asked for is committed: a new transaction sees it once
     the other one has ended.
     findings/duckdb-indexes-fail-during-a-rename.sh
Reported: no.
Since: duckdb 1.5.
Remove once the list is that of the reader's own transaction.
"""

import time
from typing import Any

import duckdb
from dbt.adapters.duckdb.environments.local import DuckDBCursorWrapper

from include.patches import fits
from include.sql import literal

# The other transaction ends with its model.
_SECONDS = 600
_PAUSE_SECONDS = 0.02


def apply() -> None:
    """Change dbt in this process."""
    original: Any = DuckDBCursorWrapper.execute
    if hasattr(original, "waits") or not fits(original, "self", "sql", "bindings"):
        return

    def execute(self: Any, sql: str, bindings: Any = None) -> Any:
        if "duckdb_indexes()" not in sql:
            return original(self, sql, bindings)
        names = ", ".join(f"({literal(name)})" for (name,) in _committed(self._cursor, sql))
        listed = f"select * from (values {names}) as t(index_name)" if names else "select '' as index_name limit 0"
        return original(self, listed)

    execute.waits = True  # type: ignore[attr-defined]
    DuckDBCursorWrapper.execute = execute  # type: ignore[method-assign]


def _committed(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    gives_up_at = time.monotonic() + _SECONDS
    with connection.cursor() as other:
        while True:
            try:
                return other.execute(sql).fetchall()
            except duckdb.CatalogException:
                if time.monotonic() > gives_up_at:
                    raise
                time.sleep(_PAUSE_SECONDS)
