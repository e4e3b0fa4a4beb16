"""A probe: which modules a task process had before it imported anything itself. Not part of the product."""

import os

from airflow.sdk import DAG, task

with DAG(dag_id="loaded_modules", schedule=None):

    @task
    def look() -> dict[str, object]:
        # Loaded last by the forkserver, and never by a task: there, and made by another process, only where inherited.
        from tests.e2e import preload_probe

        return {
            "imported_here": os.getpid() == preload_probe.IMPORTED_BY,
            "modules_before": preload_probe.MODULES_BEFORE,
        }

    look()
