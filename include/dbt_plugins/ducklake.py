"""What dbt's connection needs on a lake: the profile `ducklake` names this module as a dbt-duckdb plugin."""

import duckdb
from dbt.adapters.duckdb.plugins import BasePlugin

from include.settings import tasks_at_once
from include.warehouse.targets import ducklake


class Plugin(BasePlugin):
    """Extensions, credentials, and no more of the machine than a task's share: others run beside it."""

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Prepare the connection; dbt-duckdb calls this before it attaches the lake."""
        for statement in ducklake.prepare_statements():
            conn.execute(statement)
        found = conn.execute("select current_setting('threads'), current_setting('memory_limit')").fetchone()
        assert found
        share = tasks_at_once()
        threads, (memory, unit) = found[0], found[1].split()  # such as: 4, '12.4 GiB'
        conn.execute(f"set threads = {max(1, threads // share)}")
        conn.execute(f"set memory_limit = '{float(memory) / share:.2f} {unit}'")
