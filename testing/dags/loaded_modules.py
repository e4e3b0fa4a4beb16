"""A test DAG: which modules a task process had before it imported anything itself."""

import os

from airflow.sdk import DAG, task

with DAG(dag_id="loaded_modules", schedule=None):

    @task
    def look() -> dict[str, object]:
        # The forkserver loads it last, tasks never do: if another process imported it, it was inherited.
        from testing import preload_probe

        return {
            "imported_here": os.getpid() == preload_probe.IMPORTED_BY,
            "modules_before": preload_probe.MODULES_BEFORE,
        }

    look()
