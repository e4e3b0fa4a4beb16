"""Savepoints on SQLite begin a transaction that can write, and writes wait for their turn.

What: listens to SQLAlchemy's public events `connect`, and sets SQLite's time to wait for a lock, and `savepoint`, and
    begins the transaction first.
Why: Python's driver begins one only before a statement that writes. A savepoint without one begins a transaction that
    only reads at first; if another process commits before it writes, SQLite refuses at once: "database is locked". So
    hardly any backfill could be created (503), and the scheduler died of runs that disappeared with it.
    The driver waits for 5 s. On a busy machine another process may write for longer, and the request fails (500).
Reported: Airflow says that backfills are not supported on SQLite.
Since: Airflow 3.3, Python 3.11.
Remove once Airflow sets the driver's `autocommit` of Python 3.12, or begins its transactions itself.
"""

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

WAIT_SECONDS = 30


def apply() -> None:
    """Change SQLAlchemy in this process."""
    event.listen(Engine, "connect", _wait)
    event.listen(Engine, "savepoint", _begin)


def _wait(connection: Any, _record: Any) -> None:
    if "sqlite" in type(connection).__module__:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
        cursor.close()


def _begin(connection: Any, _name: str) -> None:
    if connection.dialect.name == "sqlite" and not getattr(
        connection.connection.dbapi_connection, "in_transaction", True
    ):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
