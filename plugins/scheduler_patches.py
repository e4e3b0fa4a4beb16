"""Apply patches/ready_tasks.py in the scheduler, once it has imported what that changes."""

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


class SchedulerPatchesPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "scheduler_patches"
    listeners = [_Listener()]  # noqa: RUF012, an instance variable of the base class
