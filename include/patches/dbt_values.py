"""Keep values of rows out of dbt's errors: its output, its log, its results, and all that is made of them.

What: wraps `exception_handler` of an adapter's connections, through which every error of the database comes.
Why: DuckDB, PostgreSQL and BigQuery quote the value whose cast or constraint failed, and dbt repeats it wherever it
reports.
Reported: no.
Since: dbt-duckdb 1.11, dbt-postgres 1.11, dbt-bigquery 1.12.
Remove once dbt can be told what not to print of an error, besides its own secret variables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from include.masking import without_values
from include.patches import fits


def apply(connections: Any) -> None:
    """Change an adapter's class of connections in this process.

    Args:
        connections: such as `DuckDBConnectionManager`.
    """
    original = connections.exception_handler
    # Some adapters take two of them.
    names = ("self", "sql", "connection_name")[: max(2, len(signature(original).parameters))]
    if hasattr(original, "masks") or not fits(original, *names):
        return

    @contextmanager
    def masked(self: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        with original(self, *args, **kwargs):
            try:
                yield
            except Exception as error:
                text, parts = without_values(str(error)), getattr(error, "errors", ())
                shown = [{**one, "message": without_values(one["message"])} for one in parts if "message" in one]
                if text == str(error) and shown == list(parts):
                    raise
                masked_error = type(error)(text)
                if shown:  # of Google's, whose message dbt takes from there
                    masked_error._errors = shown  # type: ignore[attr-defined]
                raise masked_error from None

    masked.masks = True  # type: ignore[attr-defined]
    connections.exception_handler = masked
