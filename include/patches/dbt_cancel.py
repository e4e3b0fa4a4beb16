"""Cancel dbt's running queries from another thread, without dbt's lock.

What: walks dbt's registry of adapters and each adapter's connections by thread.
Why: dbt cancels its queries only on KeyboardInterrupt. On any other exception in the main thread, such as Airflow's
    timeout, it waits for them to end, possibly for ever, and holds the lock that `cancel_open_connections()` takes.
Reported: https://github.com/dbt-labs/dbt-core/issues/8356 (open, about SIGTERM).
Since: dbt-core 1.11, dbt-adapters 1.24.
Remove once a timeout in dbt's main thread cancels its queries.
"""

from dbt.adapters.contracts.connection import ConnectionState
from dbt.adapters.factory import FACTORY


def cancel_queries() -> None:
    """Cancel what runs on dbt's open connections, of all threads."""
    for adapter in list(FACTORY.adapters.values()):
        for connection in list(adapter.connections.thread_connections.values()):
            if connection.state == ConnectionState.OPEN:
                # dbt-postgres would need a connection of this thread; psycopg2 needs none.
                cancel = getattr(connection.handle, "cancel", None)
                cancel() if cancel else adapter.connections.cancel(connection)
