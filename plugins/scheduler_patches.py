"""Apply the scheduler's patches, once it has imported what they change."""

import sys
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class _Listener:
    @hookimpl
    def on_starting(self, component: Any) -> None:
        """Called as a scheduler, a triggerer or a task starts; a job does not know its type yet."""
        if type(component).__name__ == "Job":
            from patches import ready_tasks

            ready_tasks.apply()
            if "airflow.jobs.scheduler_job_runner" in sys.modules:
                from patches import scheduler_stop

                scheduler_stop.apply()


class SchedulerPatchesPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "scheduler_patches"
    listeners = [_Listener()]  # noqa: RUF012, an instance variable of the base class
