"""A scheduler that is told to stop does so, whatever it is doing at that moment.

What: `_do_scheduling`, with which each round of the scheduler's loop begins, ends it once `_exit_gracefully` has run.
Why: Airflow's handler of SIGTERM raises SystemExit. Python drops what is raised while it calls back a weak reference,
    and SQLAlchemy has many: then the scheduler logs that it is exiting, and goes on until it is killed, with compose
    ten minutes later. Meanwhile nothing else runs.
Reported: nowhere that we know of; seen twice with the CeleryExecutor.
Since: Airflow 3.3.
Remove once Airflow's handler leaves a mark that its loop looks at.
"""

import os
import sys
from functools import wraps
from inspect import unwrap
from typing import Any

from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

from include.patches import fits

_TOLD = "_told_to_stop"


def apply() -> None:
    """Change Airflow in this process."""
    schedule, leave = unwrap(SchedulerJobRunner._do_scheduling), unwrap(SchedulerJobRunner._exit_gracefully)
    if not (fits(schedule, "self", "session") and fits(leave, "self", "signum", "frame")):
        return

    @wraps(leave)
    def _exit_gracefully(self: Any, signum: int, frame: Any) -> None:
        setattr(self, _TOLD, True)
        leave(self, signum, frame)

    @wraps(schedule)
    def _do_scheduling(self: Any, session: Any) -> Any:
        if getattr(self, _TOLD, False):
            self.log.info("Told to stop before, and still here: exiting now")
            sys.exit(os.EX_OK)
        return schedule(self, session)

    SchedulerJobRunner._exit_gracefully = _exit_gracefully  # type: ignore[method-assign]
    SchedulerJobRunner._do_scheduling = _do_scheduling  # type: ignore[method-assign]
