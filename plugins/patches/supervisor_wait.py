"""Airflow's supervisor of a task's process notices at once when that has ended.

What: a subclass of `ActivitySubprocess` that plugins/task_processes.py starts; it waits for the process to end once
    its sockets are closed.
Why: Airflow looks once, when the process closes its sockets. If that is a moment before the process can be reaped, it
    has nothing left to wait for and sleeps for `[workers] min_heartbeat_interval`, with the worker and the task's slot.
Reported: no.
Since: Airflow 3.3, task SDK 1.3.
Remove once a supervisor without open sockets waits for its process.
"""

import contextlib

import attrs
from airflow.sdk.execution_time.supervisor import ActivitySubprocess


@attrs.define(kw_only=True)
class TaskProcess(ActivitySubprocess):
    """Airflow's supervisor of a task's process."""

    def _service_subprocess(
        self, max_wait_time: float, raise_on_timeout: bool = False, expect_signal: int | None = None
    ) -> int | None:
        if not self._open_sockets and self._exit_code is None:
            with contextlib.suppress(self._process.TimeoutExpired):
                self._process.wait(timeout=max_wait_time)
            max_wait_time = 0
        found: int | None = super()._service_subprocess(max_wait_time, raise_on_timeout, expect_signal)
        return found
