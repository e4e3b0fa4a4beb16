"""Interrupt what runs on a connection that dbt closes.

What: `DuckDBConnectionWrapper.close` interrupts the connection's query first, until DuckDB closes it.
Why: at a task's time limit dbt closes the connections of its other threads. DuckDB 2 refuses to close one that is busy,
    so the task fails with that error, its query goes on, and the process keeps the warehouse's lock. DuckDB 1.5 waits
    for the query instead, until dbt_cancel.py cancels it.
Reported: no.
Since: duckdb 2.0 with dbt-duckdb 1.11.
Remove once dbt-duckdb cancels a query before it closes its connection.
"""

import time
from typing import Any

import duckdb
from dbt.adapters.duckdb.environments.local import DuckDBConnectionWrapper

from include.patches import fits

_PATIENCE_SECONDS = 10.0  # DuckDB looks for an interrupt many times a second, but not while it writes a checkpoint


def apply() -> None:
    """Change dbt-duckdb in this process."""
    close: Any = DuckDBConnectionWrapper.close
    if not fits(close, "self"):
        return

    def interrupt_and_close(self: Any) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self.cursor().interrupt()
            try:
                close(self)
                break
            except duckdb.OperationalError as error:
                # DuckDB 1.5 does not have the class.
                if type(error).__name__ != "ResourceInUseException" or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    DuckDBConnectionWrapper.close = interrupt_and_close  # type: ignore[method-assign]
